"""A variable's plot as a picture that needs nothing else: SVG, measured beside what the model expects. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from bench.clock import NS_PER_MS
from bench.variables.experiment import Swept

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 30, 50
SERIES: Final = (
    ("total_ns", "total time", "#1f6feb", ""),
    ("transfer_ns", "transfer", "#1a7f37", ""),
    ("expected_transfer_ns", "transfer, expected", "#1a7f37", "5 4"),
    ("downtime_ns", "downtime", "#d1242f", ""),
    ("expected_downtime_ns", "downtime, expected", "#d1242f", "5 4"),
    ("outage_ns", "longest outage", "#8250df", ""),
)


def draw(swept: Swept) -> str:
    """The SVG; y is logarithmic (ms), and so is x unless a value is 0."""
    values = [point.value for point in swept.points]
    lines = {
        name: [(point.value, ns / NS_PER_MS) for point in swept.points if (ns := point.middle(name)) and ns > 0]
        for name, *_rest in SERIES
    }
    heights = [y for line in lines.values() for _x, y in line]
    if not values or not heights:
        return _svg([_text(WIDTH / 2, HEIGHT / 2, "nothing was measured", "middle")])
    place_x = _scale(values, LEFT, WIDTH - RIGHT, logarithmic=min(values) > 0)
    place_y = _scale([10 ** math.floor(math.log10(min(heights))), max(heights)], HEIGHT - BOTTOM, TOP, logarithmic=True)
    parts = [_text(LEFT, 18, swept.variable.name, "start", bold=True)]
    for value in values:
        parts.append(_line([(place_x(value), TOP), (place_x(value), HEIGHT - BOTTOM)], "#d0d7de"))
        parts.append(_text(place_x(value), HEIGHT - BOTTOM + 18, f"{value:g}", "middle"))
    for power in range(math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights))) + 1):
        if 10**power <= max(heights):
            parts.append(_line([(LEFT, place_y(10**power)), (WIDTH - RIGHT, place_y(10**power))], "#d0d7de"))
            parts.append(_text(LEFT - 8, place_y(10**power) + 4, f"{10**power:g} ms", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, swept.variable.unit, "middle"))
    for number, (name, caption, colour, dashes) in enumerate(SERIES):
        placed = [(place_x(x), place_y(y)) for x, y in lines[name]]
        if not placed:
            continue
        parts.append(_line(placed, colour, width=2, dashes=dashes))
        if not dashes:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        y = TOP + 14 + 20 * number
        parts.append(_line([(WIDTH - RIGHT + 12, y), (WIDTH - RIGHT + 36, y)], colour, width=2, dashes=dashes))
        parts.append(_text(WIDTH - RIGHT + 42, y + 4, caption, "start"))
    return _svg(parts)


class _scale:  # noqa: N801 - used as a function
    def __init__(self, values: Sequence[float], begin: float, end: float, *, logarithmic: bool) -> None:
        self._of = math.log10 if logarithmic else float
        self._low, self._high = self._of(min(values)), self._of(max(values))
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        span = self._high - self._low
        share = (self._of(value) - self._low) / span if span else 0.5
        return self._begin + share * (self._end - self._begin)


def _svg(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif"'
    body = "\n".join(parts)
    return f'{head} font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _line(points: Sequence[tuple[float, float]], colour: str, *, width: int = 1, dashes: str = "") -> str:
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
