"""The summary of a run for a terminal, or as plain text when the output is none. From the result alone.

Two times are kept apart everywhere: *downtime*, while the guest was paused, and a client's *outage*, while it got no
answer. The first is a property of the migration, the second of a flow.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.analysis.expectations import describe
from bench.report.budget import print_budget
from bench.report.fate import print_fates
from bench.report.interference import print_interference
from bench.report.levers import print_levers
from bench.report.machine import print_environment, print_links
from bench.report.migrations import OUTCOME_STYLES, print_migrations, print_overall, several_guests
from bench.report.postcopy import print_post_copy
from bench.report.prediction import print_prediction
from bench.report.silence import other_silences
from bench.report.surroundings import print_surroundings
from bench.report.text import (
    NOT_SEEN,
    PAGE_BYTES,
    after,
    bit_rate,
    byte_rate,
    clean,
    copies,
    count,
    duration,
    ended,
    heading,
    sent_again,
    show,
    table,
)
from bench.report.wave import print_wave
from bench.result import (
    ExpectationResult,
    MemoryResult,
    MigrationResult,
    RelearnResult,
    RoundResult,
    RunResult,
)
from bench.units import format_bytes

MAX_ROUNDS_SHOWN = 20
MAX_DETAILED = 6  # of several guests' migrations
_HEAD_ROUNDS = 8


def render(result: RunResult, console: Console) -> None:
    """Print the summary of *result*."""
    several = several_guests(result.migrations)
    _print_header(result, console)
    if several and result.overall is not None:
        print_overall(result.overall, result.migrations, console)
    else:
        _print_totals(result, console)
    if len(result.migrations) > 1:
        print_migrations(result.migrations, console)
    if several:
        for number, migration in enumerate(result.migrations[:MAX_DETAILED], 1):
            console.print()
            console.rule(Text(f"migration {number}: {clean(_journey(migration, migration.guest))}"), characters="-")
            _print_details(migration, console)
        if len(result.migrations) > MAX_DETAILED:
            console.print(f"and {count(len(result.migrations) - MAX_DETAILED, 'migration')} more, in result.json")
        console.print()
        console.rule(characters="-")
    else:
        _print_details(result, console)
    if result.flows:
        _print_flows(result, console)
        print_budget(result.flows, console)
        print_fates(result.flows, console)
    if result.links:
        print_links(result.links, console)
    print_surroundings(result.environment, console)
    print_environment(result.environment, console)
    if result.expectations:
        _print_expectations(result.expectations, console)
    _print_trust(result, console)


def _print_details(migration: MigrationResult, console: Console) -> None:
    if migration.phases:
        _print_phases(migration, console)
    if migration.rounds:
        _print_rounds(migration.rounds, console)
    print_post_copy(migration.cost, console)
    print_levers(migration.cost, console)
    if migration.prediction is not None:
        print_prediction(migration, migration.prediction, console)
    if migration.interference:
        print_interference(migration.interference, console)
    if migration.relearn.switches or migration.relearn.announce_ns is not None:
        _print_relearning(migration, console)


# what moved


def _journey(migration: MigrationResult, guest: str) -> str:
    if not migration.source:
        return f"{guest} did not move"
    if migration.outcome == "completed":
        return f"{guest} moved from {migration.source} to {migration.destination}"
    return f"{guest} was to move from {migration.source} to {migration.destination}"


def _journeys(result: RunResult) -> str:
    """The only guest's last journey, or how many got away."""
    if not several_guests(result.migrations):
        return _journey(result, result.guest)
    done = sum(migration.outcome == "completed" for migration in result.migrations)
    guests = len({migration.guest for migration in result.migrations})
    but = "" if done == len(result.migrations) else f", {done} completed"
    return f"{len(result.migrations)} migrations of {guests} guests{but}"


def _print_header(result: RunResult, console: Console) -> None:
    if result.title:
        console.print(Text(clean(result.title), style="bold"))
    line = Text(clean(_journeys(result)), style="bold")
    line.append(": ")
    line.append(result.outcome, style=OUTCOME_STYLES[result.outcome])
    if result.reason:
        line.append(f": {clean(result.reason)}")
    console.print(line)
    if len(result.migrations) > 1 and not several_guests(result.migrations):
        done = sum(migration.outcome == "completed" for migration in result.migrations)
        console.print(
            Text(
                f"{len(result.migrations)} migrations, {done} completed. Phases, rounds and relearning below are those "
                "of the last one; flows are counted over the whole run, each outage is its worst."
            )
        )
    console.print(Text(f"started {clean(result.started_at)}", style="dim"))


def _identity(memory: MemoryResult) -> Text:
    if memory.identical is None:
        why = "switched off" if memory.verify == "off" else NOT_SEEN
        return Text(f"not compared ({why})", style="yellow")
    if memory.identical:
        digest = f", digest {memory.digest[:16]}" if memory.digest else ""
        how = ", compared while paused" if memory.verify == "pause" else ""
        return Text(f"identical on both sides{digest}{how}", style="green")
    ends = [(digest or NOT_SEEN)[:16] for digest in (memory.digest_source, memory.digest_destination)]
    return Text(f"DIFFERENT: source {ends[0]}, destination {ends[1]}", style="bold red")


def _print_totals(result: RunResult, console: Console) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    grid.add_row("total time", duration(result.total_ns), "from setup to the handover, or until the engine gave up")
    grid.add_row("downtime", duration(result.downtime_ns), "the guest was paused; a client's outage is another thing")
    grid.add_row("sent", format_bytes(result.bytes_sent), "between the engines")
    grid.add_row("memory", format_bytes(result.memory.bytes), _identity(result.memory))
    grid.add_row("connections", f"{result.connections:,}", "TCP connections that moved with the guest")
    console.print()
    console.print(grid)


