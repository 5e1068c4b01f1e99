"""Values as text for reports: always with a unit, and "not seen" for what was not observed."""

from __future__ import annotations

from collections.abc import Collection

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import units
from bench.clock import NS_PER_S
from bench.result import FlowResult

NOT_SEEN = "not seen"
PAGE_BYTES = 4096

_WIDE = 100
_EIGHTHS = "▏▎▍▌▋▊▉"
_LEVELS = " ▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = " .:-=+*#"
_RULE = Box("    \n    \n ── \n    \n    \n ── \n    \n    \n")
_PLAIN_RULE = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


def clean(text: str) -> str:
    """*text* on one line without control characters: a result may have come from anywhere."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(ns: int | None) -> str:
    """``"34.01 ms"``."""
    return NOT_SEEN if ns is None else units.format_duration(ns)


def after(ns: int | None, origin_ns: int | None) -> str:
    """A moment relative to another: ``"+4.52 ms"``."""
    if ns is None or origin_ns is None:
        return NOT_SEEN
    return ("+" if ns >= origin_ns else "") + units.format_duration(ns - origin_ns)


def bit_rate(size_bytes: int, over_ns: int) -> str:
    """The mean rate at which *size_bytes* went in *over_ns*."""
    return units.format_bit_rate(size_bytes * 8 * NS_PER_S // over_ns) if over_ns > 0 else NOT_SEEN


def byte_rate(size_bytes: int, over_ns: int) -> str:
    """The mean rate in bytes, as memory is counted."""
    return f"{units.format_bytes(size_bytes * NS_PER_S // over_ns)}/s" if over_ns > 0 else NOT_SEEN


def share(value: float | None) -> str:
    """A share from 0 to 1 as a percentage."""
    return NOT_SEEN if value is None else f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def count(value: int, noun: str) -> str:
    """``"1 frame"``, ``"5,903 frames"``."""
    return f"{value:,} {noun}" + ("" if value == 1 else "s")


def fancy(console: Console) -> bool:
    """True when *console* can show block and line characters."""
    return console.is_terminal and console.encoding.lower().startswith("utf")


def bar(value: int, whole: int, width: int, *, blocks: bool) -> str:
    """*value* of *whole* as a bar of up to *width* characters; what is not nothing is seen.

    :param blocks: by eighths of a block, else by whole ``#``.
    """
    if value <= 0 or whole <= 0 or width <= 0:
        return ""
    if not blocks:
        return "#" * round(min(1.0, value / whole) * width) or "."
    eighths = max(1, round(min(1.0, value / whole) * width * 8))
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def sparkline(values: Collection[float], *, blocks: bool) -> str:
    """*values* as one character each, from nothing to the largest; what is not nothing is seen."""
    levels = _LEVELS if blocks else _PLAIN_LEVELS
    most = max(values, default=0)
    if most <= 0:
        return levels[0] * len(values)
    steps = len(levels) - 1
    return "".join(levels[0 if value <= 0 else max(1, round(min(1.0, value / most) * steps))] for value in values)


def table(console: Console, *columns: str, left: int = 1) -> Table:
    """A table without frames; all but the first *left* columns hold numbers and are flush right."""
    made = Table(
        box=_RULE if fancy(console) else _PLAIN_RULE,
        padding=(0, 1 if console.width >= _WIDE else 0, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", vertical="bottom", no_wrap=True)
    return made


def show(console: Console, made: Table) -> None:
    """Print a table; one that is wider than the console has its cells folded: no digit is ever cut off."""
    if console.measure(made, options=console.options.update(width=10_000)).maximum > console.width:
        for column in made.columns:
            column.no_wrap = column.width is not None
            column.overflow = "fold"
    console.print(made)


def heading(console: Console, text: str, remark: str = "") -> None:
    """A section's title, with a remark on what its numbers mean."""
    console.print()
    line = Text(text, style="bold cyan")
    if remark:
        line.append(f"  {remark}", style="dim not bold")
    console.print(line)


def sent_again(flow: FlowResult) -> str:
    """Segments sent again: by the client and by the guest, as captured; else what the client's kernel counted."""
    if flow.resent is not None:
        return f"{flow.resent.by_client:,} + {flow.resent.by_guest:,}"
    return NOT_SEEN if flow.retransmits is None else f"{flow.retransmits:,}"


def copies(flow: FlowResult) -> int:
    """A flow's segments that arrived although nothing in them was new."""
    return 0 if flow.resent is None else flow.resent.copies_at_client + flow.resent.copies_at_guest


def ended(flow: FlowResult) -> str:
    """How a user's program ended."""
    if flow.exit_status is None:
        return "did not start"
    return f"ended by signal {-flow.exit_status}" if flow.exit_status < 0 else f"exit status {flow.exit_status}"
