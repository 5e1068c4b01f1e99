"""The outage budget of every flow for a terminal: stages as rows, flows as columns, with bars."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bench.report.text import bar, clean, duration, fancy, heading, show, table
from bench.result import FlowResult

_STAGE_WIDTH = len("measured outage")
_VALUE_WIDTH = len("123.45 ms")
_MIN_BAR = 4
_MAX_BAR = 24
_GAP = 2


def print_budget(flows: Sequence[FlowResult], console: Console) -> None:
    """Where every flow's outage went, side by side as far as the console is wide."""
    explained = [flow for flow in flows if flow.budget]
    heading(console, "Outage budget", "the stages of each outage; bars: their shares of it")
    value_width = max((len(flow.name) for flow in explained), default=0)
    value_width = max(_VALUE_WIDTH, min(value_width, console.width // 4))
    fitting = max(1, (console.width - _STAGE_WIDTH) // (value_width + _MIN_BAR + 2 * _GAP))
    tables = -(-len(explained) // fitting)
    for number in range(tables):  # as even as possible: 4 and 4 rather than 7 and 1
        begin, end = (len(explained) * at // tables for at in (number, number + 1))
        if number:
            console.print()
        _print_columns(explained[begin:end], value_width, console)
    for flow in explained:
        if flow.budget_note or not flow.budget_ok:
            note = clean(flow.budget_note) or "the stages do not sum to the measured outage"
            style = "" if flow.budget_ok else "yellow"
            console.print(Text(f"{clean(flow.name)}: {note}", style=style))
    for flow in flows:
        if not flow.budget:
            why = "no outage was seen" if flow.outage_ns is None else f"outage of {duration(flow.outage_ns)}"
            console.print(Text(f"{clean(flow.name)}: no budget: {why}"))


def _print_columns(flows: Sequence[FlowResult], value_width: int, console: Console) -> None:
    room = (console.width - _STAGE_WIDTH) // len(flows) - value_width - 2 * _GAP
    bar_width = min(_MAX_BAR, max(_MIN_BAR, room))
    blocks = fancy(console)
    rows = table(console, "stage")
    for flow in flows:
        name = clean(flow.name)
        folded = "\n".join(name[at : at + value_width] for at in range(0, len(name), value_width))
        rows.add_column(folded, justify="right", no_wrap=True)
        rows.add_column("", width=bar_width, no_wrap=True)
    stages = list(dict.fromkeys(part.stage for flow in flows for part in flow.budget))
    for stage in stages:
        cells: list[str | Text] = []
        for flow in flows:
            parts = [part.ns for part in flow.budget if part.stage == stage]
            ns = sum(parts) if parts else None
            largest = ns is not None and ns > 0 and ns == max(part.ns for part in flow.budget)
            cells.append(Text(duration(ns), style="bold" if largest else "" if ns else "dim"))
            share = bar(ns or 0, flow.outage_ns or flow.budget_sum_ns or 0, bar_width, blocks=blocks)
            cells.append(Text(share, style="magenta" if largest else "blue"))
        rows.add_row(clean(stage), *cells)
    rows.add_section()
    rows.add_row("sum", *_pairs([duration(flow.budget_sum_ns) for flow in flows]), style="bold")
    rows.add_row("measured outage", *_pairs([duration(flow.outage_ns) for flow in flows]), style="bold")
    verdicts = [
        Text("adds up", style="green") if flow.budget_ok else Text("DOUBTFUL", style="bold yellow") for flow in flows
    ]
    rows.add_row("", *_pairs(verdicts))
    show(console, rows)


def _pairs(values: Sequence[str | Text]) -> list[str | Text]:
    """Each value, with an empty cell under the bars."""
    return [cell for value in values for cell in (value, "")]
