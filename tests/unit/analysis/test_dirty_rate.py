"""From counts of pages back to the workload that made them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.analysis.dirty_rate import fit
from bench.analysis.model import DirtyCurve
from bench.clock import NS_PER_MS, NS_PER_S

PAGES = 131_072
WRITES_PER_S = 10_240
HOT = 16_384
INTERVALS = 20
INTERVAL_NS = 50 * NS_PER_MS


def histogram(pick, pages: int = PAGES) -> list[int]:
    """How often pages are seen when *pick* (interval -> page numbers written in it) writes."""
    times = np.zeros(pages, dtype=np.int64)
    for number in range(INTERVALS):
        times[np.unique(pick(number))] += 1
    return np.bincount(times, minlength=INTERVALS + 1).tolist()


@pytest.mark.parametrize("always", [0, 20])
def test_a_hot_set_is_told_from_the_rest_and_its_growth_foreseen(always):
    random = np.random.default_rng(1)
    count = WRITES_PER_S * INTERVAL_NS // NS_PER_S

    def pick(_number):
        pages = random.integers(0, PAGES, count)
        hot = random.random(count) < 0.9
        pages[hot] = random.integers(0, HOT, int(hot.sum()))
        return np.concatenate((pages, np.arange(always)))

    curve = fit(histogram(pick), INTERVAL_NS)
    true = DirtyCurve.hot_set(PAGES, WRITES_PER_S, HOT, 0.9)
    for seconds in (0.05, 1, 3, 6):
        assert curve.pages_in(seconds * NS_PER_S) == pytest.approx(true.pages_in(seconds * NS_PER_S), rel=0.1, abs=30)
    assert curve.working_set_pages == pytest.approx(HOT, rel=0.3)


def test_a_guest_that_writes_everywhere_has_no_small_working_set():
    random = np.random.default_rng(2)
    curve = fit(histogram(lambda _: random.integers(0, PAGES, 512)), INTERVAL_NS)
    assert curve.working_set_pages > PAGES / 2
    assert curve.writes_per_s == pytest.approx(WRITES_PER_S, rel=0.05)


def test_a_guest_that_writes_nothing_or_always_the_same():
    assert fit([PAGES, *[0] * INTERVALS], INTERVAL_NS) == DirtyCurve()
    burning = fit(histogram(lambda _: np.arange(100)), INTERVAL_NS)
    assert burning.pages_in(INTERVAL_NS) == pytest.approx(100, rel=0.01)
    assert burning.pages_in(60 * NS_PER_S) == pytest.approx(100, rel=0.01)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 25).flatmap(lambda k: st.lists(st.integers(0, 10_000), min_size=k + 1, max_size=k + 1)))
def test_whatever_was_seen_the_curve_passes_through_its_first_point(counts):
    curve = fit(counts, INTERVAL_NS)
    seen = sum(times * pages for times, pages in enumerate(counts)) / (len(counts) - 1)
    assert curve.pages_in(INTERVAL_NS) == pytest.approx(seen, rel=0.01, abs=0.1)
    assert curve.written_pages <= sum(counts) * (1 + 1e-6)


def test_a_sample_without_an_interval_is_refused():
    with pytest.raises(ValueError, match="0 intervals"):
        fit([10], INTERVAL_NS)
