"""The figure of a comparison: each figure's difference with its interval, in percent of A, and both distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bench.analysis.comparison import FigureComparison, summary
from bench.report.plots.parts import ACCENT, BAD, GOOD, MUTED, Figure, axis, figure, label

MAX_ROWS: Final = 60


def differences(items: Sequence[FigureComparison]) -> Figure | None:
    """B - A of every figure that has an interval, in percent of A's mean. None: there is none."""
    shown = [
        item
        for item in items
        if item.difference is not None and item.difference.interval.closed and item.difference.mean_a
    ][:MAX_ROWS]
    if not shown:
        return None
    names, centres, below, above, colors, hovers = [], [], [], [], [], []
    for item in shown:
        difference = item.difference
        if difference is None:
            continue
        scale = 100 / abs(difference.mean_a)
        centre = difference.difference * scale
        names.append(label(item.figure.removeprefix("flows.")))
        centres.append(centre)
        below.append(centre - difference.interval.low * scale)
        above.append(difference.interval.high * scale - centre)
        colors.append(MUTED if item.worse is None else BAD if item.worse else GOOD)
        hovers.append(f"<b>{names[-1]}</b><br>{label(summary(item))}<br>p = {difference.p_value:.3g}")
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [centre],
            "y": [name],
            "error_x": {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low], "color": color},
            "marker": {"size": 9, "color": color},
            "hovertext": [hover],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }
        for name, centre, low, high, color, hover in zip(names, centres, below, above, colors, hovers, strict=True)
    ]
    return figure(
        data,
        90 + 26 * len(shown),
        showlegend=False,
        hovermode="closest",
        xaxis=axis("B - A, % of A's mean; lines: the confidence interval", zeroline=True, zerolinewidth=2),
        yaxis=axis(type="category", autorange="reversed"),
    )


def both(item: FigureComparison) -> Figure:
    """The samples of A and B as points and boxes."""

    def box(name: str, samples: Sequence[float], color: str) -> dict[str, Any]:
        scale = 1e6 if item.dimension == "duration" else 1
        return {
            "type": "box",
            "orientation": "h",
            "name": name,
            "x": [value / scale for value in samples[:5000]],
            "boxpoints": "all",
            "jitter": 0.5,
            "pointpos": 0,
            "marker": {"size": 4, "color": color, "opacity": 0.6},
            "line": {"color": color, "width": 1.2},
            "fillcolor": "rgba(0,0,0,0)",
        }

    unit = {"duration": "ms", "size": "bytes", "bit rate": "bit/s", "byte rate": "bytes/s"}.get(
        item.dimension or "", ""
    )
    return figure(
        [box("B", item.b, "--s2"), box("A", item.a, ACCENT)], 150, showlegend=False, xaxis=axis(unit), yaxis=axis()
    )
