"""The tables of a run's page: for those who read rather than look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from bench.analysis.brownout import Brownout
from bench.analysis.expectations import describe
from bench.report.html.markup import Markup, join, table, tag, text
from bench.report.interference import HEADS, rows_of
from bench.report.levers import HEAD as LEVER_HEAD
from bench.report.levers import LeverRow
from bench.report.plots.parts import GROUPS, STAGES
from bench.report.postcopy import PostCopy
from bench.report.silence import other_silences
from bench.report.text import (
    NOT_SEEN,
    PAGE_BYTES,
    after,
    bit_rate,
    byte_rate,
    copies,
    duration,
    ended,
    sent_again,
    share,
)
from bench.result import (
    ExpectationResult,
    FlowResult,
    InterferenceResult,
    LinkResult,
    MigrationResult,
    PhaseResult,
    PredictionResult,
    RoundResult,
    SwitchRelearn,
)
from bench.units import format_bit_rate, format_bytes

MAX_ROWS: Final = 500


def badge(word: str, kind: str) -> Markup:
    """A word on a coloured ground; *kind*: good, bad or warn."""
    return tag("span", word, class_=f"badge {kind}")


def outcome_badge(outcome: str) -> Markup:
    """How a migration ended."""
    return badge(outcome, {"completed": "good", "cancelled": "warn"}.get(outcome, "bad"))


def phases(items: Sequence[PhaseResult]) -> Markup:
    """Of one migration."""
    origin = min((phase.start_ns for phase in items), default=0)
    return table(
        ["phase", "begins", "duration"],
        [[phase.name, after(phase.start_ns, origin), duration(phase.end_ns - phase.start_ns)] for phase in items],
    )


def rounds(items: Sequence[RoundResult]) -> Markup:
    """Of one migration."""
    rows = []
    for number, item in enumerate(items[:MAX_ROWS], 1):
        took = item.end_ns - item.start_ns
        rows.append(
            [
                f"{number}{' (paused)' if item.paused else ''}",
                f"{item.pages:,}",
                f"{item.zero_pages:,}",
                format_bytes(item.bytes_sent),
                duration(took),
                bit_rate(item.bytes_sent, took),
                f"{item.dirty_pages_after:,}",
                "" if item.paused else byte_rate(item.dirty_pages_after * PAGE_BYTES, took),
            ]
        )
    head = ["round", "pages", "zero", "sent", "time", "throughput", "dirty after", "dirty rate"]
    return join([table(head, rows), _more(len(items))])


def post_copy(found: PostCopy) -> Markup:
    """Of one migration: what crossed how, and how long the guest waited for pages."""
    rows = [[duration(bound_ns), f"{faults:,}"] for bound_ns, faults in found.buckets]
    return join(
        [
            tag("p", ", ".join(found.counts)),
            tag("p", ", ".join(found.waits) if found.waits else "the guest never waited for a page"),
            table(["waited up to", "faults"], rows, left=2) if rows else None,
        ]
    )


def levers(items: Sequence[LeverRow]) -> Markup:
    """Of one migration. Words are flush left, like the names."""
    names, *numbers, words = LEVER_HEAD
    rows = [(name, how, *rest) for name, *rest, how in (item.cells() for item in items)]
    return table([names, words, *numbers], rows, left=2)


def _more(count: int) -> Markup | None:
    return tag("p", f"and {count - MAX_ROWS:,} more, in result.json", class_="remark") if count > MAX_ROWS else None


_RELEARNING: Final[Mapping[str, Callable[[SwitchRelearn, int | None], str]]] = {
    "VLAN": lambda item, _zero: str(item.vlan or ""),
    "hops away": lambda item, _zero: "" if item.distance is None else str(item.distance),
    "controller saw": lambda item, zero: after(item.controller_ns, zero),
    "flows confirmed": lambda item, zero: after(item.confirmed_ns, zero),
    "tables changed": lambda item, zero: after(item.state_ns, zero),
    "seen by": lambda item, _zero: item.state_by,
    "told by": lambda item, _zero: item.by,
    "first frame at new port": lambda item, zero: after(item.first_frame_ns, zero),
    "stable": lambda item, zero: after(item.stable_ns, zero),
    "to old port": lambda item, _zero: f"{item.frames_to_old_port:,}",
    "flooded": lambda item, _zero: f"{item.frames_flooded:,}",
    "dropped": lambda item, _zero: f"{item.frames_dropped:,}",
    "flapped back": lambda item, _zero: f"{item.flapped:,}",
    "witnesses differ": lambda item, _zero: item.differ,
}


def relearning(migration: MigrationResult) -> Markup:
    """Of every switch, relative to the resume; columns that say nothing of any switch are left out."""
    waves = [migration.relearn.switches, *(card.switches for card in migration.relearn.cards)]
    switches = [
        switch
        for wave in waves
        for switch in sorted(wave, key=lambda item: (item.distance is None, item.distance or 0))
    ]
    columns = {name: [show(item, migration.resume_ns) for item in switches] for name, show in _RELEARNING.items()}
    columns = {name: cells for name, cells in columns.items() if any(cell not in ("", NOT_SEEN) for cell in cells)}
    rows = [[item.name, *(cells[at] for cells in columns.values())] for at, item in enumerate(switches)]
    marks = ["bad" if item.differ else "" for item in switches]
    return join([table(["switch", *columns], rows, marks=marks), _neighbours(migration)])


def _neighbours(migration: MigrationResult) -> Markup | None:
    """What hosts' neighbour caches held of the guest, and connections in conntrack."""
    changes = migration.relearn.neighbours
    rows = [[item.host, after(item.t_ns, migration.resume_ns), item.ip, item.mac, item.state] for item in changes]
    head = ["neighbour cache of", "changed", "address", "MAC", "state"]
    tracked = ", ".join(f"{name}: {number:,}" for name, number in migration.relearn.conntrack.items())
    parts = [table(head, rows[:MAX_ROWS]) if rows else None, _more(len(rows))]
    parts.append(tag("p", f"Connections of the guest in conntrack: {tracked}", class_="remark") if tracked else None)
    return join(parts)


