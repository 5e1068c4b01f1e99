"""The timeline: phases, rounds, the guest, announcements, relearning of switches, and each flow, on one time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.records import PROGRESS_KINDS, REQUEST_KINDS, StructuredArray
from bench.report.decimate import Detail, latencies, throughput
from bench.report.plots.lanes import lane_names, lanes
from bench.report.plots.parts import (
    BAD,
    MUTED,
    SERIES,
    Figure,
    array,
    axis,
    figure,
    label,
    milliseconds,
    ms,
)
from bench.report.plots.tcp import resent_marks, tcp_lanes
from bench.report.text import duration
from bench.result import FlowResult, MigrationResult, RunResult
from bench.timeline import Event

LANE_PX: Final = 24
FLOW_PX: Final = 96
GAP_PX: Final = 26
MAX_FLOWS: Final = 16


@dataclass(frozen=True)
class Window:
    """What a button of the timeline shows, in ms from the origin."""

    name: str
    begin_ms: float
    end_ms: float


def origin_ns(result: RunResult) -> int:
    """The timeline's zero: the first resume, or what there is."""
    migrations = result.migrations or [result]
    resumed = next((one.resume_ns for one in migrations if one.resume_ns is not None), None)
    return resumed if resumed is not None else migrations[0].start_ns


def windows(result: RunResult, begin_ns: int, end_ns: int) -> list[Window]:
    """The whole run, and each migration's switchover."""
    zero = origin_ns(result)
    found = []
    migrations = result.migrations or [result]
    for number, one in enumerate(migrations, 1):
        which = f" {number}" if len(migrations) > 1 else ""
        if one.pause_ns is not None:
            ends = [flow.outage_end_ns for flow in one.flows if flow.outage_end_ns is not None]
            last = max([one.resume_ns or one.pause_ns, *ends])
            first = min(
                [one.pause_ns, *(flow.outage_start_ns for flow in one.flows if flow.outage_start_ns is not None)]
            )
            margin = max(5_000_000, (last - first) // 8)
            found.append(Window(f"switchover{which}", ms(first - margin - zero), ms(last + margin - zero)))
        margin = (one.end_ns - one.start_ns) // 20
        found.append(Window(f"migration{which}", ms(one.start_ns - margin - zero), ms(one.end_ns + margin - zero)))
    return [*found, Window("whole run", ms(begin_ns - zero), ms(end_ns - zero))]


def timeline(
    result: RunResult,
    events: Sequence[Event],
    records: Mapping[str, StructuredArray],
    samples: Mapping[str, StructuredArray] | None = None,
) -> tuple[Figure, list[Window]]:
    """The figure, zoomed to the first switchover, and what its buttons show.

    :param records: of each flow, by its name; flows without are left out. *samples*: of their connections.
    """
    zero = origin_ns(result)
    migrations = result.migrations or [result]
    detail = Detail.around(migrations)
    begin_ns, end_ns = _span(result, records)
    flows = [flow for flow in result.flows if flow.name in records and len(records[flow.name])][:MAX_FLOWS]
    bars, marks = tcp_lanes(samples or {}, zero)
    upper = lanes(result, events, zero, (begin_ns, end_ns), (bars, [*marks, *resent_marks(migrations, zero)]))
    names = lane_names(upper)
    heights = [LANE_PX * max(1, len(names)) + 10, *[FLOW_PX] * len(flows)]
    total = sum(heights) + GAP_PX * (len(heights) - 1) + 10
    domains = _domains(heights, total)
    layout: dict[str, Any] = {
        "yaxis": axis(
            domain=domains[0],
            categoryorder="array",
            categoryarray=names[::-1],
            fixedrange=True,
            type="category",
            automargin=False,
        ),
        "xaxis": axis(
            "ms from the guest's resume at its destination",
            anchor=f"y{len(heights)}" if flows else "y",
            automargin=False,
        ),
        "hovermode": "closest",
        "showlegend": False,
        "barmode": "overlay",
        "uniformtext": {"mode": "hide", "minsize": 9},
        "bargap": 0.25,
        "annotations": [],
        "shapes": _shapes(migrations, zero, domains[-1][0], domains[0][1]),
        # Fixed: finding out how much room labels need would draw everything several times.
        "margin": {"l": min(150, max(78, 12 + 7 * max(map(len, names), default=0))), "r": 12, "t": 6, "b": 44},
    }
    data = list(upper)
    for number, flow in enumerate(flows, 2):
        traces, title, unit, log = _flow(flow, records[flow.name], detail, zero, (begin_ns, end_ns))
        color = SERIES[(number - 2) % len(SERIES)]
        for trace in traces:
            trace |= {"yaxis": f"y{number}", "xaxis": "x"}
            for part in ("line", "marker"):
                if part in trace:
                    trace[part].setdefault("color", color)
            data.append(trace)
        layout[f"yaxis{number}"] = axis(
            domain=domains[number - 1],
            automargin=False,
            type="log" if log else "linear",
            fixedrange=True,
            nticks=4,
            dtick=1 if log else None,
            rangemode="tozero",
            ticksuffix=f" {unit}",
            exponentformat="none",
        )
        layout["annotations"].append(_title(title, domains[number - 1][1]))
        layout["shapes"] += _outages(migrations, flow.name, zero, f"y{number}", color)
    found = windows(result, begin_ns, end_ns)
    layout["xaxis"]["range"] = [found[0].begin_ms, found[0].end_ms]
    return figure(data, total + 50, **layout), found


def _span(result: RunResult, records: Mapping[str, StructuredArray]) -> tuple[int, int]:
    migrations = result.migrations or [result]
    begins = [migrations[0].start_ns, *(int(some["sent_ns"].min()) for some in records.values() if len(some))]
    ends = [migrations[-1].end_ns]
    ends += [int(max(some["sent_ns"].max(), some["received_ns"].max())) for some in records.values() if len(some)]
    return min(begins), max(ends)


def _domains(heights: Sequence[int], total: int) -> list[list[float]]:
    """From the top down."""
    found, top = [], float(total - 10)
    for height in heights:
        found.append([max(0.0, (top - height) / total), min(1.0, top / total)])
        top -= height + GAP_PX
    return found


def _title(text: str, top: float) -> dict[str, Any]:
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12},
    }


