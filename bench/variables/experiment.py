"""The experiment: every point of every variable is a run of its own, and what each measured beside the model."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.errors import ResultError
from bench.result import RunResult
from bench.variables.fit import sentence
from bench.variables.points import Point, Variable

RUN_NS: Final = 600 * NS_PER_S
STOPPED: Final = (130, 143, 129)
_ENTRY: Final = "from bench.cli import main; main()"


FIGURES: Final = (
    ("total time", "total_ns"),
    ("its transfer", "transfer_ns"),
    ("downtime", "downtime_ns"),
    ("the longest outage", "outage_ns"),
)
"""What sentences are about: name and member of a sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One migration. Times in ns; None: not observed, or the model has no expectation.

    :param transfer_ns: the total time without its set-up: what the model's expectation is of.
    :param outage_ns: the longest of its client flows.
    """

    total_ns: int | None
    transfer_ns: int | None
    downtime_ns: int | None
    rounds: int
    outage_ns: int | None
    expected_transfer_ns: int | None
    expected_downtime_ns: int | None
    expected_rounds: int | None


@dataclass(slots=True)
class Measured:
    """One point: its samples, or why there are none."""

    value: float
    samples: list[Sample] = field(default_factory=list)
    problem: str = ""

    def middle(self, name: str) -> float | None:
        """The median of a member of its samples."""
        found = [getattr(sample, name) for sample in self.samples if getattr(sample, name) is not None]
        return statistics.median(found) if found else None


@dataclass(slots=True)
class Swept:
    """One variable with everything that was measured."""

    variable: Variable
    points: list[Measured] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What it did to each figure."""
        return [sentence(what, self.variable.name, self.pairs(name)) for what, name in FIGURES]

    def pairs(self, name: str) -> list[tuple[float, float]]:
        """(value, measured) of every sample that has it."""
        return [
            (point.value, float(getattr(sample, name)))
            for point in self.points
            for sample in point.samples
            if getattr(sample, name) is not None
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.variable.key,
            "name": self.variable.name,
            "unit": self.variable.unit,
            "points": [asdict(point) for point in self.points],
            "sentences": self.sentences(),
        }


def samples_of(result: RunResult) -> list[Sample]:
    """Of every migration of a run that completed."""
    found = []
    for move in result.migrations or [result]:
        if move.outcome != "completed":
            continue
        predicted = move.prediction.predicted if move.prediction is not None else None
        outages = [flow.outage_ns for flow in move.flows if flow.outage_ns is not None]
        found.append(
            Sample(
                move.total_ns,
                None if move.prediction is None else move.prediction.transfer_ns,
                move.downtime_ns,
                len(move.rounds),
                max(outages, default=None),
                None if predicted is None else predicted.total_ns,
                None if predicted is None else predicted.downtime_ns,
                None if predicted is None else predicted.rounds,
            )
        )
    return found


def measure(scenario: Path, point: Point, settings: Iterable[str], output: Path) -> Measured:
    """One run in a process of its own. :raises KeyboardInterrupt: when it was stopped."""
    words = [word for setting in (*settings, *point.settings) for word in ("--set", setting)]
    argv = [sys.executable, "-c", _ENTRY, "run", str(scenario), *words, "-o", str(output)]
    measured = Measured(point.value)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_NS / NS_PER_S, check=False
        )
    except subprocess.TimeoutExpired:
        measured.problem = f"the run took longer than {RUN_NS // NS_PER_S} s"
        return measured
    if done.returncode in STOPPED:
        raise KeyboardInterrupt
    try:
        result = RunResult.read(output)
    except (ResultError, OSError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        measured.problem = said[-1][:300] if said else f"exit status {done.returncode}"
        return measured
    measured.samples = samples_of(result)
    if not measured.samples:
        measured.problem = result.reason or result.outcome
    return measured


def sweep(
    scenario: Path,
    chosen: Sequence[Variable],
    settings: Sequence[str],
    output: Path,
    tell: Callable[[int, int, str, float | None], None],
) -> list[Swept]:
    """Everything, one run after the other: a second one would disturb what is measured.

    :param settings: of every run.
    :param tell: called before each run with its number, how many there are, what it is, and the seconds left.
    """
    total = sum(len(variable.points) for variable in chosen)
    began, done = time.monotonic(), 0
    swept = []
    for variable in chosen:
        found = Swept(variable)
        swept.append(found)
        for point in variable.points:
            left = (time.monotonic() - began) / done * (total - done) if done else None
            tell(done + 1, total, f"{variable.name}: {point.value:g} {variable.unit}", left)
            place = output / "runs" / f"{variable.key}-{point.value:g}"
            found.points.append(measure(scenario, point, (*settings, *variable.also), place))
            done += 1
            (output / "variables.json").write_text(
                json.dumps([item.to_json() for item in swept], indent=1) + "\n", encoding="utf-8"
            )
    return swept
