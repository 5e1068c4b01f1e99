"""Several migrations in the summary: the table, the time axis, what holds for all."""

from __future__ import annotations

import io
from typing import Any

import made_up
from rich.console import Console

from bench.analysis.overall import GuestFacts, overall
from bench.report.migrations import axis
from bench.report.plots.timeline import timeline
from bench.report.side_by_side import print_side_by_side
from bench.report.terminal import render
from bench.result import MigrationResult, RunResult
from bench.units import format_bytes

GUESTS = [
    GuestFacts("g1", "52:54:00:00:00:01", "10.0.1.1", 1 << 30, "h1", "h2"),
    GuestFacts("g2", "52:54:00:00:00:02", "10.0.1.2", 1 << 30, "h1", None),
]


def text(result: RunResult, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def two(**second: Any) -> RunResult:
    raw = [made_up.migration(guest="g1"), made_up.migration(guest="g2", **second)]
    whole = overall([MigrationResult.model_validate(item) for item in raw], GUESTS)
    return made_up.result(**{**raw[1], "migrations": raw, "overall": whole})


def test_several_guests_are_listed_with_what_holds_for_all_of_them() -> None:
    shown = text(two())
    assert "2 migrations of 2 guests: completed" in shown
    assert "up to 2 at once" in shown
    assert "identical on both sides in 2 of 2 migrations" in shown
    assert "lost" in shown
    assert "1 g1 h1-h2 |" in shown
    assert "migration 2: g2 moved from h1 to h2" in shown
    assert shown.count("Phases") == shown.count("Relearning") == 2


def test_one_that_failed_is_told_with_its_reason_and_the_others_stay_completed() -> None:
    memory = {"bytes": 1, "identical": False, "digest": "x"}
    shown = text(two(outcome="failed", reason="the link is gone", memory=memory))
    assert "2 migrations of 2 guests, 1 completed" in shown
    assert "migration 2: failed: the link is gone" in shown
    assert "DIFFERENT: g2" in shown


def test_it_fits_a_narrow_console_and_one_that_never_started_has_an_empty_axis() -> None:
    at_ns = made_up.migration()["start_ns"]
    shown = text(two(start_ns=at_ns, end_ns=at_ns, phases=[], rounds=[], outcome="cancelled", reason="no"), width=60)
    assert all(len(line.rstrip()) <= 60 for line in shown.splitlines())
    (line,) = [line for line in shown.splitlines() if line.startswith("2 g2 h1-h2 |")]
    assert set(line.removeprefix("2 g2 h1-h2 |").rstrip()) == {" ", "|"}


def test_the_axis_shows_even_the_shortest_pause() -> None:
    phases = [
        {"name": "setup", "start_ns": 0, "end_ns": 100},
        {"name": "precopy", "start_ns": 100, "end_ns": 799},
        {"name": "stop-and-copy", "start_ns": 799, "end_ns": 800},
        {"name": "announce", "start_ns": 800, "end_ns": 3000},
    ]
    assert drawn(phases) == ".======#- "
    assert drawn([*phases, {"name": "postcopy", "start_ns": 800, "end_ns": 5000}]) == ".======#+ "


def drawn(phases: list[dict[str, Any]]) -> str:
    """A migration from 0 to 900 ns on an axis of 1000 ns in 10 cells."""
    made = made_up.migration(start_ns=0, end_ns=900, phases=phases)
    return axis(MigrationResult.model_validate(made), 0, 1000, 10)


def test_side_by_side_a_run_of_several_guests_stands_with_its_sums() -> None:
    run = two(memory={"bytes": 1, "identical": None, "digest": None})
    assert run.overall is not None
    console = Console(file=io.StringIO(), width=80)
    print_side_by_side([("1-precopy", run), ("2-postcopy", two())], console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert rows["sent"].count(format_bytes(run.overall.bytes_sent)) == 2
    assert rows["downtime"].count("23 ms") == 2
    assert "not seen" in rows["memory"]
    assert "identical" in rows["memory"]


def test_each_guest_has_its_own_lanes_in_the_page() -> None:
    drawn_figure, _windows = timeline(two(), [], {})
    lanes = {lane for trace in drawn_figure["data"] for lane in trace["y"]}
    assert {"g1", "g2", "g1 phases", "g2 phases", "g1 s1", "g2 s1"} <= lanes
    alone, _windows = timeline(made_up.result(), [], {})
    assert {"g1", "phases", "s1"} <= {lane for trace in alone["data"] for lane in trace["y"]}
