"""Budgets: whatever the cut points, no part is negative and they sum to the outage; and the right stage is blamed."""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from bench.analysis.budget import STAGES, Budget, CutPoints, Through, cut_points, outage_budget
from bench.analysis.flows import Outage, Window
from bench.clock import NS_PER_MS
from bench.timeline import Event, Timeline

MS = NS_PER_MS
CUTS = CutPoints(*(number * MS for number in (100, 103, 120, 125, 126, 130, 131, 132, 140)))
OUTAGE = Outage(98 * MS, 400 * MS)
THROUGH = Through(left_ns=380 * MS, passed_ns=381 * MS)


def ms(budget: Budget) -> list[float]:
    return [ns / MS for ns in budget.parts.values()]


def test_each_stage_gets_its_time() -> None:
    budget = outage_budget(OUTAGE, CUTS, THROUGH)
    assert list(budget.parts) == list(STAGES)
    assert ms(budget) == [2, 3, 17, 5, 1, 4, 1, 1, 8, 240, 20]
    assert budget.sum_ns == OUTAGE.duration_ns
    assert budget.ok
    assert budget.note == ""


def test_no_outage_no_budget() -> None:
    assert outage_budget(None, CUTS, THROUGH) == Budget()
    zero = outage_budget(Outage(5, 5), CUTS, THROUGH)
    assert zero.ok
    assert set(zero.parts.values()) == {0}
    assert zero.sum_ns == 0


def test_a_client_that_noticed_late_has_no_onset() -> None:
    budget = outage_budget(Outage(110 * MS, 400 * MS), CUTS, THROUGH)
    assert ms(budget) == [0, 0, 10, 5, 1, 4, 1, 1, 8, 240, 20]
    assert budget.ok


def test_a_client_that_asked_after_the_resume_pays_for_the_network_only() -> None:
    budget = outage_budget(Outage(135 * MS, 150 * MS), CUTS, Through(148 * MS, 149 * MS))
    assert ms(budget) == [0, 0, 0, 0, 0, 0, 0, 0, 5, 8, 2]
    assert budget.ok


def test_a_segment_that_waited_in_the_network_has_no_client_wait() -> None:
    budget = outage_budget(OUTAGE, CUTS, Through(left_ns=99 * MS, passed_ns=399 * MS))
    assert budget.parts["client's wait"] == 0
    assert budget.parts["reply"] == 260 * MS
    assert budget.ok


def test_missing_cut_points_are_said_and_not_hidden() -> None:
    budget = outage_budget(OUTAGE, replace(CUTS, storage_ns=None), Through())
    assert not budget.ok
    assert budget.note == "not observed: the end of storage, client's wait"
    assert budget.parts["storage"] == 0
    assert budget.parts["resume"] == 5 * MS
    assert budget.sum_ns == OUTAGE.duration_ns


def test_effects_before_their_causes_are_said() -> None:
    budget = outage_budget(OUTAGE, replace(CUTS, resumed_ns=121 * MS), THROUGH)
    assert not budget.ok
    assert "resume ended 5.0 ms before storage" in budget.note
    assert budget.parts["resume"] == 0
    within = outage_budget(OUTAGE, replace(CUTS, announce_ns=130_500_000), THROUGH)
    assert within.ok  # two processes' stamps of nearly the same moment


def test_an_outage_that_ended_before_the_guest_ran_is_contradictory() -> None:
    budget = outage_budget(Outage(98 * MS, 110 * MS), CUTS, Through(105 * MS, 106 * MS))
    assert not budget.ok
    assert "before the guest resumed" in budget.note


def test_an_outage_that_nothing_ended() -> None:
    budget = outage_budget(replace(OUTAGE, recovered=False), CUTS, Through())
    assert not budget.ok
    assert "no good reply" in budget.note


def test_a_flow_served_before_the_switches_were_stable() -> None:
    """The MAC flapped back at 150 ms and healed at 600 ms; this flow's retransmission got through between."""
    cuts = replace(CUTS, relearned_ns=600 * MS)
    budget = outage_budget(OUTAGE, cuts, THROUGH)
    assert budget.ok
    assert budget.note == "served 219.0 ms before the switches were stable"
    assert budget.parts["relearned"] == 0
    assert budget.parts["client's wait"] == 248 * MS
    misdelivered = outage_budget(OUTAGE, cuts, replace(THROUGH, misdelivered_ns=139 * MS))
    assert misdelivered.parts["relearned"] == 7 * MS
    assert misdelivered.parts["client's wait"] == 241 * MS


