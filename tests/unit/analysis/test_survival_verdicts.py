"""What a cell's observations come to, and whether theory explains them."""

from __future__ import annotations

import dataclasses

import pytest

from bench.analysis.survival import CellSeen, evaluate
from bench.clock import NS_PER_MS, NS_PER_S
from bench.scenario import SurvivalSpec
from bench.survival.cells import Keepalive, base_of
from bench.survival.result import SurvivalResult

SPEC = SurvivalSpec()
BEFORE = {"rto_ns": 204 * NS_PER_MS, "rtt_ns": 2 * NS_PER_MS, "since_ack_ns": 400 * NS_PER_MS}
BEGIN = 1_000 * NS_PER_S


def seen(pattern="request", outage_ms=1000, through_ms=None, died_ms=None, *, lost_ms=10, acks_ms=(), **variant):
    """A client's connection; times are ms after the outage's beginning."""
    base = dataclasses.replace(base_of(SPEC, "client"), pattern=pattern, **variant)
    at = [BEGIN + int(value * NS_PER_MS) for value in (through_ms or 0, died_ms or 0)]
    end = {
        "before": BEFORE,
        "through": None if through_ms is None else [5, BEGIN, at[0]],
        "error": "ETIMEDOUT" if died_ms is not None else "",
        "error_ns": at[1],
    }
    taker = pattern == "stream" and died_ms is None
    ends = {"client": {**end, "through": None} if taker else end, "guest": end if taker else {}}
    lost = () if lost_ms is None else (BEGIN + int(lost_ms * NS_PER_MS),)
    acks = tuple(BEGIN + int(value * NS_PER_MS) for value in acks_ms)
    return CellSeen(base, outage_ms * NS_PER_MS, 0, BEGIN, ends, {"client": acks, "guest": lost}, 6, 0)


def result(*cells):
    return evaluate(SPEC, cells, title="t", environment={"cpu": {"mean": 0.5}}, max_cpu_load=0.95)


def only(*args, **kwargs):
    return result(seen(*args, **kwargs)).cells[0]


def test_a_request_through_the_outage_agrees_with_the_probes_ladder():
    cell = only(through_ms=10 + 2 * 816)
    assert (cell.fate, cell.agrees) == ("survived", True)
    assert cell.reason == "tail-loss probe"
    assert cell.beyond_ns == cell.stall_ns - cell.outage_ns


def test_a_stream_follows_the_textbook():
    cell = only("stream", through_ms=1432)
    assert cell.agrees
    assert cell.reason == ""


def test_what_theory_does_not_explain_is_told_apart():
    cell = only("stream", through_ms=1100)
    assert cell.agrees is False
    assert cell.reason == ""
    assert only("stream", through_ms=1100, acks_ms=(12, 900)).reason == "the other end sent first"


def test_a_death_is_measured_and_predicted():
    kernel = dataclasses.replace(base_of(SPEC, "client").kernel, retries2=5)
    cell = only("stream", outage_ms=60_000, died_ms=13_100, kernel=kernel)
    assert (cell.fate, cell.error, cell.theory.fate) == ("died", "ETIMEDOUT", "died")
    assert cell.agrees
    found = result(seen("stream", 60_000, died_ms=13_100, kernel=kernel), seen("stream", 500, 600, kernel=kernel))
    assert found.variants[0].shortest_died_ns == 60 * NS_PER_S
    assert found.variants[0].longest_survived_ns == NS_PER_S // 2


def test_an_outage_between_two_messages_is_no_cell_to_compare():
    found = result(seen(outage_ms=60, through_ms=61, lost_ms=None))
    assert found.compared == 0
    assert found.agreement is None
    assert "nothing was lost" in found.cells[0].reason


@pytest.mark.parametrize(("outage_ms", "fate"), [(3000, "survived"), (6000, "died")])
def test_keepalive_decides_for_idle_connections(outage_ms, fate):
    keep = Keepalive(NS_PER_S, NS_PER_S, 5)
    end = {"died_ms": 5600} if fate == "died" else {"through_ms": outage_ms + 3}
    cell = only("idle", outage_ms, lost_ms=None, keepalive=keep, **end)
    assert (cell.fate, cell.theory.fate) == (fate, fate)
    assert cell.agrees


def test_a_connect_waits_for_the_next_syn():
    cell = only("connect", 2500, through_ms=3002)
    assert cell.theory.stall_ns == 3 * NS_PER_S
    assert cell.agrees


def test_a_cell_that_nobody_saw_end_makes_the_map_not_to_be_trusted():
    found = result(seen())
    assert found.cells[0].fate == "not observed"
    assert not found.trust.ok


def test_a_map_is_read_back_as_it_was_written(tmp_path):
    found = result(seen(through_ms=1640), seen("stream", through_ms=1432))
    found.write(tmp_path)
    assert SurvivalResult.read(tmp_path) == found


def test_a_try_that_missed_the_outages_end_by_a_little_is_named():
    cell = seen(outage_ms=1000, through_ms=3300)
    last = BEGIN + 980 * NS_PER_MS
    late = dataclasses.replace(cell, dropped_ns={**cell.dropped_ns, "guest": (*cell.dropped_ns["guest"], last)})
    found = result(late).cells[0]
    assert found.agrees is False
    assert found.reason == "a try 20 ms before the outage's end was just too early"
