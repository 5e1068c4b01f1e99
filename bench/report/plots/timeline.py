"""The timeline: phases, rounds, the guest, announcements, relearning of switches, and each flow, on one time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.records import PROGRESS_KINDS, REQUEST_KINDS, StructuredArray
from bench.report.decimate import Detail, latencies, throughput
from bench.report.plots.parts import (
    ACCENT,
    BAD,
    MUTED,
    PHASES,
    SERIES,
    Figure,
    array,
    axis,
    figure,
    label,
    milliseconds,
    ms,
)
from bench.report.text import after, count, duration
from bench.result import FlowResult, MigrationResult, RunResult
from bench.timeline import Event
from bench.units import format_bit_rate, format_bytes

LANE_PX: Final = 24
FLOW_PX: Final = 96
GAP_PX: Final = 26
MAX_FLOWS: Final = 16
MAX_MARKS: Final = 2_000
MAX_ROUNDS: Final = 400


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
            margin = max(5_000_000, (last - one.pause_ns) // 8)
            found.append(Window(f"switchover{which}", ms(one.pause_ns - margin - zero), ms(last + margin - zero)))
        margin = (one.end_ns - one.start_ns) // 20
        found.append(Window(f"migration{which}", ms(one.start_ns - margin - zero), ms(one.end_ns + margin - zero)))
    return [*found, Window("whole run", ms(begin_ns - zero), ms(end_ns - zero))]


def timeline(
    result: RunResult, events: Sequence[Event], records: Mapping[str, StructuredArray]
) -> tuple[Figure, list[Window]]:
    """The figure, zoomed to the first switchover, and what its buttons show.

    :param records: of each flow, by its name; flows without are left out.
    """
    zero = origin_ns(result)
    migrations = result.migrations or [result]
    detail = Detail.around(migrations)
    begin_ns, end_ns = _span(result, records)
    flows = [flow for flow in result.flows if flow.name in records and len(records[flow.name])][:MAX_FLOWS]
    lanes = _lanes(result, events, zero, begin_ns, end_ns)
    names = list(dict.fromkeys(str(name) for trace in lanes for name in trace["y"]))
    heights = [LANE_PX * max(1, len(names)) + 10, *[FLOW_PX] * len(flows)]
    total = sum(heights) + GAP_PX * len(heights) + 30
    domains = _domains(heights, total)
    layout: dict[str, Any] = {
        "yaxis": axis(
            domain=domains[0], categoryorder="array", categoryarray=names[::-1], fixedrange=True, type="category"
        ),
        "xaxis": axis("ms from the guest's resume at its destination", anchor=f"y{len(heights)}" if flows else "y"),
        "hovermode": "closest",
        "showlegend": False,
        "barmode": "overlay",
        "uniformtext": {"mode": "hide", "minsize": 9},
        "bargap": 0.25,
        "annotations": [],
        "shapes": _shapes(migrations, zero, domains[-1][0], domains[0][1]),
        "margin": {"l": 8, "r": 8, "t": 6, "b": 8},
    }
    data = list(lanes)
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
    return figure(data, total, **layout), found


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


# lanes: what the engine, the guest and the switches did


def _bar(lane: str, begin_ns: int, end_ns: int, zero: int, color: str, text: str, hover: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [lane],
        "base": [ms(begin_ns - zero)],
        "x": [ms(end_ns - begin_ns)],
        "marker": {"color": color, "line": {"width": 0}},
        "text": [text],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textfont": {"size": 10, "color": "--on"},
        "textangle": 0,
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _marks(lane: str, x_ms: Sequence[float], symbol: str, color: str, hovers: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x_ms),
        "y": [lane] * len(x_ms),
        "marker": {"symbol": symbol, "color": color, "size": 9, "line": {"width": 1, "color": "--card"}},
        "hovertext": list(hovers),
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _lanes(result: RunResult, events: Sequence[Event], zero: int, begin_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Of each guest its own; they are named after it when there are several."""
    migrations = result.migrations or [result]
    guests = list(dict.fromkeys(one.guest or result.guest for one in migrations))
    traces: list[dict[str, Any]] = []
    for guest in guests:
        own = [one for one in migrations if (one.guest or result.guest) == guest]
        about = [event for event in events if event.guest in (guest, "")]
        prefix = f"{label(guest)} " if len(guests) > 1 else ""
        traces += _guest(guest, own, zero, begin_ns, end_ns)
        traces += _work(own, about, zero, prefix)
    return traces


