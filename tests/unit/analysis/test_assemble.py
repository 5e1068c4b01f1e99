"""A run's result from what it left: outcomes, reasons, and what a run that was stopped or failed still says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.analysis.assemble import FlowRecords, Move, RawRun, assemble
from bench.analysis.overall import GuestFacts
from bench.clock import NS_PER_MS, NS_PER_S
from bench.records import FRAME, RECORD, StructuredArray
from bench.timeline import Event, Timeline

START, PAUSED, RESUMED, END = (second * NS_PER_S for second in (10, 12, 13, 15))


def echo(lost: range = range(0)) -> StructuredArray:
    """One probe a millisecond from 9 s to 16 s, each answered within 0.5 ms but for those of *lost*."""
    records = np.zeros(7000, RECORD)
    records["seq"] = np.arange(7000)
    records["sent_ns"] = 9 * NS_PER_S + np.arange(7000) * NS_PER_MS
    records["received_ns"] = records["sent_ns"] + NS_PER_MS // 2
    records["received_ns"][list(lost)] = 0
    return records


def flow(records: StructuredArray | None, **report: Any) -> FlowRecords:
    return FlowRecords("c1", "probe", "udp-echo", {"alive": True, "local_port": 4000, **report}, records)


def move(outcome: str = "completed", start_ns: int = START, end_ns: int = END, **more: Any) -> Move:
    told = {"outcome": outcome, "reason": "", "identical": True if outcome == "completed" else None, **more}
    ports: dict[str, dict[str, str | None]] = {"s1": {"old_port": "s1-eth1", "new_port": "s1-eth2"}}
    return Move(1, "h1", "h2", start_ns, end_ns, told, ports, {"c1": ["s1"]})


def raw(*moves: Move, flows: tuple[FlowRecords, ...] = (), timeline: tuple[Event, ...] = (), **more: Any) -> RawRun:
    members: dict[str, Any] = {
        "title": "made up",
        "started_at": "now",
        "guests": [GuestFacts("g1", "52:54:00:00:00:01", "10.0.1.1", 1 << 24, "h1", "h2")],
        "addresses": {"h1": "10.0.0.1", "h2": "10.0.0.2", "c1": "10.0.0.3"},
        "verify": "background",
        "moves": list(moves),
        "end_ns": 16 * NS_PER_S,
        "timeline": Timeline(timeline),
        "frames": np.zeros(0, FRAME),
        "interfaces": (),
        "flows": list(flows),
        "host_ports": {"h1": "s1-eth1", "h2": "s1-eth2", "c1": "s1-eth3"},
        "links": [],
        "environment": {},
        "max_cpu_load": 0.9,
    }
    return RawRun(**{**members, **more})


PAUSE = (
    Event(PAUSED, "guest.h1", "pause_begin", {}),
    Event(PAUSED, "engine.source", "paused", {}),
    Event(RESUMED, "guest.h2", "resumed", {}),
)


def test_a_run_stopped_before_its_migration_is_cancelled_and_counts_its_flows() -> None:
    result = assemble(raw(flows=(flow(echo(range(3))),), interrupted="interrupted by SIGINT"))
    assert (result.outcome, result.reason) == ("cancelled", "interrupted by SIGINT")
    assert result.migrations == []
    assert result.downtime_ns is None
    assert (result.flows[0].requests, result.flows[0].lost) == (7000, 3)
    assert result.flows[0].outage_ns is None


def test_a_run_stopped_before_anything_was_there() -> None:
    result = assemble(raw())
    assert (result.outcome, result.reason) == ("cancelled", "no migration was started")
    assert result.flows == []


def test_a_run_stopped_after_its_migration_stays_completed_and_says_so() -> None:
    result = assemble(raw(move(), timeline=PAUSE, interrupted="interrupted by SIGTERM"))
    assert (result.outcome, result.reason) == ("completed", "interrupted by SIGTERM")
    assert result.migrations[0].reason == ""


def test_different_memory_is_a_failure_whatever_the_engine_says() -> None:
    result = assemble(raw(move(identical=False), timeline=PAUSE))
    assert result.outcome == "failed"
    assert "differs" in result.reason
    assert result.memory.identical is False


def test_one_bad_migration_decides_the_outcome_of_all() -> None:
    moves = (move(), move("failed", END, END + 1, reason="the link is gone"), move(start_ns=END + 2, end_ns=END + 3))
    result = assemble(raw(*moves, timeline=PAUSE))
    assert [item.outcome for item in result.migrations] == ["completed", "failed", "completed"]
    assert (result.outcome, result.reason) == ("failed", "the link is gone")


def test_memory_that_was_not_compared_is_a_reason_for_doubt() -> None:
    unknown = move(identical=None)
    assert any("digests" in reason for reason in assemble(raw(unknown, timeline=PAUSE)).trust.reasons)
    assert not any("digests" in reason for reason in assemble(raw(unknown, timeline=PAUSE, verify="off")).trust.reasons)


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_a_guest_that_was_never_paused_has_no_budget_and_no_doubts(outcome: str) -> None:
    """What a flow missed meanwhile (another flow took the link, say) is not for the switchover to explain."""
    result = assemble(raw(move(outcome, reason="why"), flows=(flow(echo(range(3000, 3100))),)))
    probe = result.flows[0]
    assert (result.outcome, result.reason) == (outcome, "why")
    assert result.downtime_ns is None
    assert probe.outage_ns is not None
    assert probe.outage_ns >= 100 * NS_PER_MS
    assert probe.budget == []
    assert probe.budget_ok
    assert probe.budget_note == "the guest was never paused"
    assert result.trust.ok


def test_an_outage_that_nothing_explains_is_a_reason_for_doubt() -> None:
    result = assemble(raw(move(), flows=(flow(echo(range(3000, 4005))),), timeline=PAUSE))
    probe = result.flows[0]
    assert probe.outage_ns is not None
    assert probe.outage_ns >= RESUMED - PAUSED
    assert sum(part.ns for part in probe.budget) == probe.outage_ns
    assert not probe.budget_ok
    assert any(reason.startswith("probe: the outage budget") for reason in result.trust.reasons)


def test_the_flows_of_several_migrations_are_those_of_the_worst() -> None:
    lost = [*range(3000, 3050), *range(6000, 6200)]
    moves = (
        move("failed", 10 * NS_PER_S, 13 * NS_PER_S),
        move("failed", 14 * NS_PER_S, 15500 * NS_PER_MS),
    )
    records = echo()
    records["received_ns"][lost] = 0
    result = assemble(raw(*moves, flows=(flow(records),)))
    outages = [item.flows[0].outage_ns or 0 for item in result.migrations]
    assert result.flows[0].outage_ns == max(outages) >= 200 * NS_PER_MS
    assert {item.flows[0].lost for item in result.migrations} == {250}


def test_an_agent_that_died_leaves_its_flow_dead() -> None:
    report = {"alive": False, "error": "agent died", "requests": 0, "local_port": None}
    result = assemble(raw(move(), flows=(flow(None, **report),), timeline=PAUSE))
    assert not result.flows[0].alive
    assert result.flows[0].error == "agent died"
    assert result.flows[0].outage_ns is None


def test_a_busy_machine_a_late_announcement_and_a_guest_that_errs_are_reasons_for_doubt() -> None:
    late = Event(RESUMED, "guest.h2", "announce_sent", {"kind": "rarp", "n": 1, "due_ns": RESUMED - 3 * NS_PER_MS})
    environment = {"cpu": {"mean": 0.97, "steal": 0.2}, "guest": {"self_check_errors": 4}}
    reasons = assemble(raw(move(), timeline=(*PAUSE, late), environment=environment)).trust.reasons
    for words in ("97% busy", "20% of its time", "1 of 1 frames", "4 wrong values"):
        assert any(words in reason for reason in reasons), words


def test_several_guests_are_analysed_by_their_own_events_and_flows() -> None:
    """The second guest is paused, and its client cut off, while the first moves undisturbed."""
    guests = [
        GuestFacts("g1", "52:54:00:00:00:01", "10.0.1.1", 1 << 24, "h1", "h2"),
        GuestFacts("g2", "52:54:00:00:00:02", "10.0.1.2", 1 << 23, "h2", "h1"),
    ]
    first = (
        Event(PAUSED + 1, "guest.h1", "pause_begin", {}, "g1"),
        Event(PAUSED + 1, "engine.source", "paused", {}, "g1"),
    )
    resumed = Event(PAUSED + 2, "guest.h2", "resumed", {}, "g1")
    second = [replace(event, guest="g2") for event in PAUSE]
    moves = (move(), replace(move(start_ns=START + 1), guest="g2", source="h2", destination="h1"))
    flows = (flow(echo()), replace(flow(echo(range(3000, 4005))), name="other", guest="g2"))
    result = assemble(raw(*moves, flows=flows, timeline=(*first, resumed, *second), guests=guests))
    assert [item.guest for item in result.migrations] == ["g1", "g2"]
    assert [item.downtime_ns for item in result.migrations] == [1, RESUMED - PAUSED]
    assert [item.memory.bytes for item in result.migrations] == [1 << 24, 1 << 23]
    assert [[item.name for item in migration.flows] for migration in result.migrations] == [["probe"], ["other"]]
    assert [(item.name, item.guest) for item in result.flows] == [("probe", "g1"), ("other", "g2")]
    assert result.flows[0].outage_ns == 0
    assert (result.flows[1].outage_ns or 0) >= RESUMED - PAUSED
    assert (result.guest, result.source, result.downtime_ns) == ("g2", "h2", RESUMED - PAUSED)
    assert result.overall is not None
    assert (result.overall.at_once, result.overall.completed) == (2, 2)


def test_one_that_never_started_ends_no_window_and_has_none() -> None:
    """Taken back while the guest's first migration still went on."""
    moves = (move(), move("cancelled", PAUSED - 1, PAUSED - 1, reason="never started: interrupted by SIGINT"))
    result = assemble(raw(*moves, flows=(flow(echo(range(3000, 4005))),), timeline=PAUSE))
    assert [item.downtime_ns for item in result.migrations] == [RESUMED - PAUSED, None]
    assert [item.total_ns for item in result.migrations] == [None, None]
    assert [item.flows[0].outage_ns for item in result.migrations][1] in (None, 0)
    assert (result.outcome, result.reason) == ("cancelled", "never started: interrupted by SIGINT")


def test_a_flow_of_a_guest_that_did_not_move_is_counted() -> None:
    guests = [
        GuestFacts("g1", "52:54:00:00:00:01", "10.0.1.1", 1 << 24, "h1", "h2"),
        GuestFacts("g2", "52:54:00:00:00:02", "10.0.1.2", 1 << 24, "h2", "h2"),
    ]
    flows = (replace(flow(echo(range(5))), name="other", guest="g2"),)
    result = assemble(raw(move(), flows=flows, guests=guests))
    assert [(item.name, item.lost, item.outage_ns) for item in result.flows] == [("other", 5, None)]
