"""Outages out of constructed records: what the client saw, for each kind, with noise around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.analysis.flows import Outage, Window, analyse_flow, count, in_time_limit_ns
from bench.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from bench.records import (
    DUPLICATES_SHIFT,
    RECORD,
    STATUS_CORRUPT,
    STATUS_PROGRESS,
    STATUS_REORDERED,
    StructuredArray,
)

MS = NS_PER_MS
RTT = 300 * NS_PER_US
SECOND = NS_PER_S


def probes(until_ms: int, lost_ms: tuple[int, int] = (0, 0), rtt_ns: int = RTT) -> StructuredArray:
    """1 kHz probes from 1 s on; those of [lost_ms) find no answer."""
    records = np.zeros(until_ms, RECORD)
    records["seq"] = np.arange(until_ms)
    records["sent_ns"] = SECOND + np.arange(until_ms) * MS
    records["received_ns"] = records["sent_ns"] + rtt_ns
    records["received_ns"][slice(*lost_ms)] = 0
    records["bytes"] = 64
    return records


def progresses(times: list[int]) -> StructuredArray:
    records = np.zeros(len(times), RECORD)
    records["seq"] = np.arange(len(times))
    records["sent_ns"] = records["received_ns"] = times
    records["bytes"] = 2500
    records["status"] = STATUS_PROGRESS
    return records


def window(pause_ms: int | None, start_ms: int = 0, end_ms: int = 10**6) -> Window:
    pause = None if pause_ms is None else SECOND + pause_ms * MS
    return Window(SECOND + start_ms * MS, SECOND + end_ms * MS, pause)


def test_probe_outage_is_from_the_first_lost_send_to_the_next_answer() -> None:
    result = analyse_flow("udp-echo", probes(1000, (400, 700)), window(400))
    assert result.outage == Outage(SECOND + 400 * MS, SECOND + 700 * MS + RTT, True, SECOND + 700 * MS)
    assert result.outage is not None
    assert result.outage.duration_ns == 300 * MS + RTT
    assert result.typical_gap_ns == MS
    assert result.longest_gap_ns == 301 * MS
    assert result.counts.requests == 1000
    assert result.counts.lost == 300


def test_answers_under_way_do_not_end_the_outage() -> None:
    records = probes(1000, (400, 700), rtt_ns=20 * MS)  # probe 399 is answered 20 ms after probe 400 was sent
    result = analyse_flow("udp-echo", records, window(400))
    assert result.outage == Outage(SECOND + 400 * MS, SECOND + 720 * MS, True, SECOND + 700 * MS)


def test_late_answers_end_the_outage_of_the_first_that_waited() -> None:
    records = probes(1000)
    held = slice(400, 700)  # frames were held during the blackout and all delivered after it
    records["received_ns"][held] = SECOND + 705 * MS
    result = analyse_flow("udp-echo", records, window(400))
    assert result.outage is not None
    assert result.outage.start_ns == SECOND + 400 * MS
    assert result.outage.end_ns == SECOND + 700 * MS + RTT  # probe 700 was answered before the held ones
    assert result.counts.lost == 0


def test_a_request_that_spans_the_blackout_is_the_outage() -> None:
    records = probes(3)
    records["sent_ns"] = [SECOND, SECOND + 5 * MS, SECOND + 600 * MS]
    records["received_ns"] = [SECOND + RTT, SECOND + 512 * MS, SECOND + 600 * MS + RTT]
    result = analyse_flow("tcp-request", records, window(6))
    assert result.outage == Outage(SECOND + 5 * MS, SECOND + 512 * MS, True, SECOND + 5 * MS)


def test_a_wrong_answer_is_no_answer() -> None:
    records = probes(100)
    records["status"][40:50] = STATUS_CORRUPT
    result = analyse_flow("udp-echo", records, window(40))
    assert result.outage == Outage(SECOND + 40 * MS, SECOND + 50 * MS + RTT, True, SECOND + 50 * MS)
    assert result.counts.corrupted == 10


def test_a_longer_wait_before_the_pause_is_not_the_outage() -> None:
    records = probes(1000, (500, 520))
    records["received_ns"][100] = 0
    records["received_ns"][100:180] = 0  # 80 ms lost during pre-copy
    result = analyse_flow("udp-echo", records, window(500))
    assert result.outage is not None
    assert result.outage.start_ns == SECOND + 500 * MS
    without_pause = analyse_flow("udp-echo", records, window(None))
    assert without_pause.outage is not None
    assert without_pause.outage.start_ns == SECOND + 100 * MS


def test_each_migration_has_its_own_outage() -> None:
    records = probes(3000, (500, 520))
    records["received_ns"][1500:1600] = 0
    first = analyse_flow("udp-echo", records, window(500, 0, 1000))
    second = analyse_flow("udp-echo", records, window(1500, 1000, 2000))
    third = analyse_flow("udp-echo", records, window(2500, 2000, 3000))
    assert [result.outage and result.outage.duration_ns for result in (first, second, third)] == [
        20 * MS + RTT,
        100 * MS + RTT,
        0,
    ]
    assert first.longest_gap_ns == 21 * MS
    assert second.longest_gap_ns == 101 * MS
    assert third.longest_gap_ns == MS


def test_nothing_noticed_and_nothing_to_say() -> None:
    assert analyse_flow("udp-echo", probes(100), window(50)).outage == Outage(SECOND + 50 * MS, SECOND + 50 * MS)
    assert analyse_flow("udp-echo", probes(100), None).outage is None
    assert analyse_flow("udp-echo", probes(100), window(500, 400)).outage is None  # stopped before the migration
    assert analyse_flow("command", probes(100), window(50)).outage is None
    empty = analyse_flow("udp-echo", probes(0), window(50))
    assert empty.outage is None
    assert empty.typical_gap_ns is None


def test_a_flow_that_never_came_back() -> None:
    records = probes(500, (400, 500))
    until = SECOND + 3000 * MS
    result = analyse_flow("udp-echo", records, window(400), until)
    assert result.outage == Outage(SECOND + 400 * MS, until, False, None)
    ended = analyse_flow("tcp-download", progresses([SECOND, SECOND + MS, SECOND + 2 * MS]), window(2), until)
    assert ended.outage == Outage(SECOND + 2 * MS, until, False, None)


def test_what_was_under_way_at_the_stop_is_no_outage() -> None:
    records = probes(500, (499, 500))
    until = SECOND + 502 * MS
    assert analyse_flow("udp-echo", records, window(100), until).outage == Outage(SECOND + 100 * MS, SECOND + 100 * MS)
    times = [SECOND + number * MS for number in range(500)]
    result = analyse_flow("tcp-upload", progresses(times), window(100), times[-1] + 9 * MS)
    assert result.outage is not None
    assert result.outage.duration_ns == 0


@pytest.mark.parametrize("kind", ["tcp-download", "tcp-upload"])
def test_one_way_outage_is_the_gap_between_progresses(kind: str) -> None:
    times = [SECOND + number * MS for number in (*range(400), *range(700, 1000))]
    result = analyse_flow(kind, progresses(times), window(400))
    assert result.outage == Outage(SECOND + 399 * MS, SECOND + 700 * MS)
    assert result.longest_gap_ns == 301 * MS


def test_counts() -> None:
    records = probes(10, (3, 5))
    records["status"][0] = STATUS_REORDERED | 3 << DUPLICATES_SHIFT
    records["status"][1] = STATUS_REORDERED | STATUS_CORRUPT | 1 << DUPLICATES_SHIFT
    result = count(records)
    assert (result.requests, result.lost, result.duplicated, result.reordered, result.corrupted) == (10, 2, 4, 2, 1)


@given(
    st.lists(
        st.tuples(st.integers(1, 5 * MS), st.one_of(st.none(), st.integers(1, 500 * MS)), st.booleans()),
        max_size=60,
    ),
    st.one_of(st.none(), st.integers(0, 300)),
    st.sampled_from(["udp-echo", "tcp-request", "tcp-download", "tcp-upload"]),
)
def test_any_records_give_an_outage_within_what_was_observed(
    steps: list[tuple[int, int | None, bool]], pause_ms: int | None, kind: str
) -> None:
    records = np.zeros(len(steps), RECORD)
    sent = SECOND
    for number, (step, latency, corrupt) in enumerate(steps):
        sent += step
        records[number] = (number, sent, 0 if latency is None else sent + latency, 64, STATUS_CORRUPT if corrupt else 0)
    result = analyse_flow(kind, records, window(pause_ms), sent + SECOND)
    outage = result.outage
    if outage is not None and outage.duration_ns:
        assert outage.duration_ns > 0
        assert SECOND <= outage.start_ns <= outage.end_ns <= sent + SECOND
        good = (records["received_ns"] > 0) & ((records["status"] & STATUS_CORRUPT) == 0)
        assert outage.recovered == (outage.end_ns in records["received_ns"][good].tolist())
        if kind in ("udp-echo", "tcp-request"):
            # nobody who asked from the outage's start on had a good answer before its end
            asked = records["sent_ns"] >= outage.start_ns
            assert not (good & asked & (records["received_ns"] < outage.end_ns)).any()


def test_in_time_limit() -> None:
    assert in_time_limit_ns(0) == MS
    assert in_time_limit_ns(300 * NS_PER_US) == 1300 * NS_PER_US
    assert in_time_limit_ns(10 * MS) == 30 * MS


def test_a_stall_after_the_network_was_ready_is_not_this_outage():
    records = np.zeros(3000, RECORD)
    records["seq"] = np.arange(3000)
    records["sent_ns"] = np.arange(3000) * NS_PER_MS
    records["received_ns"] = records["sent_ns"] + 200_000
    records["received_ns"][1000:1030] = 0  # the switchover
    records["received_ns"][2000:2300] = 0  # a busy machine, a second later
    window = Window(0, 3000 * NS_PER_MS, 1000 * NS_PER_MS, ready_ns=1031 * NS_PER_MS)
    outage = analyse_flow("udp-echo", records, window).outage
    assert outage is not None
    assert outage.duration_ns == 30 * NS_PER_MS + 200_000


def test_a_stall_that_ended_before_the_guest_resumed_is_not_this_outage():
    arrivals = [*range(900), *range(960, 1004), *range(1030, 2000)]
    records = np.zeros(len(arrivals), RECORD)
    records["seq"] = np.arange(len(arrivals))
    records["sent_ns"] = records["received_ns"] = (np.array(arrivals) + 1) * NS_PER_MS
    paused, resumed = 961 * NS_PER_MS, 1020 * NS_PER_MS
    window = Window(0, 2000 * NS_PER_MS, 905 * NS_PER_MS, resumed, ready_ns=1031 * NS_PER_MS)
    outage = analyse_flow("tcp-download", records, window).outage
    assert outage is not None
    assert paused < outage.end_ns == 1031 * NS_PER_MS
    assert outage.duration_ns == 27 * NS_PER_MS
