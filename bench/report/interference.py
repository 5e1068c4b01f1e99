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
    heading(console, "While memory was copied", "latencies and throughput before the migration, and during its rounds")
    rows = table(console, *HEADS, left=2)
    for cells in rows_of(items):
        shown = [clean(cell) for cell in cells]
        if all(cell == NOT_SEEN for cell in cells[8:10]):
            shown[8:11] = ["", "", ""]
        if all(cell == NOT_SEEN for cell in cells[2:4]):
            shown[2:8] = [""] * 6
        rows.add_row(*shown)
    show(console, rows)
