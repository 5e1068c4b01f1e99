"""Everything that a run left behind, put together into its result. Pure.

The runner collects (:class:`RawRun`), this module decides what it means. Each migration is analysed by what concerns
its guest alone (events, frames, flows), in a window of its own, from its start to the start of the next one of that
guest; what a flow counted (requests, lost, ...) is of the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from bench.analysis.belonging import frames_of
from bench.analysis.budget import cut_points, outage_budget
from bench.analysis.cards import card_relearning, for_flow
from bench.analysis.fate import Options, connection, verdict
from bench.analysis.flows import FlowAnalysis, Window, analyse_flow
from bench.analysis.forecast import Forecast, compare
from bench.analysis.interference import DISK_EVENT, of_disks, of_flow, stretches
from bench.analysis.overall import GuestFacts, overall
from bench.analysis.phases import (
    downtime_ns,
    migration_phases,
    migration_rounds,
    pause_and_resume_ns,
    total_ns,
    transfer_ns,
)
from bench.analysis.relearn import relearned_ns
from bench.analysis.resent import resent
from bench.analysis.through import FlowPath, find_through, flow_path, guest_port
from bench.clock import NS_PER_MS
from bench.records import StructuredArray
from bench.result import (
    BudgetPart,
    FlowResult,
    InterferenceResult,
    LinkResult,
    MemoryResult,
    MigrationResult,
    PhaseResult,
    RelearnResult,
    RunResult,
    Trust,
)
from bench.timeline import Timeline

ANNOUNCE_TOLERANCE_NS: Final = 2 * NS_PER_MS
Outcome = Literal["completed", "cancelled", "failed"]


@dataclass(frozen=True)
class FlowRecords:
    """What one flow's agent left: its report and its records (None: it kept none).

    :param card: the guest's that it talked to. :param client_address: and *guest_address*: its ends; empty: the usual.
    """

    host: str
    name: str
    kind: str
    report: Mapping[str, Any]
    records: StructuredArray | None
    rate_bps: int = 0
    guest: str = "g1"
    samples: StructuredArray | None = None
    options: Options = field(default_factory=Options)
    direction: Literal["to-guest", "from-guest"] = "to-guest"
    card: int = 0
    client_address: str = ""
    guest_address: str = ""

    @property
    def from_guest(self) -> bool:
        return self.direction == "from-guest"


@dataclass(frozen=True)
class Move:
    """One migration as the runner drove it. One that was never started has equal times and says so in its outcome.

    :param outcome: the source engine's ``finished``: outcome, reason, digests, bytes, connections, ...
    :param ports: switch -> its ``old_port`` and ``new_port`` for the guest.
    :param paths: client host -> the switches on its way to the destination.
    :param forecast: what was predicted before it; None when nobody asked.
    :param distances: switch -> the switches between it and the destination.
    """

    number: int
    source: str
    destination: str
    start_ns: int
    end_ns: int
    outcome: Mapping[str, Any]
    ports: Mapping[str, Mapping[str, str | None]]
    paths: Mapping[str, Sequence[str]]
    forecast: Forecast | None = None
    distances: Mapping[str, int] = field(default_factory=dict)
    guest: str = "g1"

    @property
    def started(self) -> bool:
        return self.end_ns > self.start_ns


@dataclass(frozen=True)
class RawRun:
    """All of a run. Addresses are IPv4 texts; ``host_ports`` maps a host to the switch port of its link.

    :param guests: all of them; the events of *timeline* name theirs unless there is only one.
    :param moves: by their start.
    """

    title: str
    started_at: str
    guests: Sequence[GuestFacts]
    addresses: Mapping[str, str]
    verify: str
    moves: Sequence[Move]
    end_ns: int
    timeline: Timeline
    frames: StructuredArray
    interfaces: tuple[str, ...]
    flows: Sequence[FlowRecords]
    host_ports: Mapping[str, str]
    links: Sequence[LinkResult]
    environment: Mapping[str, Any]
    max_cpu_load: float
    interrupted: str = ""
    reasons: Sequence[str] = field(default_factory=list)


def assemble(raw: RawRun) -> RunResult:
    """The result of a run."""
    views = {guest.name: _View(raw, guest) for guest in raw.guests}
    migrations = [_migration(raw, number, views[move.guest]) for number, move in enumerate(raw.moves)]
    last = migrations[-1] if migrations else _never(raw)
    members = {name: getattr(last, name) for name in MigrationResult.model_fields}
    members["flows"] = _worst_flows(raw, migrations)
    bad = next((item for item in migrations if item.outcome != "completed"), None)
    if bad is not None:
        members["outcome"], members["reason"] = bad.outcome, bad.reason
    members["reason"] = members["reason"] or raw.interrupted
    return RunResult(
        **members,
        title=raw.title,
        started_at=raw.started_at,
        migrations=migrations,
        overall=overall(migrations, raw.guests),
        links=list(raw.links),
        environment=dict(raw.environment),
        trust=_trust(raw, migrations),
    )


def _never(raw: RawRun) -> MigrationResult:
    """A run that was stopped before its first migration."""
    return MigrationResult(
        guest=raw.guests[0].name,
        outcome="cancelled",
        reason=raw.interrupted or "no migration was started",
        source="",
        destination="",
        start_ns=raw.end_ns,
        end_ns=raw.end_ns,
        total_ns=None,
        downtime_ns=None,
        memory=MemoryResult(bytes=raw.guests[0].memory_bytes, identical=None, digest=None, verify=raw.verify),
        relearn=RelearnResult(announce_ns=None),
    )


def _counted(flow: FlowRecords) -> FlowAnalysis | None:
    return None if flow.records is None else analyse_flow(flow.kind, flow.records, None, from_guest=flow.from_guest)


class _View:
    """What of a run is about one guest."""

    def __init__(self, raw: RawRun, guest: GuestFacts) -> None:
        alone = len(raw.guests) == 1
        self.raw = raw
        self.guest = guest
        self.timeline = raw.timeline if alone else raw.timeline.about(guest.name)
        self.frames = raw.frames if alone else frames_of(raw.frames, guest)
        self.flows = raw.flows if alone else [flow for flow in raw.flows if flow.guest == guest.name]


def _migration(raw: RawRun, index: int, view: _View) -> MigrationResult:
    move, timeline = raw.moves[index], view.timeline
    later = (item.start_ns for item in raw.moves[index + 1 :] if item.guest == move.guest and item.started)
    end_ns = next(later, raw.end_ns) if move.started else move.end_ns
    paused_ns, resumed_ns = pause_and_resume_ns(timeline, Window(move.start_ns, end_ns))
    window = Window(move.start_ns, end_ns, paused_ns)
    relearn = card_relearning(
        timeline, window, view.frames, raw.interfaces, view.guest, ports=move.ports, distances=move.distances
    )
    outcome, reason = _outcome(move)
    rounds = migration_rounds(timeline, window)
    down_ns, sent_bytes = downtime_ns(timeline, window), int(move.outcome.get("bytes_sent") or 0)
    phases = migration_phases(timeline, window)
    return MigrationResult(
        guest=move.guest,
        outcome=outcome,
        reason=reason,
        source=move.source,
        destination=move.destination,
        start_ns=move.start_ns,
        end_ns=move.end_ns,
        pause_ns=paused_ns,
        resume_ns=resumed_ns,
        total_ns=total_ns(timeline, window),
        downtime_ns=down_ns,
        bytes_sent=sent_bytes,
        phases=phases,
        rounds=rounds,
        memory=_memory(raw, view.guest, move),
        flows=[_flow(view, move, window, relearn, flow) for flow in view.flows],
        relearn=relearn,
        connections=int(move.outcome.get("connections") or 0),
        cost=dict(move.outcome.get("cost") or {}),
        prediction=None
        if move.forecast is None
        else compare(
            move.forecast,
            rounds if outcome == "completed" else [],
            bytes_sent=sent_bytes if outcome == "completed" else None,
            transfer_ns=transfer_ns(timeline, window) if outcome == "completed" else None,
            downtime_ns=down_ns if outcome == "completed" else None,
            device_bytes=_device_bytes(timeline, window),
        ),
        interference=_interference(raw, view, move, phases, window),
    )


def _interference(
    raw: RawRun, view: _View, move: Move, phases: Sequence[PhaseResult], window: Window
) -> list[InterferenceResult]:
    """What the copying did to the flows of all guests and to the disks of this one."""
    found = stretches(phases, move.start_ns, window.pause_ns, move.end_ns)
    if found is None:
        return []
    flows = [
        of_flow(flow.name, flow.host, flow.kind, flow.records, *found) for flow in raw.flows if flow.records is not None
    ]
    events = view.timeline.select(DISK_EVENT)
    return [*(item for item in flows if item is not None), *of_disks(events, move.guest, move.source, *found)]


def _device_bytes(timeline: Timeline, window: Window) -> int | None:
    """Size of the device state that crossed; None when none was seen to."""
    events = timeline.select("device_state_sent", "engine.source", window.start_ns, window.end_ns)
    sizes = [event.data.get("bytes") for event in events]
    return next((size for size in sizes if isinstance(size, int)), None)


def _outcome(move: Move) -> tuple[Outcome, str]:
    """A migration whose memory differs has failed, whatever the engine thinks."""
    said, reason = move.outcome.get("outcome"), str(move.outcome.get("reason") or "")
    if move.outcome.get("identical") is False:
        return "failed", "the destination's memory differs from the source's at the pause"
    if said == "completed":
        return "completed", reason
    return ("cancelled" if said == "cancelled" else "failed"), reason


def _memory(raw: RawRun, guest: GuestFacts, move: Move) -> MemoryResult:
    source, destination = move.outcome.get("digest_source"), move.outcome.get("digest_destination")
    return MemoryResult(
        bytes=guest.memory_bytes,
        identical=move.outcome.get("identical"),
        digest=destination,
        digest_source=source,
        digest_destination=destination,
        verify=raw.verify,
    )


# flows


def _flow(view: _View, move: Move, window: Window, relearn: RelearnResult, flow: FlowRecords) -> FlowResult:
    if flow.records is None:
        return _flow_result(flow, None, {})
    ended_ns = flow.report.get("ended_ns") or None
    stable_ns = relearned_ns(for_flow(relearn, flow.card), move.paths.get(flow.host, ()))
    _paused_ns, resumed_ns = pause_and_resume_ns(view.timeline, window)
    # Without relearning having been seen to end, nobody knows when the network was ready again: no upper end then.
    ready_ns = None if resumed_ns is None or stable_ns is None else max(resumed_ns, stable_ns)
    seen = replace(window, resume_ns=resumed_ns, ready_ns=ready_ns)
    analysis = analyse_flow(flow.kind, flow.records, seen, ended_ns, from_guest=flow.from_guest)
    if window.pause_ns is None:  # failed or cancelled before: what the flow missed was not the switchover's
        return _flow_result(flow, analysis, {"budget_note": "the guest was never paused"})
    cuts = cut_points(view.timeline, window, stable_ns)
    path = _path(view, move, flow)
    if path is None:
        return _flow_result(flow, analysis, {})
    seen_again = {"resent": resent(view.frames, path, window, cuts.port_wired_ns)}
    if analysis.outage is None:
        return _flow_result(flow, analysis, seen_again)
    if flow.report.get("reconnects"):
        note = "the client connected anew: its own wait is in the outage"
        return _flow_result(flow, analysis, {**seen_again, "budget_note": note})
    through = find_through(flow.kind, view.frames, path, cuts.port_wired_ns, analysis.outage)
    budget = outage_budget(analysis.outage, cuts, through)
    return _flow_result(
        flow,
        analysis,
        {
            **seen_again,
            "budget": [BudgetPart(stage=stage, ns=ns) for stage, ns in budget.parts.items()],
            "budget_sum_ns": budget.sum_ns,
            "budget_ok": budget.ok,
            "budget_note": budget.note,
        },
    )


def _path(view: _View, move: Move, flow: FlowRecords) -> FlowPath | None:
    """Where the flow's frames are to be seen; None for one that has no ports of its own."""
    raw = view.raw
    service = guest_port(flow.kind, flow.rate_bps)
    local_port = flow.report.get("local_port")
    if service is None or not isinstance(local_port, int):
        return None
    return flow_path(
        raw.interfaces,
        client=(flow.client_address or raw.addresses[flow.host], service if flow.from_guest else local_port),
        guest=(flow.guest_address or view.guest.address, local_port if flow.from_guest else service),
        client_interface=raw.host_ports.get(flow.host, ""),
        new_interface=raw.host_ports.get(move.destination, ""),
        old_interface=raw.host_ports.get(move.source, ""),
        from_guest=flow.from_guest,
    )


