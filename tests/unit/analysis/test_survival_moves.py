"""Migrations whose stop was stretched, as cells of a survival map."""

from __future__ import annotations

import pytest

from bench.analysis.survival_moves import evaluate_moves
from bench.clock import NS_PER_MS, NS_PER_S
from bench.result import BudgetPart, FlowResult, FlowTcp, MemoryResult, RelearnResult, RunResult
from bench.survival.cells import Kernel, Variant

KERNEL = Kernel(15, 200 * NS_PER_MS, True)
REQUEST = Variant("request", "client", KERNEL, "cubic")
LABEL = "client: request"


def flow(outage_ms: int, wait_ms: int, **changes: object) -> FlowResult:
    budget = [("storage", outage_ms - wait_ms - 1), ("client's wait", wait_ms), ("reply", 1)]
    tcp = {"rto_ns": 200 * NS_PER_MS, "rtt_ns": NS_PER_MS, "cwnd": 10, "samples": 9, "timeouts": 3, "retransmits": 3}
    fields = {
        "name": "f",
        "kind": "tcp-request",
        "host": "c1",
        "requests": 9,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "corrupted": 0,
        "alive": True,
        "outage_ns": outage_ms * NS_PER_MS,
        "budget": [BudgetPart(stage=stage, ns=ns * NS_PER_MS) for stage, ns in budget],
        "tcp": FlowTcp(**tcp),
    }
    return FlowResult(**{**fields, **changes})


def run(one: FlowResult) -> RunResult:
    return RunResult(
        guest="g1",
        started_at="",
        outcome="completed",
        reason="",
        source="h1",
        destination="h2",
        start_ns=0,
        end_ns=1,
        total_ns=1,
        downtime_ns=1,
        memory=MemoryResult(bytes=1, identical=True, digest=""),
        relearn=RelearnResult(announce_ns=None),
        flows=[one],
    )


def cell(one: FlowResult, variant: Variant = REQUEST):
    result = evaluate_moves(
        [(500 * NS_PER_MS, 0, run(one))], {"f": variant}, {"f": LABEL}, interval_ns=50 * NS_PER_MS, title=""
    )
    return result.cells[0], result


def test_the_next_try_after_the_network_was_ready_is_what_theory_says() -> None:
    """A probe after 202 ms, then 200, 400 ms more: the first at or after 520 ms leaves after some 802 to 830 ms."""
    seen, result = cell(flow(815, 295))
    assert seen.details["true_outage_ns"] == 519 * NS_PER_MS
    assert seen.theory is not None
    assert seen.theory.fate == "survived"
    assert (seen.agrees, seen.in_flight, seen.reason) == (True, True, "")
    assert (result.compared, result.agreement) == (1, 1.0)
    assert seen.beyond_ns == 296 * NS_PER_MS


def test_an_answer_that_was_too_soon_has_its_reason() -> None:
    early = flow(525, 5)
    assert early.tcp is not None
    seen, result = cell(
        early.model_copy(update={"tcp": early.tcp.model_copy(update={"timeouts": 0, "retransmits": 0})})
    )
    assert (seen.agrees, seen.in_flight) == (False, False)
    assert "nothing of the client's was lost" in seen.reason
    assert (result.compared, result.agreement) == (0, None)


def test_a_death_is_measured_and_predicted() -> None:
    variant = Variant("request", "client", KERNEL, "cubic", user_timeout_ns=300 * NS_PER_MS)
    dead = flow(720, 0, alive=False, error="ETIMEDOUT", verdict="died")
    seen, _result = cell(dead, variant)
    assert seen.theory is not None
    assert (seen.fate, seen.theory.fate, seen.error) == ("died", "died", "ETIMEDOUT")
    assert seen.agrees


@pytest.mark.parametrize(("late_ms", "agrees"), [(3, True), (200, False)])
def test_what_the_guest_sends_has_no_ladder(late_ms: int, agrees: bool) -> None:
    variant = Variant("stream", "guest", KERNEL, "cubic")
    seen, _result = cell(flow(520 + late_ms, late_ms), variant)
    assert seen.agrees is agrees
    assert seen.in_flight is False
    assert ("the guest had in flight" in seen.reason) is not agrees


def test_a_migration_that_failed_is_no_map_to_trust() -> None:
    bad = run(flow(0, -1)).model_copy(update={"outcome": "failed", "reason": "no"})
    result = evaluate_moves([(NS_PER_S, 0, bad)], {"f": REQUEST}, {"f": LABEL}, interval_ns=NS_PER_MS, title="")
    assert not result.trust.ok


def test_an_answer_that_a_server_outside_lost_is_named() -> None:
    seen, _result = cell(flow(6800, 3200), Variant("request", "guest", KERNEL, "cubic"))
    assert seen.agrees is False
    assert "its server had lost the answer" in seen.reason