def test_a_frame_that_left_before_relearning_and_passed_after_it() -> None:
    """A link with 20 ms: the probe left while the old port was still learnt, and met a switch that had relearned."""
    budget = outage_budget(Outage(98 * MS, 170 * MS), CUTS, Through(left_ns=125 * MS, passed_ns=145 * MS))
    assert budget.parts["relearned"] == 8 * MS
    assert budget.parts["client's wait"] == 0
    assert budget.parts["reply"] == 30 * MS
    assert budget.note == ""


times = st.one_of(st.none(), st.integers(-50, 500).map(lambda value: value * 100_000))


@given(
    st.tuples(*[times for _ in range(9)]),
    st.tuples(times, times, times),
    st.tuples(st.integers(0, 400), st.integers(0, 400)),
    st.tuples(st.booleans(), st.booleans()),
)
def test_any_cut_points_give_parts_that_sum_to_the_outage(
    points: tuple[int | None, ...],
    through: tuple[int | None, int | None, int | None],
    when: tuple[int, int],
    flags: tuple[bool, bool],
) -> None:
    outage = Outage(when[0] * 100_000, sum(when) * 100_000, recovered=flags[0])
    cuts = replace(CutPoints(*points), rolled_back=flags[1])
    budget = outage_budget(outage, cuts, Through(*through))
    assert list(budget.parts) == list(STAGES)
    assert all(ns >= 0 for ns in budget.parts.values())
    assert sum(budget.parts.values()) == budget.sum_ns == outage.duration_ns
    assert budget.ok or budget.note


def test_cut_points_of_a_timeline() -> None:
    def happened(t_ms: int, source: str, name: str) -> Event:
        return Event(t_ms * MS, source, name)

    events = [
        happened(50, "engine.source", "pause_begin"),  # the engine asks, the guest does
        happened(100, "guest.h1", "pause_begin"),
        happened(102, "guest.h1", "vcpus_stopped"),
        happened(103, "guest.h1", "net_cut"),
        happened(119, "engine.source", "final_pages_sent"),
        happened(120, "engine.destination", "final_pages_received"),
        happened(125, "engine.destination", "device_state_loaded"),
        happened(126, "engine.destination", "storage_acquired"),
        happened(130, "guest.h2", "resumed"),
        happened(131, "guest.h2", "port_wired"),
        happened(132, "guest.h2", "announce_sent"),
        happened(133, "engine.destination", "resumed"),
        happened(182, "guest.h2", "announce_sent"),
        happened(1100, "guest.h2", "pause_begin"),  # the next migration
        happened(1130, "guest.h1", "resumed"),
    ]
    timeline = Timeline(reversed(events))
    assert cut_points(timeline, Window(0, 1000 * MS), 140 * MS) == CUTS
    second = cut_points(timeline, Window(1000 * MS, 2000 * MS), None)
    assert second.pause_begin_ns == 1100 * MS
    assert second.resumed_ns == 1130 * MS
    assert second.announce_ns is None
    assert all(
        getattr(cut_points(Timeline(), Window(0, 1), None), member.name) in (None, False) for member in fields(CUTS)
    )


def test_a_rolled_back_migration() -> None:
    timeline = Timeline(
        [
            Event(100 * MS, "guest.h1", "pause_begin"),
            Event(102 * MS, "guest.h1", "vcpus_stopped"),
            Event(103 * MS, "guest.h1", "net_cut"),
            Event(200 * MS, "guest.h1", "rolled_back"),
        ]
    )
    cuts = cut_points(timeline, Window(0, 1000 * MS), None)
    budget = outage_budget(Outage(99 * MS, 210 * MS), cuts, Through(205 * MS, 206 * MS))
    assert budget.ok, budget.note
    assert budget.parts["resume"] == 97 * MS
    assert budget.parts["client's wait"] == 5 * MS