def _work(
    migrations: Sequence[MigrationResult], events: Sequence[Event], zero: int, prefix: str
) -> list[dict[str, Any]]:
    """What engines and switches did for one guest."""
    traces: list[dict[str, Any]] = []
    for one in migrations:
        traces += [
            _bar(
                f"{prefix}phases",
                phase.start_ns,
                phase.end_ns,
                zero,
                PHASES.get(phase.name, "--p1"),
                label(phase.name),
                f"<b>{label(phase.name)}</b><br>{duration(phase.end_ns - phase.start_ns)}"
                f"<br>from {after(phase.start_ns, zero)} to {after(phase.end_ns, zero)}",
            )
            for phase in one.phases
        ]
    shown = 0
    for one in migrations:
        for number, item in enumerate(one.rounds, 1):
            if shown >= MAX_ROUNDS:
                break
            shown += 1
            took = max(1, item.end_ns - item.start_ns)
            color = "--p3" if item.paused else ("--p2", "--p2b")[number % 2]
            hover = (
                f"<b>{'final copy' if item.paused else f'round {number}'}</b><br>{count(item.pages, 'page')}, "
                f"{item.zero_pages:,} zero<br>{format_bytes(item.bytes_sent)} in {duration(took)}, "
                f"{format_bit_rate(item.bytes_sent * 8 * 10**9 // took)}<br>{item.dirty_pages_after:,} dirty after"
            )
            traces.append(_bar(f"{prefix}rounds", item.start_ns, item.end_ns, zero, color, str(number), hover))
    announced = [event for event in events if event.name == "announce_sent"][:MAX_MARKS]
    if announced:
        hovers = [
            f"<b>announcement</b> {label(str(event.data.get('kind', '')))}<br>{after(event.t_ns, zero)}"
            for event in announced
        ]
        traces.append(
            _marks(f"{prefix}announce", [ms(event.t_ns - zero) for event in announced], "triangle-up", "--n2", hovers)
        )
    for one in migrations:
        traces += _switches(one, zero, prefix)
    return traces


def _guest(
    guest: str, migrations: Sequence[MigrationResult], zero: int, begin_ns: int, end_ns: int
) -> list[dict[str, Any]]:
    """Where a guest runs, and when it is paused."""
    lane, traces, since, host = label(guest), [], begin_ns, migrations[0].source
    for one in migrations:
        if one.pause_ns is None:
            continue
        traces.append(_bar(lane, since, one.pause_ns, zero, "--h1", f"runs at {label(host)}", f"runs at {label(host)}"))
        resumed = one.resume_ns if one.resume_ns is not None else one.end_ns
        took = f"<b>paused</b><br>downtime {duration(one.downtime_ns)}"
        traces.append(_bar(lane, one.pause_ns, resumed, zero, BAD, "paused", took))
        since, host = resumed, one.destination if one.outcome == "completed" else one.source
    traces.append(_bar(lane, since, end_ns, zero, "--h1", f"runs at {label(host)}", f"runs at {label(host)}"))
    return traces


_MOMENTS: Final = (
    ("controller_ns", "controller saw the announcement", "circle", "--n1"),
    ("confirmed_ns", "flows confirmed by a barrier", "square", "--n2"),
    ("first_frame_ns", "first frame at the new port", "diamond", ACCENT),
    ("stable_ns", "stable", "star", "--good"),
)


def _switches(one: MigrationResult, zero: int, prefix: str) -> list[dict[str, Any]]:
    traces = []
    announced = one.relearn.announce_ns
    for switch in one.relearn.switches:
        lane = prefix + label(switch.name)
        if announced is not None and switch.stable_ns is not None and switch.stable_ns > announced:
            hover = (
                f"<b>{lane} relearns</b><br>{duration(switch.stable_ns - announced)} after the announcement<br>"
                f"{count(switch.frames_to_old_port, 'frame')} to the old port, {switch.frames_flooded:,} flooded"
            )
            traces.append(_bar(lane, announced, switch.stable_ns, zero, "--n3", "", hover))
        for member, what, symbol, color in _MOMENTS:
            moment = getattr(switch, member)
            if moment is not None:
                hover = f"<b>{lane}: {what}</b><br>{after(moment, zero)}"
                traces.append(_marks(lane, [ms(moment - zero)], symbol, color, [hover]))
    return traces


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
