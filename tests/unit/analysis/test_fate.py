"""Verdicts, deadlines and what a connection's timer cost."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis.fate import Options, connection, verdict
from bench.clock import NS_PER_MS, NS_PER_S
from bench.records import TCP_SAMPLE
from bench.result import BudgetPart, FlowResult

KERNEL = {"retries2": 15, "early_retrans": 3}


def flow(outage_ms=300, wait_ms=100, **changes):
    start = 10 * NS_PER_S
    fields = {"name": "f", "kind": "tcp-request", "host": "c1", "requests": 1, "lost": 0, "duplicated": 0}
    fields |= {"reordered": 0, "corrupted": 0, "alive": True, "outage_ns": outage_ms * NS_PER_MS}
    fields |= {"outage_start_ns": start, "outage_end_ns": start + outage_ms * NS_PER_MS}
    fields["budget"] = [BudgetPart(stage="client's wait", ns=wait_ms * NS_PER_MS), BudgetPart(stage="reply", ns=0)]
    return FlowResult(**{**fields, **changes})


def samples(*rows):
    """Rows of (ms, timeouts, backoff, rto_ms, retransmits)."""
    made = np.zeros(len(rows), TCP_SAMPLE)
    for at, (ms, timeouts, backoff, rto_ms, retransmits) in zip(made, rows, strict=True):
        at["t_ns"], at["timeouts"], at["backoff"] = ms * NS_PER_MS, timeouts, backoff
        at["rto_us"], at["rtt_us"], at["retransmits"] = rto_ms * 1000, 1000, retransmits
    return made


SEEN = samples((9_000, 0, 0, 204, 2), (10_210, 1, 0, 204, 3), (10_290, 1, 1, 408, 3), (11_000, 0, 0, 204, 3))


@pytest.mark.parametrize(
    ("changes", "report", "word"),
    [
        ({"outage_ms": 0}, {}, "undisturbed"),
        ({"outage_ns": None}, {}, "undisturbed"),
        ({}, {}, "delayed"),
        ({}, {"reconnects": 1}, "reconnected"),
        ({"alive": False, "error": "ETIMEDOUT"}, {"reconnects": 1}, "died"),
    ],
)
def test_one_word_for_each_flow(changes, report, word):
    assert verdict(flow(**changes), report) == word


def test_what_the_kernel_said_before_and_in_the_outage():
    tcp = connection(flow(), SEEN, KERNEL, Options())
    assert tcp is not None
    assert (tcp.rto_ns, tcp.rtt_ns) == (204 * NS_PER_MS, NS_PER_MS)
    assert (tcp.timeouts, tcp.backoff, tcp.retransmits) == (1, 1, 1)
    assert tcp.longest_rto_ns == 408 * NS_PER_MS
    assert tcp.wait_ns == 100 * NS_PER_MS


def test_the_deadline_is_the_nearest_of_all_limits():
    def survivable(**options):
        tcp = connection(flow(), SEEN, KERNEL, Options(**options))
        assert tcp is not None
        assert tcp.survivable_ns
        assert tcp.used == pytest.approx(300 * NS_PER_MS / tcp.survivable_ns)
        return tcp.survivable_ns

    assert survivable() > 800 * NS_PER_S
    assert survivable(timeout_ns=60 * NS_PER_S) == 60 * NS_PER_S
    assert 3 * NS_PER_S < survivable(user_timeout_ns=10 * NS_PER_S, timeout_ns=60 * NS_PER_S) <= 10 * NS_PER_S


def test_a_smaller_timer_saves_part_of_the_wait_and_no_more_than_it():
    tcp = connection(flow(), SEEN, KERNEL, Options())
    assert tcp is not None
    assert tcp.saved_ns is not None
    assert 0 < tcp.saved_ns <= 100 * NS_PER_MS
    nothing = connection(flow(wait_ms=0), SEEN, KERNEL, Options())
    assert nothing is not None
    assert nothing.saved_ns is None


def test_no_samples_say_nothing():
    assert connection(flow(), samples(), KERNEL, Options()) is None
