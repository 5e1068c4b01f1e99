"""What ``bench dirty-rate`` found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report.text import byte_rate, duration, heading, show, table
from bench.units import format_bytes

PAGE_BYTES = 4096


def print_dirty_rate(found: Mapping[str, Any], console: Console) -> None:
    """*found* as :func:`bench.forecasting.describe` makes it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    grid.add_row(
        "dirty rate", f"{format_bytes(found['dirty_bytes_per_s'])}/s", "memory modified, by the shortest interval"
    )
    grid.add_row(
        "working set", format_bytes(found["working_set_bytes"]), "pages that take 80 % of the writes; estimated"
    )
    grid.add_row("memory", format_bytes(found["pages"] * PAGE_BYTES), f"of which {_zero(found)} zero pages")
    grid.add_row("sample", duration(found["sample_ns"]), f"{found['intervals']} intervals, by {found['method']}")
    console.print(grid)
    heading(console, "Distinct pages", "written in so long; model: what predictions use")
    rows = table(console, "time", "pages", "model", "size", "rate", left=0)
    for span in found["spans"]:
        seen = span["pages"]
        rows.add_row(
            duration(span["duration_ns"]),
            "" if seen is None else f"{seen:,.0f}",
            f"{span['model_pages']:,.0f}",
            format_bytes(round((span["model_pages"] if seen is None else seen) * PAGE_BYTES)),
            byte_rate(round((span["model_pages"] if seen is None else seen) * PAGE_BYTES), span["duration_ns"]),
        )
    show(console, rows)


def _zero(found: Mapping[str, Any]) -> str:
    return f"{found['zero_pages'] / found['pages']:.0%}"
