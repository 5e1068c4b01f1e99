"""What became of each flow, and how close its connection came to its end, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bench.report.text import clean, duration, heading, show, table
from bench.result import FlowResult

_STYLES = {"died": "bold red", "reconnected": "red", "delayed": "yellow", "undisturbed": "green"}


def print_fates(flows: Sequence[FlowResult], console: Console) -> None:
    """A row for each flow with a verdict; a sentence on the connection that came closest to its end."""
    told = [flow for flow in flows if flow.verdict is not None]
    if not told:
        return
    heading(console, "Fates", "waited: of the outage, for the retransmission timer; survives: by theory")
    columns = ("verdict", "timer", "timeouts", "waited", "5 ms saves", "survives", "used")
    rows = table(console, "flow", *columns, left=2)
    for flow in told:
        tcp = flow.tcp
        cells = ["-"] * 6
        if tcp is not None:
            cells = [
                duration(tcp.rto_ns),
                f"{tcp.timeouts}",
                _known(tcp.wait_ns),
                _known(tcp.saved_ns),
                _known(tcp.survivable_ns),
                "-" if tcp.used is None else f"{tcp.used:.2%}",
            ]
        word = str(flow.verdict)
        rows.add_row(clean(flow.name), Text(word, style=_STYLES[word]), *cells)
    show(console, rows)
    closest = max((flow for flow in told if flow.tcp and flow.tcp.used), key=_used, default=None)
    if closest is not None and closest.tcp is not None:
        console.print(
            f"The migration used {_used(closest):.2%} of the shortest TCP deadline: {clean(closest.name)} was out for "
            f"{duration(closest.outage_ns)} and could have survived {duration(closest.tcp.survivable_ns)}."
        )


def _known(value_ns: int | None) -> str:
    return "-" if value_ns is None else duration(value_ns)


def _used(flow: FlowResult) -> float:
    return flow.tcp.used or 0.0 if flow.tcp is not None else 0.0
