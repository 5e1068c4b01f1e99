"""Figures of many runs: how a figure is distributed, by run or by the points of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from bench.clock import NS_PER_MS
from bench.figures import values
from bench.recording import REPEAT, Recording
from bench.report.plots.parts import ACCENT, MUTED, SERIES, Figure, axis, figure, label

SHOWN: Final = (("downtime", "downtime"), ("outage.max", "longest outage"), ("total", "total time"))
MAX_LANES: Final = 100


def distributions(recordings: Sequence[Recording]) -> Figure:
    """Each migration as a point, its run (or the sweep's point) as a lane; the median as a line. One panel for each
    figure."""
    lanes: dict[str, list[Recording]] = {}
    for recording in recordings:
        match = REPEAT.fullmatch(recording.label)
        lanes.setdefault(match["point"] if match else recording.label, []).append(recording)
    names = list(lanes)[:MAX_LANES]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    for at, (name, title) in enumerate(SHOWN):
        suffix = "" if at == 0 else str(at + 1)
        for number, lane in enumerate(names):
            numbers = [
                number / NS_PER_MS
                for recording in lanes[lane]
                for one in recording.result.migrations or [recording.result]
                for number in values(name, one)
            ]
            if not numbers:
                continue
            shown = label(lane, 40)
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": numbers[:2000],
                    "y": [shown] * min(2000, len(numbers)),
                    "xaxis": f"x{suffix}",
                    "marker": {"size": 8, "opacity": 0.65, "color": SERIES[number % len(SERIES)]},
                    "hovertemplate": f"{shown}<br>{title}: %{{x:.2f}} ms<extra></extra>",
                }
            )
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [median(numbers)],
                    "y": [shown],
                    "xaxis": f"x{suffix}",
                    "marker": {"symbol": "line-ns-open", "size": 18, "color": ACCENT, "line": {"width": 2}},
                    "hovertemplate": f"{shown}<br>median: %{{x:.2f}} ms<extra></extra>",
                }
            )
        width = 1 / len(SHOWN)
        layout[f"xaxis{suffix}"] = axis(
            f"{title} (ms)", domain=[at * width, (at + 1) * width - 0.04], rangemode="tozero", nticks=5
        )
    layout["yaxis"] = axis(type="category", autorange="reversed", tickfont={"size": 11, "color": MUTED})
    return figure(data, 90 + 30 * len(names), showlegend=False, hovermode="closest", **layout)
