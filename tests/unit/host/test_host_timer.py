"""Real-time scheduling for a moment."""

from __future__ import annotations

import os

import pytest

from bench.host.timer import uninterrupted


def test_scheduling_is_as_before_whatever_happens() -> None:
    before = os.sched_getscheduler(0)
    with uninterrupted(1):
        assert os.sched_getscheduler(0) in (before, os.SCHED_RR)
    assert os.sched_getscheduler(0) == before
    with pytest.raises(ValueError, match="why"), uninterrupted(1):
        raise ValueError("why")
    assert os.sched_getscheduler(0) == before


def test_without_the_permission_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    done = []
    with uninterrupted(1):
        done.append(1)
    assert done == [1]
