"""The report's page: one run in full, or several beside each other with the first ones in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from bench.recording import REPEAT, Recording
from bench.report.html import tables
from bench.report.html.markup import Markup, table, tag
from bench.report.html.page import page, plot, section
from bench.report.html.run import run_sections
from bench.report.plots.several import distributions
from bench.report.text import duration
from bench.units import format_bytes

IN_FULL: Final = 8
"""Of many runs so many are drawn in full: each adds to the page."""


def report_page(recordings: Sequence[Recording], page_directory: Path) -> str:
    """The whole page. :raises ResultError: one of *recordings* is broken."""
    if len(recordings) == 1:
        parts, navigation = run_sections(recordings[0], page_directory)
        return page(recordings[0].result.title or recordings[0].label, parts, navigation)
    body: list[Markup] = [
        tag("header", tag("h1", f"{len(recordings)} runs"), class_="run"),
        _overview(recordings),
        section(
            "distributions",
            "Distributions",
            plot(
                "plot-distributions",
                distributions(recordings),
                title="Downtime, longest outage and total time of every migration",
            ),
            remark="each point is a migration; the line is the median",
        ),
    ]
    navigation = [("runs", "Runs"), ("distributions", "Distributions")]
    for number, recording in enumerate(recordings[:IN_FULL], 1):
        parts, _ = run_sections(recording, page_directory, f"r{number}-")
        body.append(tag("div", *parts, id=f"r{number}"))
        navigation.append((f"r{number}", recording.label))
    if len(recordings) > IN_FULL:
        body.append(
            tag(
                "p", f"The first {IN_FULL} runs are drawn in full; `bench report DIR` draws any other.", class_="remark"
            )
        )
    return page(f"{len(recordings)} runs", body, navigation)


def _overview(recordings: Sequence[Recording]) -> Markup:
    rows, marks = [], []
    for number, recording in enumerate(recordings, 1):
        result = recording.result
        migrations = result.migrations or [result]
        downtimes = [one.downtime_ns for one in migrations if one.downtime_ns is not None]
        outages = [flow.outage_ns for one in migrations for flow in one.flows if flow.outage_ns is not None]
        dead = sum(not flow.alive for flow in result.flows)
        failed = sum(not item.ok for item in result.expectations)
        match = REPEAT.fullmatch(recording.label)
        rows.append(
            [
                tag("a", recording.label, href=f"#r{number}") if number <= IN_FULL else recording.label,
                match["point"] if match else result.title,
                tables.outcome_badge(result.outcome),
                f"{len(migrations):,}",
                duration(round(median(downtimes)) if downtimes else None),
                duration(max(outages, default=None)),
                duration(result.total_ns),
                format_bytes(result.bytes_sent),
                f"{dead:,}",
                f"{failed:,}" if result.expectations else "",
                "yes" if result.trust.ok else "doubt",
            ]
        )
        marks.append("bad" if result.outcome != "completed" or dead or failed else "")
    head = [
        "run",
        "what",
        "outcome",
        "migrations",
        "downtime (median)",
        "longest outage",
        "total",
        "sent",
        "dead flows",
        "expectations failed",
        "trust",
    ]
    return section("runs", "Runs", table(head, rows, left=3, marks=marks))