# shapes


def _shapes(migrations: Sequence[MigrationResult], zero: int, bottom: float, top: float) -> list[dict[str, Any]]:
    """The guest's pauses, through all rows."""
    return [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": ms(one.pause_ns - zero),
            "x1": ms(one.resume_ns - zero),
            "y0": bottom,
            "y1": top,
            "fillcolor": BAD,
            "opacity": 0.08,
            "line": {"width": 0},
            "layer": "below",
        }
        for one in migrations
        if one.pause_ns is not None and one.resume_ns is not None
    ]


def _outages(
    migrations: Sequence[MigrationResult], name: str, zero: int, y_axis: str, color: str
) -> list[dict[str, Any]]:
    """A flow's outages, in its row."""
    flows = [flow for one in migrations for flow in one.flows if flow.name == name]
    return [
        {
            "type": "rect",
            "xref": "x",
            "yref": f"{y_axis} domain",
            "x0": ms(flow.outage_start_ns - zero),
            "x1": ms(flow.outage_end_ns - zero),
            "y0": 0,
            "y1": 1,
            "fillcolor": color,
            "opacity": 0.16,
            "line": {"width": 0},
            "layer": "below",
        }
        for flow in flows
        if flow.outage_start_ns is not None and flow.outage_end_ns is not None
    ]


# flows


def _flow(
    flow: FlowResult, records: StructuredArray, detail: Detail, zero: int, span: tuple[int, int]
) -> tuple[list[dict[str, Any]], str, str, bool]:
    """Its traces, the title of its row, the unit of its axis, and whether that is logarithmic."""
    name = f"<b>{label(flow.name)}</b>"
    outage = f"outage {duration(flow.outage_ns)}, " if flow.outage_ns is not None else ""
    if flow.kind in REQUEST_KINDS and flow.kind not in PROGRESS_KINDS:
        found = latencies(records, detail)
        traces: list[dict[str, Any]] = [
            {
                "type": "scatter",
                "mode": "markers",
                "x": array(milliseconds(found.sent_ns, zero)),
                "y": array(np.maximum(found.took_ns, 1000) / 1e6),
                "marker": {"size": 4},
                "hovertemplate": "sent at %{x:.3f} ms<br>answered after %{y:.3f} ms<extra></extra>",
            }
        ]
        if len(found.lost_ns):
            level = float(np.max(found.took_ns, initial=1e6)) / 1e6
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": array(milliseconds(found.lost_ns, zero)),
                    "y": array(np.full(len(found.lost_ns), level)),
                    "marker": {"symbol": "x-thin-open", "size": 6, "color": BAD},
                    "hovertemplate": "sent at %{x:.3f} ms<br>never answered<extra></extra>",
                }
            )
        lost = f", {found.counts[1]:,} lost" if found.counts[1] else ""
        return traces, f"{name}  <span style='color:{MUTED}'>{outage}time to the answer{lost}</span>", "ms", True
    shown = throughput(records, detail, *span)
    x = milliseconds(shown.edges_ns, zero)
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": array(x[:-1]),
        "y": array(shown.rates_bps / 1e6),
        "line": {"width": 1.3, "shape": "hv"},
        "fill": "tozeroy",
        "hovertemplate": "%{x:.1f} ms<br>%{y:.2f} Mbit/s<extra></extra>",
    }
    return [trace], f"{name}  <span style='color:{MUTED}'>{outage}throughput</span>", "Mbit/s", False