def _state(flow: FlowResult) -> str:
    if flow.output:
        return f"{ended(flow)}, output in {flow.output}"
    return "alive" if flow.alive else f"DEAD: {flow.error or 'no reason was given'}"


def flows(items: Sequence[FlowResult]) -> Markup:
    """What each counted, and its outage."""
    rows = [
        [
            flow.name,
            flow.kind,
            f"{'to ' if flow.direction == 'from-guest' else ''}{flow.host}",
            f"{flow.requests:,}",
            f"{flow.lost:,}",
            f"{flow.duplicated:,}",
            f"{flow.reordered:,}",
            f"{flow.corrupted:,}",
            sent_again(flow),
            f"{copies(flow):,}" if flow.resent is not None else NOT_SEEN,
            duration(flow.outage_ns),
            _state(flow),
        ]
        for flow in items[:MAX_ROWS]
    ]
    marks = ["" if flow.alive and not flow.corrupted else "bad" for flow in items]
    head = [
        "flow",
        "kind",
        "host",
        "requests",
        "lost",
        "duplicated",
        "reordered",
        "corrupt",
        "resent by client + guest",
        "copies that arrived",
        "outage",
        "state",
    ]
    silences = [tag("p", told, class_="remark") for told in other_silences(items[:MAX_ROWS])]
    return join([table(head, rows, left=3, marks=marks), _more(len(items)), *silences])


def fates(items: Sequence[FlowResult]) -> Markup:
    """What became of each flow, and how close its connection came to its end."""
    kinds = {"undisturbed": "good", "delayed": "warn"}
    rows = []
    for flow in items[:MAX_ROWS]:
        tcp = flow.tcp
        cells: list[object] = [""] * 9
        if tcp is not None:
            cells = [
                duration(tcp.rtt_ns),
                duration(tcp.rto_ns),
                f"{tcp.cwnd:,}",
                f"{tcp.timeouts:,}",
                f"{tcp.retransmits:,}",
                *("" if ns is None else duration(ns) for ns in (tcp.wait_ns, tcp.saved_ns, tcp.survivable_ns)),
                "" if tcp.used is None else f"{tcp.used:.2%}",
            ]
        rows.append([flow.name, badge(str(flow.verdict), kinds.get(str(flow.verdict), "bad")), *cells])
    head = ["flow", "verdict", "round trip", "timer", "window", "timeouts", "sent again", "waited"]
    return table([*head, "5 ms timer saves", "survives, by theory", "of it used"], rows, left=2)


