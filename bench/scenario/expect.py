"""What a scenario expects of its result: bounds on figures (:mod:`bench.figures`), read and validated.

One expectation is ``[STATISTIC(]FIGURE[)] OPERATOR BOUND``::

    downtime < 300ms              in every migration of the run
    mean(downtime) < 250ms        over all of them; median, p0 to p100, max, min, sum likewise
    flows.died == 0
    outage.p99 < 1s               the 99th percentile over the flows, in every migration

What was not observed holds no bound: a missing number fails.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.figures import Dimension, aggregate_of, figure_dimension, parse_value

EVERY: Final = "every"
_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_TEXT: Final = re.compile(
    r"\s*(?:(?P<statistic>[a-z0-9]+)\()?(?P<figure>[^()<>=!]+?)(?P<close>\))?\s*(?P<bound>[<>=!].*)"
)
_BOUND: Final = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Expectation:
    """One bound.

    :param statistic: of the figure over the migrations, or :data:`EVERY`.
    :param bound: in ns, bytes, bit/s or bytes/s where the *dimension* is one of these.
    """

    text: str
    statistic: str
    figure: str
    compare: str
    bound: float
    dimension: Dimension

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """:raises ValueError: with what is allowed, as one phrase."""
        match = _TEXT.fullmatch(text) if len(text) <= 300 else None
        bound = _BOUND.fullmatch(match["bound"]) if match is not None else None
        if match is None or bound is None or bool(match["statistic"]) != bool(match["close"]):
            raise ValueError("a bound such as 'downtime < 300ms' or 'mean(downtime) < 250ms'")
        statistic, figure = match["statistic"] or EVERY, match["figure"].strip()
        if statistic != EVERY:
            aggregate_of(statistic)
        number, dimension = parse_value(bound[2], figure_dimension(figure))
        return cls(" ".join(text.split()), statistic, figure, bound[1], number, dimension)

    def holds(self, value: float) -> bool:
        return _OPERATORS[self.compare](value, self.bound)


def flatten(table: Mapping[str, object], above: str = "") -> tuple[str, ...]:
    """``[expect]`` of a scenario as expectations' texts: ``downtime = "< 300ms"``, ``flows.died = "== 0"``, and lists.

    :raises ValueError: a value is neither a bound, nor a list of bounds, nor a table of them.
    """
    texts: list[str] = []
    for name, value in table.items():
        figure = f"{above}.{name}" if above else name
        if isinstance(value, Mapping):
            texts += flatten(value, figure)
            continue
        for bound in value if isinstance(value, list) else [value]:
            if not isinstance(bound, str):
                raise ValueError(f"a bound as text, such as '< 300ms', for {figure}")
            texts.append(f"{figure} {bound.strip()}")
    return tuple(texts)


def check_texts(value: object) -> object:
    """``[expect]`` as a table becomes a list of texts; of a stored scenario it is one. Each is an expectation.

    :raises ValueError: one of them is none.
    """
    texts = flatten(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
    for text in texts if isinstance(texts, tuple) else ():
        _require(text)
    return texts


def _require(text: object) -> None:
    try:
        Expectation.parse(str(text))
    except ValueError as error:
        raise ValueError(f"for {text!r}: {error}") from None
