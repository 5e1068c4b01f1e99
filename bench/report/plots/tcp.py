"""What the kernel said of the flows' connections: states and retransmissions as lanes, timers and windows as lines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bench.records import StructuredArray
from bench.report.plots.lanes import Bar
from bench.report.plots.parts import BAD, SERIES, Figure, array, axis, figure, label, milliseconds, ms
from bench.report.text import after, count, duration
from bench.result import MigrationResult

MAX_BARS: Final = 400
MAX_MARKS: Final = 400
MAX_POINTS: Final = 4_000
_STATES: Final = ("open", "disorder", "CWR", "recovery", "loss")
_COLORS: Final = ("--h1", "--n1", "--n1", "--n2", BAD)

Samples = Mapping[str, StructuredArray]


def tcp_lanes(samples: Samples, zero: int) -> tuple[list[Bar], list[dict[str, Any]]]:
    """A lane for each connection: bars where it was not "open" or its timer was doubled, marks where it sent again."""
    bars: list[Bar] = []
    marks: list[dict[str, Any]] = []
    for name, some in samples.items():
        if len(some) < 2:
            continue
        lane = f"{label(name, 14)} TCP"
        bars += _bars(lane, some, zero)
        again = np.flatnonzero(np.diff(some["retransmits"].astype(np.int64)) > 0) + 1
        hovers = [
            f"<b>{lane}</b>: {count(more, 'segment')} sent again<br>{after(int(some['t_ns'][at]), zero)}"
            for at in again[:MAX_MARKS]
            for more in [int(some["retransmits"][at]) - int(some["retransmits"][at - 1])]
        ]
        if len(again):
            marks.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [ms(int(some["t_ns"][at]) - zero) for at in again[:MAX_MARKS]],
                    "y": [lane] * len(hovers),
                    "marker": {"symbol": "x-thin-open", "size": 8, "color": "--ink"},
                    "hovertext": hovers,
                    "hovertemplate": "%{hovertext}<extra></extra>",
                }
            )
    return bars, marks


def resent_marks(migrations: Sequence[MigrationResult], zero: int) -> list[dict[str, Any]]:
    """Captured segments that were sent again, in the lane of their connection: by the client, and by the guest."""
    marks: list[dict[str, Any]] = []
    for flow in (flow for one in migrations for flow in one.flows):
        if flow.resent is None:
            continue
        other = "server" if flow.direction == "from-guest" else "client"
        ends = ((other, flow.resent.by_client_ns, "right"), ("guest", flow.resent.by_guest_ns, "left"))
        for end, times, side in ends:
            if not times:
                continue
            lane = f"{label(flow.name, 14)} TCP"
            marks.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [ms(at_ns - zero) for at_ns in times[:MAX_MARKS]],
                    "y": [lane] * len(times[:MAX_MARKS]),
                    "marker": {"symbol": f"triangle-{side}", "size": 7, "color": BAD},
                    "hovertext": [
                        f"<b>{lane}</b>: sent again by the {end}<br>{after(at_ns, zero)}" for at_ns in times[:MAX_MARKS]
                    ],
                    "hovertemplate": "%{hovertext}<extra></extra>",
                }
            )
    return marks


def _bars(lane: str, some: StructuredArray, zero: int) -> list[Bar]:
    """Equal neighbours as one bar."""
    bars: list[Bar] = []
    key = some["ca_state"].astype(np.int64) * 256 + some["backoff"]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(key)) + 1, [len(some) - 1]])
    for first, last in itertools.pairwise(edges):
        state, backoff = min(int(some["ca_state"][first]), 4), int(some["backoff"][first])
        begin, end = int(some["t_ns"][first]), int(some["t_ns"][last])
        if (state == 0 and backoff == 0) or end <= begin or len(bars) >= MAX_BARS:
            continue
        doubled = f"<br>timer doubled {count(backoff, 'time')}" if backoff else ""
        hover = f"<b>{lane}</b>: {_STATES[state]}{doubled}<br>{duration(end - begin)}, from {after(begin, zero)}"
        shown = f"timer x {2**backoff}" if backoff else _STATES[state]
        bars.append(Bar(lane, begin, end, BAD if backoff else _COLORS[state], shown, hover))
    return bars


def timers_and_windows(samples: Samples, zero: int, window_ms: Sequence[float]) -> Figure | None:
    """The retransmission timer above, the congestion window below. None: nobody looked at a connection."""
    data: list[dict[str, Any]] = []
    for number, (name, some) in enumerate(samples.items()):
        if not len(some):
            continue
        step = max(1, len(some) // MAX_POINTS)
        x = array(milliseconds(some["t_ns"][::step], zero))
        for member, scale, y_axis, unit in (("rto_us", 1000, "y", "ms"), ("cwnd", 1, "y2", "segments")):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label(name),
                    "legendgroup": name,
                    "showlegend": y_axis == "y",
                    "x": x,
                    "y": array(some[member][::step] / scale),
                    "yaxis": y_axis,
                    "line": {"shape": "hv", "width": 1.5, "color": SERIES[number % len(SERIES)]},
                    "hovertemplate": f"{label(name)}<br>%{{x:.0f}} ms<br>%{{y:.1f}} {unit}<extra></extra>",
                }
            )
    if not data:
        return None
    return figure(
        data,
        400,
        xaxis=axis("ms from the guest's resume", anchor="y2", range=list(window_ms)),
        yaxis=axis("timer (ms)", domain=[0.56, 1], rangemode="tozero"),
        yaxis2=axis("window (segments)", domain=[0, 0.44], rangemode="tozero"),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )
