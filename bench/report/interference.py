"""What the copying did to clients and disks, for the summary."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bench.report.text import NOT_SEEN, clean, duration, heading, show, table
from bench.result import InterferenceResult
from bench.units import format_bit_rate


def rows_of(items: Sequence[InterferenceResult]) -> list[list[str]]:
    """Name, host, and for each of median, 99th percentile and throughput: before, while copying, their ratio."""
    rows = []
    for item in items:
        cells = [item.name, item.host]
        for show_value, before, copying in (
            (duration, item.before.median_ns, item.copying.median_ns),
            (duration, item.before.p99_ns, item.copying.p99_ns),
            (format_bit_rate, item.before.bps, item.copying.bps),
        ):
            known = before is not None and copying is not None
            cells += [NOT_SEEN if value is None else show_value(value) for value in (before, copying)]
            cells.append(f"x {copying / before:.2f}" if known and before and copying is not None else "")
        rows.append(cells)
    return rows


HEADS = (
    *("flow, disk", "host", "median\nbefore", "while\ncopying", ""),
    *("99 %\nbefore", "while\ncopying", "", "throughput\nbefore", "while\ncopying", ""),
)


def print_interference(items: Sequence[InterferenceResult], console: Console) -> None:
    """One line for each flow and disk."""
    heading(console, "While memory was copied", "two values: before the migration / during its rounds")
    rows = table(console, "flow, disk", "median latency", "", "99 % of requests", "throughput", left=1)
    for item in items:
        name, _host, *cells = rows_of([item])[0]
        median, more, p99, throughput = f"{cells[0]} / {cells[1]}", cells[2], f"{cells[3]} / {cells[4]}", cells[6]
        if item.before.median_ns is None and item.copying.median_ns is None:
            median = p99 = more = ""
        throughput = "" if item.before.bps is None else f"{throughput} {cells[8]}"
        rows.add_row(*(clean(text) for text in (name, median, more, p99, throughput)))
    show(console, rows)
