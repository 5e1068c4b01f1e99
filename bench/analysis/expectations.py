"""Whether what a scenario expects (:mod:`bench.scenario.expect`) held in a run. Pure.

What was not observed holds no bound: a missing number fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.analysis.samples import Interval, interval_of_mean, interval_of_quantile
from bench.figures import Dimension, aggregate_of, format_value, values
from bench.result import ExpectationResult, MigrationResult, RunResult
from bench.scenario.expect import EVERY, Expectation


def check(expectations: Sequence[str], run: RunResult) -> list[ExpectationResult]:
    """All *expectations* held against *run*. :raises ValueError: one of them is none."""
    return [_check(Expectation.parse(text), run) for text in expectations]


def describe(found: ExpectationResult) -> str:
    """What was measured, as one line: ``"312 ms, 95 % interval 280.1 ms to 320 ms, of 10"``."""
    dimension: Dimension | None = found.dimension  # type: ignore[assignment]
    parts = [format_value(found.value, dimension)]
    if found.low is not None or found.high is not None:
        ends = ["open" if end is None else format_value(end, dimension) for end in (found.low, found.high)]
        of = "" if "(" in found.expectation else " of the median"
        parts.append(f"95 % interval{of} {ends[0]} to {ends[1]}")
    if found.samples > 1:
        parts.append(f"of {found.samples}")
    return ", ".join(parts) + (f" ({found.note})" if found.note else "")


def _check(expectation: Expectation, run: RunResult) -> ExpectationResult:
    """Whether it held in *run*."""
    migrations: Sequence[MigrationResult] = run.migrations or [run]
    each = [values(expectation.figure, migration, run) for migration in migrations]
    numbers = [number for found in each for number in found]
    missing = sum(not found for found in each)
    if not numbers:
        return _result(expectation, False, None, 0, note=f"{expectation.figure} was not observed")
    if expectation.statistic == EVERY:
        wrong = [number for number in numbers if not expectation.holds(number)]
        note = f"not observed in {missing} of {len(each)} migrations" if missing else ""
        if wrong and len(numbers) > 1:
            note = "; ".join(part for part in (f"{len(wrong)} of {len(numbers)} are wrong", note) if part)
        return _result(
            expectation,
            not wrong and not missing,
            _worst(expectation, numbers),
            len(numbers),
            interval_of_quantile(numbers, 0.5),
            note,
        )
    value = aggregate_of(expectation.statistic)(numbers)
    interval = _interval(expectation.statistic, numbers)
    ok = expectation.holds(value)
    note = f"not observed in {missing} of {len(each)} migrations" if missing else ""
    if (
        ok
        and interval is not None
        and interval.closed
        and not missing
        and not (expectation.holds(interval.low) and expectation.holds(interval.high))
    ):
        note = "the interval reaches over the bound: more repeats would tell"
    return _result(expectation, ok and not missing, value, len(numbers), interval, note)


def _worst(expectation: Expectation, numbers: Sequence[float]) -> float:
    """The number that is farthest on the wrong side."""
    if expectation.compare in ("<", "<="):
        return max(numbers)
    if expectation.compare in (">", ">="):
        return min(numbers)
    return next((number for number in numbers if not expectation.holds(number)), numbers[0])


def _interval(statistic: str, numbers: Sequence[float]) -> Interval | None:
    if statistic == "mean":
        return interval_of_mean(numbers)
    if statistic == "median":
        return interval_of_quantile(numbers, 0.5)
    if statistic.startswith("p") and statistic not in ("p0", "p100"):
        return interval_of_quantile(numbers, int(statistic[1:]) / 100)
    return None


def _result(
    expectation: Expectation,
    ok: bool,
    value: float | None,
    samples: int,
    interval: Interval | None = None,
    note: str = "",
) -> ExpectationResult:
    low = interval.low if interval is not None and math.isfinite(interval.low) else None
    high = interval.high if interval is not None and math.isfinite(interval.high) else None
    return ExpectationResult(
        expectation=expectation.text,
        ok=ok,
        value=value,
        dimension=None if expectation.dimension == "number" else expectation.dimension,
        low=low,
        high=high,
        samples=samples,
        note=note,
    )
