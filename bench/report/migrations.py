"""Several migrations for a terminal: a table of all, and who ran when on one time axis. From the result alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.report.text import clean, count, duration, heading, show, table
from bench.result import FlowResult, MigrationResult, OverallResult
from bench.units import format_bytes

MAX_MIGRATIONS_SHOWN: Final = 50
OUTCOME_STYLES: Final = {"completed": "bold green", "cancelled": "bold yellow", "failed": "bold red"}

SETUP, COPY, PAUSED, POST_COPY, REST = ".", "=", "#", "+", "-"
_CELLS: Final = {"setup": SETUP, "precopy": COPY, "postcopy": POST_COPY}
_PAUSED: Final = ("stop-and-copy", "device-state", "storage", "resume")
_LEAST_AXIS, _MOST_AXIS = 16, 60
_COLOURS: Final = {SETUP: "dim", COPY: "cyan", PAUSED: "bold magenta", POST_COPY: "blue", REST: "dim"}


def several_guests(migrations: Sequence[MigrationResult]) -> bool:
    """Whether they are of more than one guest."""
    return len({migration.guest for migration in migrations}) > 1


def print_overall(whole: OverallResult, migrations: Sequence[MigrationResult], console: Console) -> None:
    """What holds for all of them together."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    at_once = f"from the first start to the last end, up to {whole.at_once} at once"
    grid.add_row("total time", duration(whole.total_ns), at_once)
    longest = max(whole.guests, key=lambda guest: guest.downtime_ns, default=None)
    if longest is not None:
        grid.add_row("downtime", duration(longest.downtime_ns), f"the longest in all, that of {clean(longest.name)}")
    grid.add_row("sent", format_bytes(whole.bytes_sent), "between all engines")
    differing = [item for item in migrations if item.memory.identical is False]
    same = sum(item.memory.identical is True for item in migrations)
    memory = sum(guest.memory_bytes for guest in whole.guests)
    if differing:
        names = ", ".join(clean(item.guest) for item in differing)
        verdict = Text(f"DIFFERENT: {names}", style="bold red")
    else:
        verdict = Text(f"identical on both sides in {same} of {len(migrations)} migrations", style="green")
    grid.add_row("memory", format_bytes(memory), verdict)
    lost = [clean(guest.name) for guest in whole.guests if guest.host is None]
    if lost:
        grid.add_row("lost", f"{len(lost)}", Text(", ".join(lost), style="bold red"))
    console.print()
    console.print(grid)


def print_migrations(migrations: Sequence[MigrationResult], console: Console) -> None:
    """One line for each, the time axis, and every reason."""
    guests = several_guests(migrations)
    heading(console, "Migrations", "outage: the longest of any flow")
    names = ("#", *(["guest"] if guests else []), "from", "to", "outcome")
    rows = table(console, *names, "total", "downtime", "rounds", "sent", "memory", "outage", left=len(names))
    shown = migrations if len(migrations) <= MAX_MIGRATIONS_SHOWN else migrations[:MAX_MIGRATIONS_SHOWN]
    for number, migration in enumerate(shown, 1):
        identical = {True: "identical", False: "DIFFERENT", None: "not compared"}[migration.memory.identical]
        rows.add_row(
            str(number),
            *([clean(migration.guest)] if guests else []),
            clean(migration.source),
            clean(migration.destination),
            Text(migration.outcome, style=OUTCOME_STYLES[migration.outcome]),
            duration(migration.total_ns),
            duration(migration.downtime_ns),
            str(len(migration.rounds)),
            format_bytes(migration.bytes_sent),
            identical,
            duration(_longest_outage_ns(migration.flows)),
        )
    show(console, rows)
    if len(shown) < len(migrations):
        console.print(f"and {count(len(migrations) - len(shown), 'migration')} more, in result.json")
    downtimes = [migration.downtime_ns for migration in migrations if migration.downtime_ns is not None]
    if downtimes:
        console.print(
            f"downtime: median {duration(round(median(downtimes)))}, from {duration(min(downtimes))} to "
            f"{duration(max(downtimes))}",
            highlight=False,
        )
    for number, migration in enumerate(migrations, 1):
        if migration.reason:
            console.print(Text(f"migration {number}: {migration.outcome}: {clean(migration.reason)}"))
    _print_axis(shown, console)


def _longest_outage_ns(flows: Sequence[FlowResult]) -> int | None:
    return max((flow.outage_ns for flow in flows if flow.outage_ns is not None), default=None)


def _print_axis(migrations: Sequence[MigrationResult], console: Console) -> None:
    started = [item for item in migrations if item.end_ns > item.start_ns]
    if not started:
        return
    begin_ns, end_ns = min(item.start_ns for item in started), max(item.end_ns for item in started)
    labels = [
        f"{number} {clean(f'{item.guest} {item.source}-{item.destination}')}"
        for number, item in enumerate(migrations, 1)
    ]
    width = max(map(len, labels))
    room = min(_MOST_AXIS, max(_LEAST_AXIS, console.width - width - 3))
    legend = f"{SETUP} set-up  {COPY} copying  {PAUSED} paused  {POST_COPY} post-copy  {REST} comparing, ending"
    heading(console, "Who ran when", legend)
    for label, item in zip(labels, migrations, strict=True):
        line = Text(f"{label.ljust(width)} |")
        for cell in axis(item, begin_ns, end_ns, room):
            line.append(cell, style=_COLOURS.get(cell, ""))
        line.append("|")
        console.print(line, no_wrap=True, overflow="crop")
    span = duration(end_ns - begin_ns)
    console.print(Text(f"{'':{width}}  0 s{span:>{room - 3}}", style="dim"))


def axis(migration: MigrationResult, begin_ns: int, end_ns: int, width: int) -> str:
    """One migration on an axis of *width* cells from *begin_ns* to *end_ns*. What is not nothing is seen: a pause has
    a cell at least.
    """
    cells = [" "] * width

    def fill(start: int, end: int, cell: str) -> None:
        first = (start - begin_ns) * width // max(1, end_ns - begin_ns)
        last = -(-(end - begin_ns) * width // max(1, end_ns - begin_ns))
        for at in range(max(0, min(first, width - 1)), min(width, max(last, first + 1))):
            cells[at] = cell

    if migration.end_ns > migration.start_ns:
        fill(migration.start_ns, migration.end_ns, REST)
    for phase in migration.phases:
        if phase.name in _CELLS:
            fill(phase.start_ns, min(phase.end_ns, migration.end_ns), _CELLS[phase.name])
    for phase in migration.phases:
        if phase.name in _PAUSED:
            fill(phase.start_ns, phase.end_ns, PAUSED)
    return "".join(cells)
