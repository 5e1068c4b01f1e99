"""The survival map for a terminal: one row for each kind of connection, one column for each outage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.report.text import clean, duration, heading
from bench.survival.result import CellResult, SurvivalResult, VariantResult

MAX_COLUMNS: Final = 12
_CONNECTION: Final = "sends first: connection"
_ENTRY_WIDTH: Final = 9  # "13.7 sx*" and a space
MAX_DISAGREEING: Final = 20


def print_survival(result: SurvivalResult, console: Console) -> None:
    """Print the map, the limits of each kind of connection, and the cells that theory does not explain."""
    if result.title:
        console.print(Text(clean(result.title), style="bold"))
    _print_map(result, console)
    _print_limits(result.variants, console)
    _print_tax(result, console)
    _print_agreement(result, console)
    for reason in result.trust.reasons:
        console.print(Text(f"not to be trusted: {clean(reason)}", style="bold red"))


def _print_map(result: SurvivalResult, console: Console) -> None:
    heading(console, "Stall by outage", "until data got through again; x: the connection died; *: theory differs")
    outages = sorted({cell.outage_ns for cell in result.cells})[:MAX_COLUMNS]
    names = [clean(variant.variant) for variant in result.variants]
    width = max(map(len, [_CONNECTION, *names]))
    at_once = max(2, (console.width - width - 1) // _ENTRY_WIDTH)
    for first in range(0, len(outages), at_once):  # a table is wide: its outages come in as many parts as it takes
        part = outages[first : first + at_once]
        if first:
            console.print()
        shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column(_CONNECTION, overflow="fold", min_width=min(width, console.width // 2))
        for outage_ns in part:
            shown.add_column(_short(outage_ns), justify="right", no_wrap=True, min_width=_ENTRY_WIDTH - 1)
        for name, variant in zip(names, result.variants, strict=True):
            cells = [cell for cell in result.cells if cell.variant == variant.variant]
            row = [_entry([cell for cell in cells if cell.outage_ns == outage_ns]) for outage_ns in part]
            shown.add_row(name, *row)
        console.print(shown)


def _entry(cells: Sequence[CellResult]) -> Text:
    stalls = [cell.stall_ns for cell in cells if cell.stall_ns is not None]
    if not stalls:
        return Text("-")
    died = any(cell.fate == "died" for cell in cells)
    mark = ("x" if died else "") + ("*" if any(cell.agrees is False for cell in cells) else "")
    return Text(_short(int(median(stalls))) + mark, style="red" if died else "")


def _short(value_ns: int) -> str:
    """Three digits are enough to compare, and leave room for a row's name."""
    digits = 10 ** max(0, len(str(value_ns)) - 3)
    return duration(round(value_ns / digits) * digits)


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


def _print_tax(result: SurvivalResult, console: Console) -> None:
    """What a second connection with another least timeout saved, beside the base and beside theory."""
    rows = [row for end in ("client", "guest") for row in tax(result.cells, end)]
    if not rows:
        return
    heading(console, "RTO tax", "waited beyond the outage, and what a second connection with its own rto_min saved")
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("sends first: connection", overflow="fold")
    for name in ("outage", "beyond it", "rto_min", "beyond it", "saved", "by theory"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        saved, theory = (_signed(value) for value in (row.saved_ns, row.theory_ns))
        times = (row.outage_ns, row.base_ns, row.rto_min_ns, row.other_ns)
        shown.add_row(clean(row.variant), *map(duration, times), saved, theory)
    console.print(shown)


def _signed(value_ns: int) -> str:
    return duration(value_ns) if value_ns >= 0 else f"-{duration(-value_ns)}"


@dataclass(frozen=True)
class TaxRow:
    """One outage, met by a connection of the base and by one that differs in its least timeout alone; medians."""

    variant: str
    outage_ns: int
    rto_min_ns: int
    base_ns: int
    other_ns: int
    theory_ns: int

    @property
    def saved_ns(self) -> int:
        return self.base_ns - self.other_ns


def tax(cells: Sequence[CellResult], end: str) -> list[TaxRow]:
    """For each outage, and each other least timeout, that both kinds of connection of this *end* survived."""
    mine = [cell for cell in cells if cell.details.get("sends_first") == end and cell.beyond_ns is not None]
    rest = dict.fromkeys(cell.variant for cell in mine if ", rto_min " in cell.variant)
    found = [
        _tax_row(base, outage_ns, *(_of(mine, name, outage_ns) for name in (base, variant)))
        for variant in rest
        for base in [variant.partition(", rto_min ")[0]]
        for outage_ns in sorted({cell.outage_ns for cell in mine if cell.variant == variant})
    ]
    return [row for row in found if row is not None]


def _of(cells: Sequence[CellResult], variant: str, outage_ns: int) -> list[CellResult]:
    return [
        cell for cell in cells if (cell.variant, cell.outage_ns) == (variant, outage_ns) and cell.theory is not None
    ]


def _tax_row(base: str, outage_ns: int, one: Sequence[CellResult], other: Sequence[CellResult]) -> TaxRow | None:
    if not one or not other:
        return None
    beyond = [int(median(cell.beyond_ns or 0 for cell in some)) for some in (one, other)]
    theory = [int(median(cell.theory.stall_ns for cell in some if cell.theory is not None)) for some in (one, other)]
    rto_min_ns = int(other[0].details["kernel"]["rto_min_ns"])
    return TaxRow(base, outage_ns, rto_min_ns, beyond[0], beyond[1], theory[0] - theory[1])


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
