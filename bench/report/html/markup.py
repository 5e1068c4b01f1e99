"""HTML that cannot be broken by what it shows: every text is escaped unless it is :class:`Markup` already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from bench.report.text import clean

_VOID = frozenset(("meta", "br", "hr", "img", "input"))


class Markup(str):
    """HTML, not text."""

    __slots__ = ()


def text(value: object) -> Markup:
    """*value* as text on one line; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(str(value))))


def lines(value: str) -> Markup:
    """Text of several lines, for ``pre``."""
    return Markup("\n".join(html.escape(clean(line)) for line in value.splitlines()))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: ``class_`` is ``class``, ``data_x`` is ``data-x``; None and False leave one out."""
    shown = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        shown.append(attribute if value is True else f'{attribute}="{html.escape(clean(str(value)))}"')
    opening = " ".join([name, *shown])
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{''.join(text(child) for child in children if child is not None)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """All *parts* one after the other; None is left out."""
    return Markup("".join(text(part) for part in parts if part is not None))


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, left: int = 1, marks: Sequence[str] = ()
) -> Markup:
    """A table that scrolls sideways where it does not fit; all but the first *left* columns hold numbers.

    :param marks: a CSS class for each row, empty for none.
    """

    def cell(name: str, at: int, value: object) -> Markup:
        return tag(name, value, class_=None if at < left else "number")

    header = tag("tr", *(tag("th", value, class_=None if at < left else "number") for at, value in enumerate(head)))
    body = [
        tag(
            "tr",
            *(cell("td", at, value) for at, value in enumerate(row)),
            class_=marks[number] if number < len(marks) else None,
        )
        for number, row in enumerate(rows)
    ]
    return tag("div", tag("table", tag("thead", header), tag("tbody", *body)), class_="scroll")
