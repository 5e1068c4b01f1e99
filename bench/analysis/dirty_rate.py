"""From a sample of dirty pages to the guest's :class:`~bench.analysis.model.DirtyCurve`. Pure.

A sample watches all pages for K intervals of equal length and counts for each page in how many of them it was written.
With independent writes at a rate *r*, a page is seen in each interval with the chance p = 1 - exp(-r * interval), so
its count is binomial, and the histogram of all pages' counts (those never seen included: the number of pages is known)
is a mixture of binomials. :func:`fit` finds its classes by expectation maximisation (Dempster, Laird, Rubin, 1977): a
hot set and the rest, and where pages were seen in most intervals, a class of those too. So few classes are on purpose:
a finer mixture fits the sample as well and what comes after it worse.

QEMU's ``calc-dirty-rate`` stops at the number of pages in one interval; how often the *same* pages come again is what
tells a hot set from a guest that writes everywhere, and so how the volume goes on growing in longer rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.analysis.model import DirtyCurve, PageClass
from bench.clock import NS_PER_S

Floats = npt.NDArray[np.float64]

_STEPS: Final = 1500
_TOLERANCE: Final = 1e-6  # relative change of the chances in a step
_LEAST_CHANCE: Final = 1e-9
_MOST_CHANCE: Final = 1 - 1e-6  # a page seen in each interval: its rate is known to be high, no more
_LEAST_PAGES: Final = 1e-3


def fit(histogram: Sequence[int], interval_ns: float) -> DirtyCurve:
    """The curve of a sample.

    :param histogram: element k: how many pages were written in exactly k of the len(histogram) - 1 intervals.
    :param interval_ns: the mean length of an interval.
    :raises ValueError: without any interval.
    """
    intervals = len(histogram) - 1
    if intervals < 1 or interval_ns <= 0:
        raise ValueError(f"a sample of {intervals} intervals of {interval_ns} ns")
    counts = np.asarray(histogram, dtype=np.float64)
    pages = float(counts.sum())
    if not counts[1:].sum():
        return DirtyCurve()
    weights, chances = _maximise(counts / pages, *_first_guess(counts / pages))
    rates = -np.log1p(-np.minimum(chances, _MOST_CHANCE)) * NS_PER_S / interval_ns
    return DirtyCurve(
        tuple(
            PageClass(weight * pages, rate)
            for weight, rate in zip(weights.tolist(), rates.tolist(), strict=True)
            if weight * pages >= _LEAST_PAGES and rate > 0
        )
    )


def _first_guess(shares: Floats) -> tuple[Floats, Floats]:
    """Weights and chances to start from: the rest, a hot set, and, if there are any, pages seen nearly always."""
    intervals = len(shares) - 1
    times = np.arange(intervals + 1)
    often = (times > intervals / 2) & (intervals > 1)
    seldom = np.where(often, 0.0, shares)
    mean = float(seldom @ times)
    # How often a page that was seen once is seen again: its own chance, not that of the others.
    again = float(seldom @ (times * (times - 1))) / mean / max(1, intervals - 1) if mean else 0.0
    hot = min(0.9, 2 * float(seldom[1:].sum()))
    weights = [1 - hot, hot]
    chances = [max(mean / intervals / 10, _LEAST_CHANCE), max(again, mean / intervals, _LEAST_CHANCE)]
    if shares[often].sum():
        always = float(shares[often].sum())
        weights = [weight * (1 - always) for weight in weights] + [always]
        chances.append(min(float(shares[often] @ times[often]) / always / intervals, _MOST_CHANCE))
    return np.array(weights), np.array(chances)


def _maximise(shares: Floats, weights: Floats, chances: Floats) -> tuple[Floats, Floats]:
    times = np.arange(len(shares), dtype=np.float64)
    ways = _ways(len(shares) - 1)
    for _ in range(_STEPS):
        seen = np.clip(chances, _LEAST_CHANCE, _MOST_CHANCE)
        log_likely = np.outer(times, np.log(seen)) + np.outer(times[::-1], np.log1p(-seen))
        likely = np.exp(ways[:, np.newaxis] + log_likely) * weights
        belongs = likely * (shares / np.maximum(likely.sum(axis=1), 1e-300))[:, np.newaxis]
        weights = belongs.sum(axis=0)
        before, chances = chances, (times @ belongs) / np.maximum(weights * times[-1], 1e-300)
        if np.all(np.abs(chances - before) <= _TOLERANCE * chances + _LEAST_CHANCE * _TOLERANCE):
            break
    return weights, chances


def _ways(trials: int) -> Floats:
    """The logarithm of "trials choose k" for k from 0 to *trials*."""
    steps = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, trials + 1, dtype=np.float64)))))
    ways: Floats = steps[trials] - steps - steps[::-1]
    return ways
