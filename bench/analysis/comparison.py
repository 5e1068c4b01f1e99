"""Two sets of runs against each other, figure by figure. Pure.

What repeats is the run, where both sides have several: the migrations within one share a testbed, so a run counts once,
by the mean of its migrations. Otherwise each migration counts.

Many figures are looked at together, so a difference must be clearer than for one alone (Holm's correction, Scand. J.
Statist. 6, 1979): of two equal sets one in twenty comparisons says that anything differs, not one in twenty figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final, Literal

from bench.analysis.samples import CONFIDENCE, Difference, Divisions, samples_that_would_tell
from bench.figures import NAMED, Dimension, figure_dimension, values
from bench.result import RunResult

Verdict = Literal["slower", "faster", "more", "less", "same", "cannot tell", "missing"]
Unit = Literal["run", "migration"]

SCALARS: Final = ("total", "transfer", "downtime", "sent", "throughput", "rounds", "relearn.max", "flows.died")
PER_FLOW: Final = ("outage", "lost", "retransmits")


@dataclass(frozen=True)
class FigureComparison:
    """One figure of both sides.

    :param a: its samples, in the order of the runs; *b* likewise.
    :param worse: True: b is worse than a; None: neither, or nobody can tell.
    """

    figure: str
    dimension: Dimension | None
    a: tuple[float, ...]
    b: tuple[float, ...]
    verdict: Verdict
    worse: bool | None = None
    difference: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """All figures of one pair of sets.

    :param unit: what a sample is.
    :param label: of a sweep's point; empty otherwise.
    """

    label: str
    unit: Unit
    figures: tuple[FigureComparison, ...]

    @property
    def worse(self) -> bool:
        return any(item.worse for item in self.figures)


def usual_figures(runs: Sequence[RunResult]) -> list[str]:
    """What is compared when nobody asks for anything else: the named figures, and those of each flow."""
    flows = dict.fromkeys(flow.name for run in runs for flow in run.flows if "." not in flow.name)
    return [*SCALARS, *(f"flows.{name}.{member}" for name in flows for member in PER_FLOW)]


def compare_runs(
    a: Sequence[RunResult],
    b: Sequence[RunResult],
    figures: Sequence[str] = (),
    *,
    label: str = "",
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare set *b* with set *a*.

    :param figures: empty for the usual ones.
    :raises ValueError: one of *figures* is none.
    """
    unit: Unit = "run" if min(len(a), len(b)) > 1 else "migration"
    wanted = list(figures) or usual_figures([*a, *b])
    divisions: dict[tuple[int, int], Divisions] = {}
    items = []
    for figure in wanted:
        first, second = _samples(a, figure, unit), _samples(b, figure, unit)
        if not first and not second and not figures:
            continue
        items.append(_compare(figure, first, second, divisions, confidence))
    return Comparison(label, unit, tuple(_corrected(items, confidence)))


def _samples(runs: Sequence[RunResult], figure: str, unit: Unit) -> tuple[float, ...]:
    """One number for each sample that has the figure; several numbers of one migration count by their largest."""
    found: list[float] = []
    for run in runs:
        each = [max(numbers) for one in run.migrations or [run] if (numbers := values(figure, one, run))]
        found += [fmean(each)] if unit == "run" and each else each
    return tuple(found)


def _compare(
    figure: str,
    a: tuple[float, ...],
    b: tuple[float, ...],
    divisions: dict[tuple[int, int], Divisions],
    confidence: float,
) -> FigureComparison:
    dimension = figure_dimension(figure)
    if not a or not b:
        return FigureComparison(figure, dimension, a, b, "missing")
    if len({*a, *b}) == 1:
        return FigureComparison(figure, dimension, a, b, "same")
    sizes = len(a), len(b)
    if sizes not in divisions:
        divisions[sizes] = Divisions(*sizes)
    return FigureComparison(figure, dimension, a, b, "cannot tell", None, divisions[sizes].compare(a, b, confidence))


def _corrected(items: Sequence[FigureComparison], confidence: float) -> list[FigureComparison]:
    """Verdicts by Holm: the clearest difference against risk / n, the next against risk / (n - 1), ..."""
    tested = sorted(
        (item for item in items if item.difference is not None),
        key=lambda item: item.difference.p_value if item.difference is not None else 1.0,
    )
    told: dict[str, FigureComparison] = {}
    for rank, item in enumerate(tested):
        difference = item.difference
        if difference is None or difference.p_value > (1 - confidence) / (len(tested) - rank):
            break
        told[item.figure] = _told(item, difference)
    return [told.get(item.figure) or _untold(item, len(tested), confidence) for item in items]


def _told(item: FigureComparison, difference: Difference) -> FigureComparison:
    named = NAMED.get(item.figure.removesuffix(".max"))
    more_is_better = named is not None and named.better == "more"
    rose = difference.difference > 0
    if item.dimension == "duration":
        verdict: Verdict = "slower" if rose else "faster"
    elif item.dimension == "bit rate":
        verdict = "faster" if rose else "slower"
    else:
        verdict = "more" if rose else "less"
    return replace(item, verdict=verdict, worse=rose != more_is_better)


def _untold(item: FigureComparison, tests: int, confidence: float) -> FigureComparison:
    """How many more would tell, now that several figures share the risk."""
    if item.difference is None:
        return item
    more = samples_that_would_tell(item.a, item.b, 1 - (1 - confidence) / max(1, tests))
    return replace(item, difference=replace(item.difference, more=more))


def summary(item: FigureComparison, unit: Unit = "run", *, short: bool = False) -> str:
    """The verdict as people say it: ``"slower by 12 %"``, ``"cannot tell with these repeats; 14 more runs would"``."""
    difference = item.difference
    if item.verdict == "missing":
        return f"not observed in {'A' if not item.a else 'B'}"
    if item.verdict == "same" or difference is None:
        return "the same in all"
    if item.verdict == "cannot tell":
        if difference.more is None:
            return "cannot tell" + ("" if short else " with these repeats; no number of them is likely to")
        more = f"{difference.more:,} more"
        return f"cannot tell; {more}" if short else f"cannot tell with these repeats; {more} {unit}s of each would"
    return f"{item.verdict}{_by(difference)}"


def _by(difference: Difference) -> str:
    if difference.mean_a == 0 or not math.isfinite(difference.difference / difference.mean_a):
        return ""
    change = abs(difference.difference / difference.mean_a)
    return f" by {change:.0%}" if change >= 0.095 else f" by {change:.1%}"


def matching(a: Mapping[str, Sequence[RunResult]], b: Mapping[str, Sequence[RunResult]]) -> list[str]:
    """The labels that both have, in *a*'s order."""
    return [label for label in a if label in b]
