"""What a migration's copying does to others: only what was seen in each stretch counts, and the outage in none."""

import numpy as np

from bench.analysis.interference import BEFORE_NS, of_disks, of_flow, stretches
from bench.figures import NAMED
from bench.guest.disk_latency import EVENT, MOST_KEPT, STRETCH_NS, LatencyLog
from bench.records import RECORD
from bench.result import InterferenceResult, MigrationResult, Observed, PhaseResult
from bench.timeline import Event

MS = 10**6
S = 10**9
START, ROUNDS, PAUSE, END = 10 * S, 10 * S + 100 * MS, 12 * S, 13 * S


def phases(begin=ROUNDS):
    return [
        PhaseResult(name="setup", start_ns=START, end_ns=begin),
        PhaseResult(name="precopy", start_ns=begin, end_ns=PAUSE),
    ]


def records(rows):
    made = np.zeros(len(rows), dtype=RECORD)
    for at, (sent, received, size) in enumerate(rows):
        made[at]["sent_ns"], made[at]["received_ns"], made[at]["bytes"] = sent, received, size
    return made


def test_copying_lasts_from_the_first_round_to_the_pause():
    assert stretches(phases(), START, PAUSE, END) == ((START - BEFORE_NS, START), (ROUNDS, PAUSE))
    assert stretches(phases(), START, None, END) == ((START - BEFORE_NS, START), (ROUNDS, END))
    assert stretches([], START, PAUSE, END) is None
    assert stretches(phases(PAUSE - 1), START, PAUSE, END) is None


def test_latencies_of_requests_are_of_those_begun_in_the_stretch():
    rows = [(t * 10 * MS, t * 10 * MS + MS, 64) for t in range(900, 1000)]
    rows += [(ROUNDS + t * 10 * MS, ROUNDS + t * 10 * MS + 4 * MS, 64) for t in range(190)]
    rows += [(PAUSE + MS, PAUSE + 500 * MS, 64), (ROUNDS + 5 * MS, 0, 64)]  # the outage's, and a lost one
    found = of_flow("echo", "c1", "udp-echo", records(rows), *stretches(phases(), START, PAUSE, END))
    assert (found.before.median_ns, found.copying.median_ns) == (MS, 4 * MS)
    assert (found.before.requests, found.copying.requests, found.copying.bps) == (100, 190, None)


def test_throughput_is_what_arrived():
    rows = [(0, START - S + t * 10 * MS, 1000) for t in range(100)]
    rows += [(0, ROUNDS + t * 10 * MS, 500) for t in range(190)]
    found = of_flow("down", "c1", "tcp-download", records(rows), *stretches(phases(), START, PAUSE, END))
    assert found.before.bps == 800_000
    assert found.copying.bps == 400_000
    assert found.before.median_ns is None


def test_a_flow_that_began_with_the_migration_says_nothing():
    rows = [(ROUNDS + t * MS, ROUNDS + t * MS + 5, 1) for t in range(9)]
    assert of_flow("late", "c1", "udp-echo", records(rows), *stretches(phases(), START, PAUSE, END)) is None


def test_disks_are_told_apart_and_their_requests_counted():
    seen = []

    def record(name, at_ns, **data):
        seen.append(Event(t_ns=at_ns, source="guest.h1", name=name, data=data))

    log = LatencyLog("vda", record)
    for t in range(200):
        log.done(START - S + t * 5 * MS - 2 * MS, START - S + t * 5 * MS, 4096)
    for t in range(100):
        log.done(ROUNDS + t * 10 * MS - 6 * MS, ROUNDS + t * 10 * MS, 4096)
    log.close()
    log.close()  # nothing is left
    assert sum(event.data["requests"] for event in seen) == 300
    assert all(event.name == EVENT for event in seen)
    assert all(event.t_ns - event.data["from_ns"] <= STRETCH_NS + 10 * MS for event in seen)
    (found,) = of_disks(seen, "g1", "h1", *stretches(phases(), START, PAUSE, END))
    assert (found.name, found.kind) == ("g1/vda", "disk")
    assert (found.before.median_ns, found.copying.median_ns) == (2 * MS, 6 * MS)
    assert found.before.bps == 200 * 4096 * 8


def test_a_stretch_with_very_many_requests_is_bounded():
    seen = []
    log = LatencyLog("vda", lambda *_args, **data: seen.append(data))
    for _ in range(MOST_KEPT + 10):
        log.done(0, 1000, 512)
    log.close()
    assert len(seen[0]["latencies_us"]) == MOST_KEPT
    assert seen[0]["requests"] == MOST_KEPT + 10


def test_a_slowdown_is_a_figure():
    seen = Observed(duration_ns=S, requests=9, median_ns=2 * MS)
    slow = InterferenceResult(
        name="echo", kind="flow", before=seen, copying=seen.model_copy(update={"median_ns": 10 * MS})
    )
    disk = slow.model_copy(update={"name": "g1/vda", "kind": "disk", "before": Observed(duration_ns=S)})
    migration = MigrationResult.model_construct(interference=[slow, disk])
    assert NAMED["slowdown.flows"].of(migration) == [5.0]
    assert NAMED["slowdown.disks"].of(migration) == []
