"""What post-copy did and how long the guest waited for pages: from the ``cost`` of a migration's result alone.

A result may have come from anywhere: what is missing there, or no number, is left out. See
:mod:`bench.migration.driver` for what the engines write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from bench.report.text import bar, count, duration, fancy, heading, show, table

MAX_BUCKETS: Final = 64
REMARK: Final = "fault: the guest touched a page that was not there, and waited for it"
_BAR_WIDTH: Final = 30


@dataclass(frozen=True, slots=True)
class PostCopy:
    """One migration's.

    :param counts: in words, most telling first.
    :param waits: the same of how long faults took; empty when there were none.
    :param median_ns: of the faults.
    :param buckets: upper bound in ns, faults that took up to that and longer than the bound before.
    """

    counts: tuple[str, ...]
    waits: tuple[str, ...]
    median_ns: int | None
    buckets: tuple[tuple[int, int], ...]


def post_copy(cost: Mapping[str, Any]) -> PostCopy | None:
    """None for a migration that did not come to it."""
    found = cost.get("postcopy")
    if not isinstance(found, dict):
        return None
    told = found.get("fault_latency")
    latency = told if isinstance(told, dict) else {}
    named = {
        "pages_pushed": "pushed",
        "pages_on_demand": "asked for by a fault",
        "duplicates": "crossed twice",
        "zero_pages": "of zeros",
    }
    counts = [
        f"{count(value, 'page')} {words}" for key, words in named.items() if (value := _number(found, key)) is not None
    ]
    pauses = _number(found, "pauses")
    if pauses:
        counts.append(f"{count(pauses, 'pause')} for want of a network")
    quantiles = {"p50_ns": "median", "p99_ns": "99th percentile", "max_ns": "longest"}
    waits = [
        f"{words} {duration(value)}" for key, words in quantiles.items() if (value := _number(latency, key)) is not None
    ]
    return PostCopy(tuple(counts), tuple(waits), _number(latency, "p50_ns"), _buckets(latency))


def print_post_copy(cost: Mapping[str, Any], console: Console) -> None:
    """The section of one migration, if it came to post-copy."""
    found = post_copy(cost)
    if found is None:
        return
    heading(console, "Post-copy", REMARK)
    console.print(", ".join(found.counts), highlight=False)
    console.print(", ".join(found.waits) if found.waits else "the guest never waited for a page", highlight=False)
    if not found.buckets:
        return
    rows = table(console, "waited up to", "faults", "", left=0)
    rows.columns[-1].justify = "left"
    most = max(faults for _, faults in found.buckets)
    for bound_ns, faults in found.buckets:
        rows.add_row(duration(bound_ns), f"{faults:,}", bar(faults, most, _BAR_WIDTH, blocks=fancy(console)))
    show(console, rows)


def _number(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _buckets(latency: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    told = latency.get("histogram")
    pairs = told[:MAX_BUCKETS] if isinstance(told, list) else []
    return tuple(
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(item, int) and item >= 0 for item in pair)
    )
