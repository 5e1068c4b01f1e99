from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.analysis.samples import Divisions, interval_of_mean, interval_of_quantile, samples_that_would_tell

NUMBERS = st.lists(st.integers(0, 1000), min_size=2, max_size=6)


def test_the_mean_s_interval_is_student_s() -> None:
    samples = [4.0, 5.0, 7.0, 11.0]
    found = interval_of_mean(samples)
    expected = stats.t.interval(0.95, 3, loc=np.mean(samples), scale=stats.sem(samples))
    assert (found.low, found.high) == pytest.approx(expected)
    assert not interval_of_mean([1.0]).closed


def test_a_median_s_interval_is_between_order_statistics() -> None:
    assert not interval_of_quantile([1.0] * 5, 0.5).closed  # 5 samples cannot give 95 %
    found = interval_of_quantile([float(number) for number in range(6)], 0.5)
    assert (found.low, found.high) == (0, 5)  # 6 can: 1 - 2 / 2**6
    tail = interval_of_quantile([float(number) for number in range(20)], 0.99)
    assert tail.high == math.inf
    assert interval_of_quantile([float(number) for number in range(3000)], 0.5).closed


def test_the_median_s_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        interval = interval_of_quantile(list(rng.exponential(1, 15)), 0.5)
        covered += interval.low <= math.log(2) <= interval.high
    assert covered >= 0.94 * 400


@given(NUMBERS, NUMBERS)
@settings(max_examples=60, deadline=None)
def test_the_p_value_is_that_of_the_exact_permutation_test(a: list[int], b: list[int]) -> None:
    found = Divisions(len(a), len(b)).compare(a, b)
    expected = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), n_resamples=np.inf, vectorized=True
    )
    assert found.p_value == pytest.approx(min(1.0, expected.pvalue), abs=1e-9)


@given(NUMBERS, NUMBERS, st.integers(-500, 500))
@settings(max_examples=60, deadline=None)
def test_the_interval_is_what_the_test_does_not_reject(a: list[int], b: list[int], shift: int) -> None:
    divisions = Divisions(len(a), len(b))
    interval = divisions.compare(a, b, 0.8).interval
    p_value = divisions.compare(a, [value - shift for value in b]).p_value
    tolerance = 1e-6
    if interval.low + tolerance < shift < interval.high - tolerance:
        assert p_value > 0.2
    elif shift < interval.low - tolerance or shift > interval.high + tolerance:
        assert p_value <= 0.2 + 1e-9


def test_a_difference_of_many_samples_is_told() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(100, 10, 100), rng.normal(110, 10, 100)
    found = Divisions(100, 100).compare(list(a), list(b))
    assert found.p_value < 0.001
    assert found.interval.low > 5
    assert found.interval.high < 15
    assert found.more is None


def test_too_few_say_how_many_more_would() -> None:
    found = Divisions(3, 3).compare([10, 11, 12], [20, 21, 22])
    assert found.p_value == pytest.approx(0.1)  # the least that 3 and 3 can give
    assert found.interval.low == -math.inf
    assert found.more == 1  # 4 and 4 can give 2 / 70
    assert samples_that_would_tell([1, 2, 3], [3, 2, 1]) is None
    more = samples_that_would_tell([0, 10, 20], [2, 12, 22])
    assert more is not None
    assert more > 100
