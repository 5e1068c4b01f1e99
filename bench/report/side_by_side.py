"""Several runs beside each other, for a terminal: quantities as rows, runs as columns. From their results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from bench.report.migrations import several_guests
from bench.report.postcopy import post_copy
from bench.report.text import NOT_SEEN, clean, duration, heading, show, table
from bench.result import OverallResult, RunResult
from bench.units import format_bytes

_OUTCOME_STYLES = {"completed": "green", "cancelled": "yellow", "failed": "bold red"}
_VALUE_WIDTH = 12
_NAME_WIDTH = 14
_GAP = 2


def print_side_by_side(runs: Sequence[tuple[str, RunResult | None]], console: Console) -> None:
    """A table of all runs; as many tables as the console's width needs.

    :param runs: a label for each, and None where a run left no result.
    """
    heading(console, "Side by side", "outage: of each flow; downtime: the guest was paused")
    for part in _fitting([max(_VALUE_WIDTH, len(label)) for label, _ in runs], console.width - _NAME_WIDTH):
        if part.start:
            console.print()
        _print_table(runs[part], console)


def _fitting(widths: Sequence[int], room: int) -> list[slice]:
    """Columns of these widths in as few tables as *room* needs, at least one in each."""
    parts: list[slice] = []
    begin, left = 0, room
    for at, width in enumerate(widths):
        if at > begin and width + _GAP > left:
            parts.append(slice(begin, at))
            begin, left = at, room
        left -= width + _GAP
    return [*parts, slice(begin, len(widths))] if widths else []


def _print_table(runs: Sequence[tuple[str, RunResult | None]], console: Console) -> None:
    rows = table(console, "", *(clean(label) for label, _ in runs))

    def add(name: str, value: Callable[[RunResult], str | Text]) -> None:
        rows.add_row(name, *("no result" if result is None else value(result) for _, result in runs))

    add("outcome", lambda result: Text(result.outcome, style=_OUTCOME_STYLES[result.outcome]))
    add("total time", lambda result: duration(whole.total_ns if (whole := _whole(result)) else result.total_ns))
    add("transfer", lambda result: duration(result.prediction.transfer_ns if result.prediction else None))
    add("downtime", lambda result: duration(_downtime_ns(result)))
    add("sent", lambda result: format_bytes(whole.bytes_sent if (whole := _whole(result)) else result.bytes_sent))
    add("rounds", lambda result: f"{len(result.rounds):,}")
    if any(result is not None and "postcopy" in result.cost for _, result in runs):
        add("fault, median", _fault)
    add("memory", _identity)
    flows = list(dict.fromkeys(flow.name for _, result in runs if result is not None for flow in result.flows))
    if flows:
        rows.add_section()
    for name in flows:
        add(clean(name), lambda result, name=name: _outage(result, name))  # type: ignore[misc]
    show(console, rows)


def _fault(result: RunResult) -> str:
    """How long the guest waited for a page in post-copy."""
    found = post_copy(result.cost)
    if found is None:
        return ""
    return "no fault" if found.median_ns is None else duration(found.median_ns)


def _whole(result: RunResult) -> OverallResult | None:
    """What is true of all migrations; None with one guest, whose last migration stands for the run."""
    return result.overall if several_guests(result.migrations) else None


def _downtime_ns(result: RunResult) -> int | None:
    """With several guests the longest of any, all its migrations together."""
    whole = _whole(result)
    return result.downtime_ns if whole is None else max((guest.downtime_ns for guest in whole.guests), default=None)


def _identity(result: RunResult) -> str | Text:
    every = [migration.memory.identical for migration in result.migrations] or [result.memory.identical]
    if False in every:
        return Text("DIFFERENT", style="bold red")
    if None in every:
        return "off" if result.memory.verify == "off" else NOT_SEEN
    return "identical"


def _outage(result: RunResult, name: str) -> str | Text:
    flow = next((flow for flow in result.flows if flow.name == name), None)
    if flow is None:
        return NOT_SEEN
    return duration(flow.outage_ns) if flow.alive else Text("DEAD", style="bold red")
