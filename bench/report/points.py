"""A sweep for a terminal: one row for each of its points, over the repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.text import Text

from bench.figures import figure_dimension, format_value, values
from bench.report.text import NOT_SEEN, clean, heading, show, table
from bench.result import RunResult

FIGURES = ("downtime", "outage.max", "total", "sent", "relearn.max")


def print_points(points: Mapping[str, Sequence[RunResult]], failed: int, console: Console) -> None:
    """Medians over all migrations of a point, with the range where there is room.

    :param failed: how many runs left no result.
    """
    heading(
        console, "Points", "medians over all migrations of the repeats" + (" (least to most)" if _wide(console) else "")
    )
    rows = table(console, "point", "runs", "good", *FIGURES)
    for label, runs in points.items():
        good = sum(run.outcome == "completed" and all(item.ok for item in run.expectations) for run in runs)
        style = "" if good == len(runs) else "yellow"
        cells = [_cell(runs, figure, wide=_wide(console)) for figure in FIGURES]
        rows.add_row(clean(label), f"{len(runs)}", Text(f"{good}", style=style), *cells)
    show(console, rows)
    if failed:
        console.print(Text(f"{failed} runs left no result; sweep.csv says why", style="red"))


def _wide(console: Console) -> bool:
    return console.width >= 160


def _cell(runs: Sequence[RunResult], figure: str, *, wide: bool) -> str:
    numbers = [number for run in runs for one in run.migrations or [run] for number in values(figure, one, run)]
    if not numbers:
        return NOT_SEEN
    middle, least, most = (
        format_value(value, figure_dimension(figure)) for value in (median(numbers), min(numbers), max(numbers))
    )
    return f"{middle} ({least} to {most})" if wide and least != most else middle