def _flow_result(flow: FlowRecords, analysis: FlowAnalysis | None, budget: Mapping[str, Any]) -> FlowResult:
    report = flow.report
    outage = analysis.outage if analysis is not None else None
    counts = analysis.counts if analysis is not None else None

    def number(name: str) -> int:
        return int(getattr(counts, name) if counts is not None else report.get(name) or 0)

    result = FlowResult(
        name=flow.name,
        kind=flow.kind,
        host=flow.host,
        guest=flow.guest,
        direction=flow.direction,
        requests=number("requests"),
        lost=number("lost"),
        duplicated=number("duplicated"),
        reordered=number("reordered"),
        corrupted=max(number("corrupted"), int(report.get("corrupted") or 0)),
        alive=report.get("alive") is True,
        error=report.get("error") or None,
        died_ns=(report.get("ended_ns") or None) if report.get("alive") is False else None,
        outage_ns=outage.duration_ns if outage is not None else None,
        outage_start_ns=outage.start_ns if outage is not None else None,
        outage_end_ns=outage.end_ns if outage is not None else None,
        typical_gap_ns=analysis.typical_gap_ns if analysis is not None else None,
        longest_gap_ns=analysis.longest_gap_ns if analysis is not None else None,
        retransmits=report.get("retransmits"),
        reconnects=int(report.get("reconnects") or 0),
        **budget,
    )
    if flow.kind == "command":
        result.exit_status = report.get("exit_status")
        result.output = f"requests/{flow.host}/{flow.name}.out"
    else:
        result.verdict = verdict(result, report)
    if flow.samples is not None:
        result.tcp = connection(result, flow.samples, report.get("kernel", {}), flow.options)
    return result