def budgets(items: Sequence[FlowResult]) -> Markup:
    """Stages as rows, flows as columns, the sum and the measured outage below."""
    shown = [flow for flow in items if flow.budget][:40]
    if not shown:
        return tag("p", "No flow had an outage that could be cut into stages.", class_="remark")
    stages = list(dict.fromkeys(part.stage for flow in shown for part in flow.budget))
    rows: list[list[object]] = []
    for stage in stages:
        spent = [sum(part.ns for part in flow.budget if part.stage == stage) for flow in shown]
        group = GROUPS.get(STAGES.get(stage, "--g")[2], "")
        cells = [
            tag("b", duration(ns)) if ns and ns == _largest(flow) else duration(ns)
            for ns, flow in zip(spent, shown, strict=True)
        ]
        rows.append([stage, group, *cells])
    rows.append(["sum", "", *(duration(flow.budget_sum_ns) for flow in shown)])
    rows.append(["measured outage", "", *(duration(flow.outage_ns) for flow in shown)])
    rows.append(["", "", *("adds up" if flow.budget_ok else badge("doubtful", "warn") for flow in shown)])
    marks = [*[""] * len(stages), "sum", "", "dim"]
    notes = [tag("p", f"{flow.name}: {flow.budget_note}", class_="remark") for flow in shown if flow.budget_note]
    return join([table(["stage", "of", *(flow.name for flow in shown)], rows, left=2, marks=marks), *notes])


def _largest(flow: FlowResult) -> int:
    return max((part.ns for part in flow.budget), default=0)


def interference(items: Sequence[InterferenceResult]) -> Markup:
    """Latency and throughput of flows and disks, before and while memory was copied."""
    return table([head.replace("\n", " ") for head in HEADS], rows_of(items), left=2)


def brownouts(items: Sequence[Brownout]) -> Markup:
    """What each flow carried before, in the brownout, and how soon again."""

    def rate(value: float | None) -> str:
        return NOT_SEEN if value is None else format_bit_rate(round(value))

    rows = [
        [
            item.flow,
            rate(item.before_bps),
            rate(item.brownout_bps),
            share(item.brownout_bps / item.before_bps) if item.before_bps and item.brownout_bps is not None else "",
            duration(item.blackout_ns),
            duration(item.ramp_ns),
        ]
        for item in items
    ]
    head = ["flow", "before", "in the brownout", "of before", "blackout (outage)", "ramp to 90 %"]
    return table(head, rows)


def prediction(migration: MigrationResult, found: PredictionResult) -> Markup:
    """Predicted, measured, least possible."""
    guessed, least, measured = found.predicted, found.bound, migration.outcome == "completed"

    def size(value: int | None) -> str:
        return NOT_SEEN if value is None else format_bytes(value)

    rows = [
        ["rounds", f"{guessed.rounds:,}" if guessed else NOT_SEEN, f"{len(migration.rounds):,}", "", ""],
        [
            "sent",
            size(guessed.bytes if guessed else None),
            size(migration.bytes_sent if measured else None),
            size(least.bytes if least else None),
            share(found.efficiency.bytes),
        ],
        [
            "transfer",
            duration(guessed.total_ns if guessed else None),
            duration(found.transfer_ns),
            duration(least.total_ns if least else None),
            share(found.efficiency.total),
        ],
        [
            "downtime",
            duration(guessed.downtime_ns if guessed else None),
            duration(migration.downtime_ns),
            duration(least.downtime_ns if least else None),
            share(found.efficiency.downtime),
        ],
    ]
    note = tag("p", found.note, class_="remark") if found.note else None
    return join([table(["", "predicted", "measured", "lower bound", "bound / measured"], rows), note])


