"""Statistics of samples: intervals, and whether two sets of samples differ. Pure.

Nothing here takes a distribution for granted. Intervals of quantiles come from order statistics (David and Nagaraja,
Order Statistics, 3rd ed., 7.1), those of means from Student's t. Two sets are compared by a permutation test on the
difference of their means, and the interval of the difference is what the same test does not reject (Garthwaite,
Confidence intervals from randomization tests, Biometrics 52, 1996): test and interval never contradict each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final

import numpy as np
import numpy.typing as npt

CONFIDENCE: Final = 0.95
POWER: Final = 0.8
EXACT: Final = 20_000
"""Up to so many ways to divide the samples, each is looked at; beyond, :data:`RESAMPLES` random ones."""
RESAMPLES: Final = 20_000
MAX_MORE: Final = 10_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; an end that too few samples leave open is infinite."""

    low: float
    high: float

    @property
    def closed(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


def interval_of_mean(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t. Open with fewer than two samples."""
    if len(samples) < 2:
        return Interval(-math.inf, math.inf)
    from scipy.special import stdtrit  # noqa: PLC0415 - half a second that few commands need

    half = float(stdtrit(len(samples) - 1, (1 + confidence) / 2)) * stdev(samples) / math.sqrt(len(samples))
    centre = fmean(samples)
    return Interval(centre - half, centre + half)


def interval_of_quantile(samples: Sequence[float], share: float, confidence: float = CONFIDENCE) -> Interval:
    """Between two order statistics that enclose the quantile with at least *confidence*, whatever the distribution.

    Each side may miss with (1 - confidence) / 2; a side for which there are too few samples stays open.
    """
    ordered, count, risk = sorted(samples), len(samples), (1 - confidence) / 2
    share = min(max(share, 1e-12), 1 - 1e-12)
    chances = math.log(share), math.log1p(-share)
    below = [
        math.exp(
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * chances[0]
            + (count - k) * chances[1]
        )
        for k in range(count + 1)
    ]
    cumulated = list(itertools.accumulate(below))  # P(at most k samples lie below the quantile)
    low = max((k for k in range(count) if cumulated[k] <= risk), default=None)
    high = min((k for k in range(count) if 1 - cumulated[k] <= risk), default=None)
    return Interval(-math.inf if low is None else ordered[low], math.inf if high is None else ordered[high])


@dataclass(frozen=True)
class Difference:
    """Set *b* against set *a*.

    :param difference: mean of b - mean of a, with its *interval*.
    :param p_value: two-sided, of the permutation test.
    :param more: how many more samples of each would tell, if what was seen is what there is; None: it was told, or no
        number would (no difference was seen), or more than :data:`MAX_MORE`.
    """

    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    p_value: float
    more: int | None


class Divisions:
    """The ways to divide ``count_a + count_b`` samples anew: all of them, or random ones. Shared between figures.

    :ivar exact: all are looked at.
    """

    def __init__(self, count_a: int, count_b: int, seed: int = 1) -> None:
        """:raises ValueError: one side has no sample."""
        if count_a < 1 or count_b < 1:
            raise ValueError("at least one sample of each")
        self.count_a, self.count_b = count_a, count_b
        total = count_a + count_b
        self.exact = math.comb(total, count_b) <= EXACT
        if self.exact:
            chosen = np.array(list(itertools.combinations(range(total), count_b)))
        else:
            ranks = np.random.default_rng(seed).random((RESAMPLES, total), dtype=np.float32)
            chosen = np.argpartition(ranks, count_b - 1, axis=1)[:, :count_b]
        members = np.zeros((len(chosen), total))
        np.put_along_axis(members, chosen, 1.0, axis=1)
        if not self.exact:  # the division that was seen is one of them, or a p-value could be 0
            members[0] = [0.0] * count_a + [1.0] * count_b
        self._members = members
        # How many of b's samples stay in b: shifting b by d moves a division's statistic by what is exchanged.
        stay = members[:, count_a:].sum(axis=1)
        self._exchanged = (count_b - stay) * (1 / count_a + 1 / count_b)

    def compare(self, a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
        """:raises ValueError: not as many samples as it was made for."""
        if (len(a), len(b)) != (self.count_a, self.count_b):
            raise ValueError(f"{self.count_a} and {self.count_b} samples")
        pooled = np.array([*a, *b], dtype=np.float64)
        centre = float(pooled.mean())
        sums = self._members @ (pooled - centre)  # a common offset would cost digits
        seen = fmean(b) - fmean(a)
        statistic = sums * (1 / self.count_a + 1 / self.count_b)  # the sum of both groups is 0
        slack = 1e-9 * (float(np.abs(statistic).max()) or 1.0)
        above, below = float(np.mean(statistic >= seen - slack)), float(np.mean(statistic <= seen + slack))
        p_value = min(1.0, 2 * min(above, below))
        return Difference(
            mean_a=fmean(a),
            mean_b=fmean(b),
            difference=seen,
            interval=self._interval(statistic, seen, confidence),
            p_value=p_value,
            more=None if p_value <= 1 - confidence else samples_that_would_tell(a, b, confidence),
        )

    def _interval(self, statistic: Floats, seen: float, confidence: float) -> Interval:
        """A shift d of b is rejected when too few divisions are as extreme; each division stops being so at one d."""
        same = self._exchanged == 0
        turns = np.sort((seen - statistic[~same]) / self._exchanged[~same])
        # As many divisions as must be more extreme, those that exchange nothing being as extreme as any.
        spare = math.floor((1 - confidence) / 2 * len(statistic) + 1e-9) - int(same.sum())
        if spare < 0 or len(turns) == 0:
            return Interval(-math.inf, math.inf)
        return Interval(float(turns[spare]), float(turns[-1 - spare]))


def samples_that_would_tell(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> int | None:
    """How many more of each are likely (:data:`POWER`) to tell a difference such as was seen; None: too many.

    By the normal approximation for two equally large sets, and at least as many as let the permutation test tell.
    """
    risk = 1 - confidence
    least = next(count for count in itertools.count(2) if 2 / math.comb(2 * count, count) <= risk)
    seen = abs(fmean(b) - fmean(a))
    spread = [value for samples in (a, b) if len(samples) > 1 for value in [stdev(samples) ** 2]]
    needed = float(least)
    if spread:
        if seen == 0:
            return None
        normal = NormalDist()
        factor = normal.inv_cdf(1 - risk / 2) + normal.inv_cdf(POWER)
        needed = max(needed, math.ceil(2 * factor**2 * fmean(spread) / seen**2))
    more = needed - min(len(a), len(b))
    return None if more > MAX_MORE else max(1, int(more))