# how


def _print_phases(result: MigrationResult, console: Console) -> None:
    heading(console, "Phases")
    rows = table(console, "phase", "begins", "duration")
    origin_ns = min(phase.start_ns for phase in result.phases)
    for phase in result.phases:
        rows.add_row(clean(phase.name), after(phase.start_ns, origin_ns), duration(phase.end_ns - phase.start_ns))
    show(console, rows)


def _print_rounds(rounds: Sequence[RoundResult], console: Console) -> None:
    heading(console, "Rounds", f"pages of {PAGE_BYTES} bytes; zero pages are not sent as pages")
    rows = table(console, "round", "pages", "zero", "sent", "time", "throughput", "dirty after", "dirty rate")
    skipped = range(0)
    if len(rounds) > MAX_ROUNDS_SHOWN:
        skipped = range(_HEAD_ROUNDS, len(rounds) - (MAX_ROUNDS_SHOWN - _HEAD_ROUNDS))
    for number, item in enumerate(rounds):
        if number in skipped:
            if number == skipped.start:
                rows.add_row(f"... {len(skipped)} more", *[""] * 7)
            continue
        time_ns = item.end_ns - item.start_ns
        rows.add_row(
            f"{number + 1}{' paused' if item.paused else ''}",
            f"{item.pages:,}",
            f"{item.zero_pages:,}",
            format_bytes(item.bytes_sent),
            duration(time_ns),
            bit_rate(item.bytes_sent, time_ns),
            f"{item.dirty_pages_after:,}",
            "none" if item.paused else byte_rate(item.dirty_pages_after * PAGE_BYTES, time_ns),
        )
    show(console, rows)


def _print_relearning(result: MigrationResult, console: Console) -> None:
    relearn = result.relearn
    origin_ns = result.resume_ns
    heading(console, "Relearning", "moments relative to the guest's resume at its destination")
    sent = f", {count(relearn.announcements, 'frame')} in all" if relearn.announcements else ""
    console.print(f"announce leaves the destination: {after(relearn.announce_ns, origin_ns)}{sent}", highlight=False)
    if relearn.switches:
        show(console, _relearn_table(relearn, origin_ns, console))
        print_wave(relearn, origin_ns, console)


def _relearn_table(relearn: RelearnResult, origin_ns: int | None, console: Console) -> Table:
    rows = table(
        console,
        "switch",
        "controller\nsaw",
        "flows\nconfirmed",
        "first frame\nat new port",
        "\nstable",
        "frames to\nold port",
        "frames\nflooded",
        "flapped\nback",
    )
    for switch in relearn.switches:
        rows.add_row(
            clean(switch.name),
            *(
                after(moment, origin_ns)
                for moment in (switch.controller_ns, switch.confirmed_ns, switch.first_frame_ns, switch.stable_ns)
            ),
            f"{switch.frames_to_old_port:,}",
            f"{switch.frames_flooded:,}",
            f"{switch.flapped:,} times" if switch.flapped != 1 else "once",
        )
    return rows


# what clients saw


def _print_flows(result: RunResult, console: Console) -> None:
    guests = len({flow.guest for flow in result.flows}) > 1
    heading(console, "Client flows", "resent: by client + guest; outage: no answer for so long")
    names = ("flow", "host", *(["guest"] if guests else []))
    counts = ("requests", "lost", "dupl.", "reord.", "corrupt", "resent", "state", "outage")
    rows = table(console, *names, *counts, left=len(names))
    for flow in result.flows:
        bad = bool(flow.corrupted) or not flow.alive
        rows.add_row(
            clean(flow.name),
            f"{'to ' if flow.direction == 'from-guest' else ''}{clean(flow.host)}",
            *([clean(flow.guest)] if guests else []),
            f"{flow.requests:,}",
            f"{flow.lost:,}",
            f"{flow.duplicated + copies(flow):,}",
            f"{flow.reordered:,}",
            Text(f"{flow.corrupted:,}", style="bold red" if flow.corrupted else ""),
            sent_again(flow),
            Text("alive" if flow.alive else "DEAD", style="" if flow.alive else "bold red"),
            duration(flow.outage_ns),
            style="red" if bad else "",
        )
    show(console, rows)
    for flow in result.flows:
        if flow.error:
            when = (
                f", {after(flow.died_ns, result.resume_ns)} from the resume"
                if flow.died_ns and result.resume_ns
                else ""
            )
            console.print(Text(f"{clean(flow.name)}: {clean(flow.error)}{when}", style="red"))
        if flow.output:
            console.print(Text(f"{clean(flow.name)}: {ended(flow)}, output in {clean(flow.output)}"))
    for told in other_silences(result.flows):
        console.print(Text(told, style="yellow"))


def _print_expectations(expectations: Sequence[ExpectationResult], console: Console) -> None:
    heading(console, "Expectations", f"{sum(item.ok for item in expectations)} of {len(expectations)} hold")
    rows = table(console, "", "expected", "measured", left=3)
    for item in expectations:
        verdict = Text("holds", style="green") if item.ok else Text("FAILS", style="bold red")
        rows.add_row(verdict, clean(item.expectation), clean(describe(item)), style="" if item.ok else "red")
    show(console, rows)


def _print_trust(result: RunResult, console: Console) -> None:
    console.print()
    if result.trust.ok:
        console.print(Text("trust: no reason was seen to doubt these numbers", style="green"))
        return
    console.print(Text("trust: doubt these numbers, because", style="bold yellow"))
    for reason in result.trust.reasons or ["no reason was given"]:
        console.print(Padding(Text(f"- {clean(reason)}", style="yellow"), (0, 0, 0, 2)))
