"""The page of a comparison: for each point of a sweep the differences, the table, and the distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.analysis.comparison import Comparison, FigureComparison, summary
from bench.figures import format_value, percentile
from bench.report.comparison import difference_text, interval_text
from bench.report.html.markup import Markup, join, table, tag
from bench.report.html.page import disclosure, page, plot, section
from bench.report.html.tables import badge
from bench.report.plots.comparison import both, differences
from bench.report.text import NOT_SEEN

MAX_POINTS: Final = 200
DISTRIBUTIONS: Final = 12


def comparison_page(comparisons: Sequence[Comparison], names: tuple[str, str]) -> str:
    """The whole file. *names*: what A and B are."""
    worse = sum(comparison.worse for comparison in comparisons)
    verdict = badge("B is worse", "bad") if worse else badge("nothing of B was seen to be worse", "good")
    header = tag(
        "header",
        tag("h1", "Comparison"),
        tag("p", "A ", tag("b", names[0]), ", B ", tag("b", names[1]), " ", verdict),
        class_="run",
    )
    parts = [_section(number, one) for number, one in enumerate(comparisons[:MAX_POINTS])]
    navigation = [(f"c{number}", one.label) for number, one in enumerate(comparisons[:MAX_POINTS]) if one.label]
    return page("Comparison", [header, *parts], navigation)


def _section(number: int, comparison: Comparison) -> Markup:
    figure = differences(comparison.figures)
    told = [
        item for item in comparison.figures if item.verdict not in ("same", "missing") and len(item.a) + len(item.b) > 3
    ]
    drawn = [
        join([tag("h3", item.figure), plot(f"plot-{number}-{at}", both(item), title=f"Distribution of {item.figure}")])
        for at, item in enumerate(told[:DISTRIBUTIONS])
    ]
    return section(
        f"c{number}",
        comparison.label or "Differences",
        plot(f"plot-{number}", figure, title="Differences with their intervals") if figure is not None else None,
        _table(comparison),
        disclosure("Distributions", tag("div", *drawn), opened=number == 0) if drawn else None,
        remark=f"a sample is a {comparison.unit}; verdicts by a permutation test, corrected for the number of figures",
    )


def _table(comparison: Comparison) -> Markup:
    rows, marks = [], []
    for item in comparison.figures:
        rows.append(
            [
                item.figure,
                summary(item, comparison.unit),
                _spread(item, item.a),
                _spread(item, item.b),
                difference_text(item),
                interval_text(item),
                "" if item.difference is None else f"{item.difference.p_value:.3g}",
                f"{len(item.a)} / {len(item.b)}",
            ]
        )
        marks.append("dim" if item.verdict == "same" else "" if item.worse is None else "bad" if item.worse else "good")
    head = ["figure", "verdict", "A: median", "B: median", "B - A", "95 % interval", "p", "samples"]
    return table(head, rows, left=2, marks=marks)


def _spread(item: FigureComparison, samples: tuple[float, ...]) -> str:
    if not samples:
        return NOT_SEEN
    middle, least, most = (format_value(percentile(samples, share), item.dimension) for share in (0.5, 0, 1))
    return f"{middle} ({least} to {most})" if least != most else middle
