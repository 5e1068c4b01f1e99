"""The survival map for a terminal: one row for each kind of connection, one column for each outage."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.report.text import clean, duration, heading
from bench.survival.result import CellResult, SurvivalResult, VariantResult

MAX_COLUMNS: Final = 12
MAX_DISAGREEING: Final = 20


def print_survival(result: SurvivalResult, console: Console) -> None:
    """Print the map, the limits of each kind of connection, and the cells that theory does not explain."""
    if result.title:
        console.print(Text(clean(result.title), style="bold"))
    _print_map(result, console)
    _print_limits(result.variants, console)
    _print_agreement(result, console)
    for reason in result.trust.reasons:
        console.print(Text(f"not to be trusted: {clean(reason)}", style="bold red"))


def _print_map(result: SurvivalResult, console: Console) -> None:
    heading(console, "Stall by outage", "until data got through again; x: the connection died; *: theory differs")
    outages = sorted({cell.outage_ns for cell in result.cells})[:MAX_COLUMNS]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("sends first: connection", overflow="fold")
    for outage_ns in outages:
        shown.add_column(duration(outage_ns), justify="right", no_wrap=True)
    for variant in result.variants:
        cells = [cell for cell in result.cells if cell.variant == variant.variant]
        row = [_entry([cell for cell in cells if cell.outage_ns == outage_ns]) for outage_ns in outages]
        shown.add_row(clean(variant.variant), *row)
    console.print(shown)


def _entry(cells: Sequence[CellResult]) -> Text:
    stalls = [cell.stall_ns for cell in cells if cell.stall_ns is not None]
    if not stalls:
        return Text("-")
    died = any(cell.fate == "died" for cell in cells)
    mark = ("x" if died else "") + ("*" if any(cell.agrees is False for cell in cells) else "")
    return Text(duration(int(median(stalls))) + mark, style="red" if died else "")


def _print_limits(variants: Sequence[VariantResult], console: Console) -> None:
    heading(console, "Deadlines", "the longest outage that a connection survived, and could survive by theory")
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("sends first: connection", overflow="fold")
    for name in ("survived", "died of", "theory's limit"):
        shown.add_column(name, justify="right", no_wrap=True)
    for variant in variants:
        times = (variant.longest_survived_ns, variant.shortest_died_ns, variant.longest_survivable_ns)
        shown.add_row(clean(variant.variant), *("-" if value is None else duration(value) for value in times))
    console.print(shown)


def _print_agreement(result: SurvivalResult, console: Console) -> None:
    if result.agreement is not None:
        console.print(
            f"\nTheory and measurement agree within 5 % or 20 ms in {result.agreement:.1%} of the {result.compared} "
            "cells with data in flight."
        )
    odd = [cell for cell in result.cells if cell.agrees is False]
    for cell in odd[:MAX_DISAGREEING]:
        theory = cell.theory
        said = "-" if theory is None else f"{theory.fate} {duration(theory.stall_ns)}"
        seen = "-" if cell.stall_ns is None else f"{cell.fate} {duration(cell.stall_ns)}"
        why = f": {cell.reason}" if cell.reason else ""
        console.print(
            Text(
                f"  differs: {clean(cell.variant)}, outage {duration(cell.outage_ns)}: theory {said}, seen {seen}{why}"
            )
        )