def migrations(items: Sequence[MigrationResult]) -> Markup:
    """One row for each."""
    rows = []
    for number, one in enumerate(items[:MAX_ROWS], 1):
        outages = [flow.outage_ns for flow in one.flows if flow.outage_ns is not None]
        identical = {True: "identical", False: badge("DIFFERENT", "bad"), None: "not compared"}[one.memory.identical]
        rows.append(
            [
                str(number),
                getattr(one, "guest", "") or "",
                f"{one.source} → {one.destination}",
                outcome_badge(one.outcome),
                one.reason,
                duration(one.total_ns),
                duration(one.downtime_ns),
                f"{len(one.rounds):,}",
                format_bytes(one.bytes_sent),
                identical,
                duration(max(outages, default=None)),
            ]
        )
    head = ["#", "guest", "way", "outcome", "reason", "total", "downtime", "rounds", "sent", "memory", "longest outage"]
    for column in (4, 1):  # those that are empty in all
        if not any(row[column] for row in rows):
            head.pop(column)
            for row in rows:
                row.pop(column)
    return join([table(head, rows, left=len(head) - 6), _more(len(items))])


def expectations(items: Sequence[ExpectationResult]) -> Markup:
    """What was expected, and what was measured."""
    rows = [
        [badge("holds", "good") if item.ok else badge("FAILS", "bad"), item.expectation, describe(item)]
        for item in items
    ]
    return table(["", "expected", "measured"], rows, left=3, marks=["" if item.ok else "bad" for item in items])


def links(items: Sequence[LinkResult]) -> Markup:
    """What was asked, applied and measured; both directions where they differ."""
    rows = [
        [
            link.name,
            link.mechanism,
            _both(link.asked),
            _both(link.applied),
            _measured(link.measured),
            _round_trip(link.measured),
        ]
        for link in items[:MAX_ROWS]
    ]
    return table(
        ["link", "by", "asked", "applied", "measured rate", "round trip (asked)"],
        rows,
        left=4,
        marks=["" if link.ok else "bad" for link in items],
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return round(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _direction(values: Mapping[str, Any]) -> str:
    rate, delay, jitter, loss = (values.get(key) for key in ("rate_bps", "delay_ns", "jitter_ns", "loss"))
    parts = [format_bit_rate(round(rate)) if isinstance(rate, int | float) and rate else "unshaped"]
    if isinstance(delay, int | float) and delay:
        parts.append(
            duration(round(delay))
            + (f" ± {duration(round(jitter))}" if isinstance(jitter, int | float) and jitter else "")
        )
    if isinstance(loss, int | float) and loss:
        parts.append(f"loss {loss:.3%}")
    return ", ".join(parts)


def _both(values: Mapping[str, Any]) -> str:
    out, back = (_direction(_mapping(values.get(way))) for way in ("forward", "backward"))
    return out if out == back else f"{out} / {back}"


def _measured(values: Mapping[str, Any]) -> str:
    rates = [_whole(_mapping(values.get(way)), "rate_bps") for way in ("forward", "backward")]
    return " / ".join(NOT_SEEN if rate is None else format_bit_rate(rate) for rate in rates)


def _round_trip(values: Mapping[str, Any]) -> str:
    trip = _mapping(values.get("round_trip"))
    median, asked = _whole(trip, "median_ns"), _whole(trip, "asked_ns")
    return NOT_SEEN if median is None else duration(median) + (f" ({duration(asked)})" if asked is not None else "")


def environment(values: Mapping[str, Any]) -> Markup:
    """Every member, nested ones flattened."""
    found: list[tuple[str, str]] = []

    def walk(name: str, value: object, depth: int) -> None:
        if len(found) >= MAX_ROWS:
            return
        if isinstance(value, Mapping) and depth < 5:
            for key, inner in value.items():
                walk(f"{name} {key}".strip(), inner, depth + 1)
        elif isinstance(value, list) and all(not isinstance(item, Mapping | list) for item in value):
            found.append((name, ", ".join(map(str, value))))
        elif isinstance(value, int) and name.endswith("bytes"):
            found.append((name.removesuffix("_bytes"), format_bytes(value)))
        else:
            found.append((name, f"{value:.4g}" if isinstance(value, float) else str(value)))

    walk("", values, 0)
    return tag("dl", *(join([tag("dt", name.replace("_", " ")), tag("dd", text(value))]) for name, value in found))
