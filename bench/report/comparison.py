"""Two sets of runs against each other, for a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from bench.analysis.comparison import Comparison, FigureComparison, summary
from bench.figures import Dimension, format_value, percentile
from bench.report.text import NOT_SEEN, clean, fancy, heading, show, table

_LEVELS = "▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = " .:-=+*#"
_BINS = 12
_WIDE = 120
STYLES = {"slower": "red", "faster": "green", "cannot tell": "dim", "same": "dim", "missing": "yellow"}


def print_comparison(comparison: Comparison, names: tuple[str, str], console: Console) -> None:
    """A table of all figures that differ: A, B, the interval of the difference, the distribution, the verdict."""
    first = comparison.figures[0] if comparison.figures else None
    counts = f"{len(first.a)} and {len(first.b)} {comparison.unit}s" if first is not None else "nothing to compare"
    heading(console, clean(comparison.label) or "Comparison", f"A {clean(names[0])}, B {clean(names[1])}: {counts}")
    wide = console.width >= _WIDE
    rows = table(console, "figure", "A: median", "B: median", "B - A: 95 %")
    if wide:
        rows.add_column("A | B, from least to most", no_wrap=True)
    rows.add_column("verdict")
    for item in comparison.figures:
        if item.verdict == "same":
            continue
        rows.add_row(
            figure_name(item),
            *(_median(side, item.dimension) for side in (item.a, item.b)),
            interval_text(item) if wide else relative_interval(item),
            *([distribution(item, blocks=fancy(console))] if wide else []),
            Text(summary(item, short=True), style=_style(item)),
        )
    show(console, rows)
    same = [figure_name(item) for item in comparison.figures if item.verdict == "same"]
    if same:
        console.print(Text(f"the same in all: {', '.join(same)}", style="dim"))
    if any(item.verdict == "cannot tell" for item in comparison.figures):
        note = f"cannot tell with these repeats; n more {comparison.unit}s of each are likely to"
        console.print(Text(note, style="dim"))


def figure_name(item: FigureComparison) -> str:
    """Short: ``udp-echo.outage``."""
    return clean(item.figure.removeprefix("flows."))


def _style(item: FigureComparison) -> str:
    if item.worse is not None:
        return "bold red" if item.worse else "green"
    return STYLES.get(item.verdict, "")


def _median(samples: tuple[float, ...], dimension: Dimension | None) -> str:
    return format_value(percentile(samples, 0.5), dimension) if samples else NOT_SEEN


def signed(value: float, dimension: Dimension | None) -> str:
    """``"+3.2 ms"``; an open end says so."""
    if not math.isfinite(value):
        return "open"
    text = format_value(abs(value), dimension)
    return f"{'-' if value < 0 else '+'}{text}"


def difference_text(item: FigureComparison) -> str:
    """The difference of the means."""
    return "" if item.difference is None else signed(item.difference.difference, item.dimension)


def relative_interval(item: FigureComparison) -> str:
    """The interval of the difference in percent of A's mean, where it has one; else as it is."""
    difference = item.difference
    if difference is None or not difference.interval.closed or not difference.mean_a:
        return interval_text(item)
    low, high = (end / abs(difference.mean_a) for end in (difference.interval.low, difference.interval.high))
    return f"{low:+.0%} to {high:+.0%}"


def interval_text(item: FigureComparison) -> str:
    """The interval of the difference."""
    if item.difference is None:
        return ""
    interval = item.difference.interval
    if not interval.closed:
        return "open"
    return f"{signed(interval.low, item.dimension)} to {signed(interval.high, item.dimension)}"


def distribution(item: FigureComparison, *, blocks: bool) -> str:
    """Both sides as histograms over the same range."""
    if not item.a or not item.b or len({*item.a, *item.b}) == 1:
        return ""
    least, most = min(*item.a, *item.b), max(*item.a, *item.b)
    levels = _LEVELS if blocks else _PLAIN_LEVELS
    drawn = []
    for side in (item.a, item.b):
        bins = [0] * _BINS
        for value in side:
            bins[min(_BINS - 1, int((value - least) / (most - least) * _BINS))] += 1
        highest = max(bins)
        drawn.append("".join(levels[math.ceil(number / highest * (len(levels) - 1))] for number in bins))
    return " | ".join(drawn)
