"""What a variable did, as one sentence: a power law fitted to what was measured. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FLAT: Final = 0.1  # an exponent below that is none
STEADY: Final = 1.5  # the largest by the smallest of what does not change
GOOD: Final = 0.7  # the share of the variance that a law has to explain to be told as one


@dataclass(frozen=True, slots=True)
class Law:
    """y = constant * x ** exponent; *explained* is the share of the variance of log y that it explains (R squared)."""

    exponent: float
    constant: float
    explained: float


def power_law(points: Sequence[tuple[float, float]]) -> Law | None:
    """Least squares in logarithms. None when fewer than three different positive x have a positive y."""
    positive = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _y in positive}) < 3:
        return None
    xs, ys = [x for x, _y in positive], [y for _x, y in positive]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in positive) / sum((x - mean_x) ** 2 for x in xs)
    around = sum((y - mean_y) ** 2 for y in ys)
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in positive)
    return Law(slope, math.exp(mean_y - slope * mean_x), 1 - left / around if around > 1e-12 else 1.0)


def _spread(middle: Sequence[tuple[float, float]]) -> float:
    """The largest by the smallest; infinite when that is 0."""
    values = [y for _x, y in middle]
    return max(values) / min(values) if min(values) > 0 else math.inf


def sentence(what: str, variable: str, points: Sequence[tuple[float, float]]) -> str:
    """What the variable did to *what* (``"total time"``).

    :param points: (value of the variable, what was measured), any number for each value.
    """
    by_value: dict[float, list[float]] = {}
    for x, y in points:
        by_value.setdefault(x, []).append(y)
    middle = sorted((x, statistics.median(ys)) for x, ys in by_value.items())
    if len(middle) < 2:
        return f"{what} was measured at fewer than two values of {variable}"
    first, last = middle[0][1], middle[-1][1]
    law = power_law(points)
    if law is None or law.explained < GOOD:
        if law is not None and abs(law.exponent) < FLAT and _spread(middle) < STEADY:
            return f"{what} does not depend on {variable} (exponent {law.exponent:+.2f})"
        ratio = last / first if first > 0 else math.inf
        said = f"{what} follows no power of {variable}: at its highest value it is {ratio:.2f} times that at its lowest"
        if law is None:
            return said
        return f"{said} (the best exponent, {law.exponent:+.2f}, explains {100 * max(0, law.explained):.0f} %)"
    if abs(law.exponent) < FLAT:
        return f"{what} does not depend on {variable} (exponent {law.exponent:+.2f})"
    if abs(law.exponent + 1) < 0.2:
        return f"{what} grows as 1/{variable}: exponent {law.exponent:.2f}"
    if abs(law.exponent - 1) < 0.2:
        return f"{what} grows in proportion to {variable}: exponent {law.exponent:.2f}"
    return f"{what} {'grows' if law.exponent > 0 else 'falls'} with {variable}: exponent {law.exponent:.2f}"