def _worst_flows(raw: RawRun, migrations: Sequence[MigrationResult]) -> list[FlowResult]:
    """For each flow its result in the migration that cost it the longest outage; just counted when there was none."""
    worst: list[FlowResult] = []
    for flow in raw.flows:
        seen = [item for migration in migrations for item in migration.flows if item.name == flow.name]
        if seen:
            worst.append(max(seen, key=lambda item: item.outage_ns or 0))
        else:
            worst.append(_flow_result(flow, _counted(flow), {}))
    return worst


# trust


def _trust(raw: RawRun, migrations: Sequence[MigrationResult]) -> Trust:
    """Every reason not to trust the numbers."""
    reasons = list(raw.reasons)
    cpu = raw.environment.get("cpu", {})
    mean = cpu.get("mean")
    if mean is not None and mean > raw.max_cpu_load:
        reasons.append(
            f"cpu: the machine was {mean:.0%} busy during the run, over run.max_cpu_load of {raw.max_cpu_load:.0%}"
        )
    steal = cpu.get("steal")
    if steal is not None and steal > 0.05:
        reasons.append(f"cpu: the hypervisor below this machine took {steal:.0%} of its time")
    reasons += [f"link {link.name}: calibration was off its tolerance" for link in raw.links if not link.ok]
    for index, migration in enumerate(migrations, 1):
        which = f"migration {index}: " if len(migrations) > 1 else ""
        reasons += [
            f"{which}{flow.name}: the outage budget does not explain the outage: {flow.budget_note}"
            for flow in migration.flows
            if not flow.budget_ok
        ]
        if migration.outcome == "completed" and migration.memory.identical is None and raw.verify != "off":
            reasons.append(f"{which}memory: the digests were not compared")
    late = [
        event.t_ns - event.data["due_ns"]
        for event in raw.timeline.select("announce_sent")
        if isinstance(event.data.get("due_ns"), int)
    ]
    too_late = [lateness for lateness in late if lateness > ANNOUNCE_TOLERANCE_NS]
    if too_late:
        reasons.append(
            f"announce: {len(too_late)} of {len(late)} frames left more than 2 ms after their schedule "
            f"(at worst {max(too_late) / NS_PER_MS:.1f} ms)"
        )
    for name, stats in (raw.environment.get("guests") or {"": raw.environment.get("guest", {})}).items():
        errors = stats.get("self_check_errors")
        if errors:
            which = f"guest {name}" if len(raw.guests) > 1 else "guest"
            reasons.append(f"{which}: its vCPUs found {errors} wrong values in memory that they wrote themselves")
    return Trust(ok=not reasons, reasons=reasons)
