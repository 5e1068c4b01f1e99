"""The upper part of the timeline: what guests, engines, announcements and switches did, each in a lane of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.report.plots.parts import ACCENT, BAD, PHASES, label, ms
from bench.report.text import after, count, duration
from bench.result import MigrationResult, RunResult
from bench.timeline import Event
from bench.units import format_bit_rate, format_bytes

MAX_MARKS: Final = 2_000
MAX_ROUNDS: Final = 400
MAX_BARS: Final = 5_000
MAX_SWITCHES: Final = 40


@dataclass(frozen=True)
class Bar:
    """A stretch of time in a lane. *hover* is what is said about it; all texts are safe already."""

    lane: str
    begin_ns: int
    end_ns: int
    color: str
    text: str
    hover: str


def lanes(
    result: RunResult,
    events: Sequence[Event],
    zero: int,
    span: tuple[int, int],
    more: tuple[list[Bar], list[dict[str, Any]]] = ([], []),
) -> list[dict[str, Any]]:
    """The traces of all lanes, from the top down; those of *more* (bars and marks) below.

    :param zero: the time axis' zero in CLOCK_MONOTONIC ns; *span*: of the whole run.
    """
    migrations = result.migrations or [result]
    guests = list(dict.fromkeys(one.guest or result.guest for one in migrations))
    bars: list[Bar] = []
    marks: list[dict[str, Any]] = []
    for guest in guests:
        own = [one for one in migrations if (one.guest or result.guest) == guest]
        which = f"{label(guest)} " if len(guests) > 1 else ""
        bars += _guest(label(guest), own, span)
        bars += [bar for one in own for bar in _phases(f"{which}phases", one, zero)]
        bars += [bar for one in own for bar in _rounds(f"{which}rounds", one)][:MAX_ROUNDS]
        about = [event for event in events if event.guest in (guest, "")]
        marks += _announcements(f"{which}announce", about, zero)
        for one in own:
            own_bars, own_marks = _switches(which, one, zero)
            bars += own_bars
            marks += own_marks
            marks += _neighbours(which, one, zero)
    bars += more[0]
    marks += more[1]
    order = list(dict.fromkeys(bar.lane for bar in bars))
    return [_drawn(bars[:MAX_BARS], order, zero), *marks]


def lane_names(traces: Sequence[dict[str, Any]]) -> list[str]:
    """The lanes that *traces* draw into, from the top down: each announcement above the switches that it is for."""
    names = list(dict.fromkeys(str(name) for trace in traces for name in trace["y"]))
    for announce in [name for name in names if name.endswith("announce")]:
        above = f"{announce.removesuffix('announce')}rounds"
        names.remove(announce)
        names.insert(names.index(above) + 1 if above in names else len(names), announce)
    return names


def _drawn(bars: Sequence[Bar], order: Sequence[str], zero: int) -> dict[str, Any]:
    """One trace of all bars: one for each would be slow."""
    bars = sorted(bars, key=lambda bar: order.index(bar.lane))
    return {
        "type": "bar",
        "orientation": "h",
        "y": [bar.lane for bar in bars],
        "base": [ms(bar.begin_ns - zero) for bar in bars],
        "x": [ms(bar.end_ns - bar.begin_ns) for bar in bars],
        "marker": {"color": [bar.color for bar in bars], "line": {"width": 0}},
        "text": [bar.text for bar in bars],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textfont": {"size": 10, "color": "--on"},
        "textangle": 0,
        "hovertext": [bar.hover for bar in bars],
        "hovertemplate": "%{hovertext}<extra></extra>",
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


def _guest(lane: str, migrations: Sequence[MigrationResult], span: tuple[int, int]) -> list[Bar]:
    """Where the guest runs, and when it is paused."""
    bars: list[Bar] = []
    (since, end), host = span, migrations[0].source

    def runs(until: int) -> Bar:
        return Bar(lane, since, until, "--h1", f"runs at {label(host)}", f"<b>{lane}</b> runs at {label(host)}")

    for one in migrations:
        if one.pause_ns is None:
            continue
        bars.append(runs(one.pause_ns))
        resumed = one.resume_ns if one.resume_ns is not None else one.end_ns
        hover = f"<b>{lane} is paused</b><br>downtime {duration(one.downtime_ns)}"
        bars.append(Bar(lane, one.pause_ns, resumed, BAD, "paused", hover))
        since, host = resumed, one.destination if one.outcome == "completed" else one.source
    return [*bars, runs(end)]


def _phases(lane: str, one: MigrationResult, zero: int) -> list[Bar]:
    return [
        Bar(
            lane,
            phase.start_ns,
            phase.end_ns,
            PHASES.get(phase.name, "--p1"),
            label(phase.name),
            f"<b>{label(phase.name)}</b><br>{duration(phase.end_ns - phase.start_ns)}"
            f"<br>from {after(phase.start_ns, zero)} to {after(phase.end_ns, zero)}",
        )
        for phase in one.phases
    ]


def _rounds(lane: str, one: MigrationResult) -> list[Bar]:
    bars = []
    for number, item in enumerate(one.rounds, 1):
        took = max(1, item.end_ns - item.start_ns)
        color = "--p3" if item.paused else ("--p2", "--p2b")[number % 2]
        hover = (
            f"<b>{'final copy' if item.paused else f'round {number}'}</b><br>{count(item.pages, 'page')}, "
            f"{item.zero_pages:,} zero<br>{format_bytes(item.bytes_sent)} in {duration(took)}, "
            f"{format_bit_rate(item.bytes_sent * 8 * 10**9 // took)}<br>{item.dirty_pages_after:,} dirty after"
        )
        bars.append(Bar(lane, item.start_ns, item.end_ns, color, str(number), hover))
    return bars


def _announcements(lane: str, events: Sequence[Event], zero: int) -> list[dict[str, Any]]:
    sent = [event for event in events if event.name == "announce_sent"][:MAX_MARKS]
    if not sent:
        return []
    hovers = [
        f"<b>announcement</b> {label(str(event.data.get('kind', '')))}<br>{after(event.t_ns, zero)}" for event in sent
    ]
    return [_marks(lane, [ms(event.t_ns - zero) for event in sent], "triangle-up", "--n2", hovers)]


_MOMENTS: Final = (
    ("controller_ns", "controller saw the announcement", "circle", "--n1"),
    ("confirmed_ns", "flows confirmed by a barrier", "square", "--n2"),
    ("state_ns", "the switch's own tables changed", "triangle-down", "--n3"),
    ("first_frame_ns", "first frame at the new port", "diamond", ACCENT),
    ("stable_ns", "stable", "star", "--good"),
)


def _neighbours(which: str, one: MigrationResult, zero: int) -> list[dict[str, Any]]:
    """When hosts' neighbour caches changed what they hold of the guest."""
    changes = one.relearn.neighbours[:MAX_MARKS]
    if not changes:
        return []
    hovers = [
        f"<b>{label(item.host)}'s neighbour cache</b><br>{label(item.ip)} is at {label(item.mac)}, "
        f"{label(item.state)}<br>{after(item.t_ns, zero)}"
        for item in changes
    ]
    return [_marks(f"{which}neighbours", [ms(item.t_ns - zero) for item in changes], "hourglass", "--s6", hovers)]


def _switches(which: str, one: MigrationResult, zero: int) -> tuple[list[Bar], list[dict[str, Any]]]:
    bars, marks = [], []
    announced = one.relearn.announce_ns
    for switch in one.relearn.switches[:MAX_SWITCHES]:
        lane = f"{which}{label(switch.name)}"
        if announced is not None and switch.stable_ns is not None and switch.stable_ns > announced:
            hover = (
                f"<b>{lane} relearns</b><br>{duration(switch.stable_ns - announced)} after the announcement<br>"
                f"{count(switch.frames_to_old_port, 'frame')} to the old port, {switch.frames_flooded:,} flooded"
            )
            bars.append(Bar(lane, announced, switch.stable_ns, "--n3", "", hover))
        for member, what, symbol, color in _MOMENTS:
            moment = getattr(switch, member)
            if moment is not None:
                hover = f"<b>{lane}: {what}</b><br>{after(moment, zero)}"
                marks.append(_marks(lane, [ms(moment - zero)], symbol, color, [hover]))
    return bars, marks
