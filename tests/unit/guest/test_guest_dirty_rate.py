"""Counting pages over intervals and stretches of them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.clock import Deadline
from bench.errors import BenchError, GuestError
from bench.guest.dirty_rate import INTERVALS, _count_zero, _Seen, sample_dirty, sample_together
from bench.memory.image import GuestMemory


def test_pages_are_counted_by_interval_and_distinct_over_stretches():
    seen = _Seen(pages=10, intervals=4)
    seen.now.set_all()  # before the first interval: counts for nothing
    seen.begin()
    start_ns = seen._ends_ns[0]
    for number, pages in enumerate(([0, 1], [0, 2], [0], []), 1):
        seen.now.set_pages(np.array(pages, dtype=np.int64))
        seen.end_interval(start_ns + number * 100)
    assert seen.histogram() == (7, 2, 0, 1, 0)
    assert [(span.duration_ns, span.pages) for span in seen.spans()] == [(100, 1.25), (200, 2.0)]
    assert seen.elapsed_ns == 400


@pytest.mark.parametrize("page_count", [64, 20_000])
def test_zero_pages_are_counted_or_estimated(page_count):
    with GuestMemory.create(page_count * 4096) as memory:
        assert _count_zero(memory) == page_count
        memory.words[: page_count // 4, 7] = 1
        assert _count_zero(memory) == pytest.approx(page_count * 3 / 4, rel=0.05)


@pytest.mark.parametrize("duration_ns", [0, 10**6, 10**12])
def test_a_sample_too_short_or_long_is_refused_before_anything_is_done(tmp_path, duration_ns):
    def wait(_until: Deadline) -> None:
        raise AssertionError

    with pytest.raises(GuestError, match="dirty-rate sample"):
        sample_dirty(tmp_path / "nobody.sock", duration_ns, wait)


def test_a_guest_that_is_not_there_keeps_no_other_from_being_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.guest.dirty_rate.CONNECT_NS", 1)
    monkeypatch.setattr("bench.guest.dirty_rate.probe", lambda: "pagemap-scan")
    waits = []
    found = sample_together([tmp_path / "nobody.sock", tmp_path / "none.sock"], 100_000_000, waits.append)
    assert len(waits) == INTERVALS
    assert all(isinstance(one, BenchError) for one in found)
