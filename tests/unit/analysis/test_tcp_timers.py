"""TCP's timers in theory: the table of published figures, and what Linux does beyond RFC 6298."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.analysis import tcp_timers
from bench.analysis.tcp_timers import Sender
from bench.clock import NS_PER_MS, NS_PER_S

DURATIONS = st.integers(min_value=0, max_value=600 * NS_PER_S)
TIMERS = st.integers(min_value=NS_PER_MS, max_value=3 * NS_PER_S)


def seconds(values, count):
    return [value / NS_PER_S for value in itertools.islice(values, count)]


@pytest.mark.parametrize(
    ("outage_s", "stall_s"),
    [
        (0.06, 0.2),
        (0.21, 0.6),
        (0.5, 0.6),
        (1, 1.4),
        (3.5, 6.2),
        (10, 12.6),
        (20, 25.4),
        (29, 51),
        (40, 51),
        (60, 102.2),
    ],
)
def test_the_textbook_stall_of_each_outage(outage_s, stall_s):
    assert tcp_timers.textbook_stall_ns(int(outage_s * NS_PER_S)) == pytest.approx(stall_s * NS_PER_S)


def test_the_ladder_doubles_up_to_its_limit():
    plain = Sender(200 * NS_PER_MS, probes=False)
    assert seconds(tcp_timers.ladder(plain), 10) == [0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 51.0, 102.2, 204.6]
    rungs = list(itertools.islice(tcp_timers.ladder(plain), 14))
    assert {later - former for former, later in itertools.pairwise(rungs[9:])} == {120 * NS_PER_S}


def test_a_probe_for_a_lone_segment_puts_the_ladder_off_by_its_own_time():
    alone = Sender(204 * NS_PER_MS, srtt_ns=4 * NS_PER_MS)
    assert seconds(tcp_timers.ladder(alone), 4) == pytest.approx([0.204, 0.408, 0.816, 1.632])


def test_a_sender_that_goes_on_keeps_its_timer_and_tries_with_each_segment():
    sender = Sender(204 * NS_PER_MS, srtt_ns=4 * NS_PER_MS, interval_ns=50 * NS_PER_MS)
    assert seconds(tcp_timers.ladder(sender), 2) == pytest.approx([0.204, 0.612])
    assert [offset / NS_PER_MS for offset in tcp_timers.later_segments(sender)] == [50, 66, 100, 150, 200]


def test_segments_that_come_later_than_the_timer_are_no_tries():
    slow = Sender(28 * NS_PER_MS, srtt_ns=4 * NS_PER_MS, interval_ns=50 * NS_PER_MS, rto_min_ns=20 * NS_PER_MS)
    assert not slow.goes_on
    assert list(tcp_timers.later_segments(slow)) == []


@given(outage=DURATIONS, timer=TIMERS, lost=st.integers(0, 50 * NS_PER_MS), way=st.integers(0, 50 * NS_PER_MS))
def test_nothing_gets_through_before_the_outage_ends_and_all_within_twice_of_it(outage, timer, lost, way):
    sender = Sender(timer, srtt_ns=2 * way, probes=False)
    stall = tcp_timers.stall_ns(outage, sender, lost, way)
    assert stall >= outage
    textbook = tcp_timers.textbook_stall_ns(outage, timer)
    assert textbook <= max(2 * outage + timer, outage + sender.rto_max_ns)


@given(outage=DURATIONS, timer=TIMERS, factor=st.integers(2, 8))
def test_a_longer_outage_is_no_shorter_stall(outage, timer, factor):
    assert tcp_timers.textbook_stall_ns(outage * factor, timer) >= tcp_timers.textbook_stall_ns(outage, timer)


@pytest.mark.parametrize(("retries", "death_s"), [(5, 12.6), (8, 102.2), (9, 204.6), (15, 924.6)])
def test_what_tcp_retries2_stands_for(retries, death_s):
    assert tcp_timers.model_timeout_ns(retries) == pytest.approx(death_s * NS_PER_S)


@pytest.mark.parametrize("probes", [True, False])
def test_death_comes_at_a_timers_end_after_the_limit(probes):
    sender = Sender(208 * NS_PER_MS, srtt_ns=8 * NS_PER_MS, probes=probes)
    death = tcp_timers.death_ns(sender, 5)
    assert 12.6 * NS_PER_S < death < 2.2 * 12.6 * NS_PER_S
    assert tcp_timers.longest_survivable_ns(sender, 5) < death


def test_the_user_timeout_counts_from_the_first_retransmission():
    sender = Sender(204 * NS_PER_MS, probes=False)
    assert tcp_timers.death_ns(sender, 15, 10 * NS_PER_S) == pytest.approx(10.204 * NS_PER_S, abs=10 * NS_PER_MS)
    assert tcp_timers.longest_survivable_ns(sender, 15, 10 * NS_PER_S) < 10 * NS_PER_S


def test_connects_double_after_the_linear_ones():
    assert seconds(tcp_timers.connect_ladder(), 5) == [0, 1, 3, 7, 15]
    assert seconds(tcp_timers.connect_ladder(linear=4), 8) == [0, 1, 2, 3, 4, 5, 7, 11]
    assert tcp_timers.connect_death_ns(6) == 127 * NS_PER_S
    assert tcp_timers.connect_death_ns(1, linear=4) == 7 * NS_PER_S


def test_keepalive_gives_up_after_its_last_interval():
    assert tcp_timers.keepalive_death_ns(7200 * NS_PER_S, 75 * NS_PER_S, 9) == 7875 * NS_PER_S


def test_timers_are_coarser_the_longer_they_are():
    lateness = [tcp_timers.mean_lateness_ns(value * NS_PER_S // 10) for value in (1, 4, 30, 200)]
    assert lateness == sorted(lateness)
    assert lateness[0] == 4 * NS_PER_MS
