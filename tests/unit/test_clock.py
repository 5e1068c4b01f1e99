from __future__ import annotations

import pytest

from bench.clock import NS_PER_MS, Deadline, wait_until
from bench.errors import DeadlineError


def test_a_deadline_never_has_less_than_nothing_left():
    deadline = Deadline(0)
    assert deadline.expired
    assert deadline.remaining_ns == 0


def test_waiting_ends_when_the_condition_holds():
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), Deadline(10**9), "third time", interval_ns=1000)


def test_a_missed_deadline_names_what_was_awaited():
    with pytest.raises(DeadlineError, match=r"s1 connected: not within 0\.005 s"):
        wait_until(lambda: False, Deadline(5 * NS_PER_MS), "s1 connected", interval_ns=1000)
