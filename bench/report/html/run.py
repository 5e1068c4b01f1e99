"""The page of one run, and the sections that it is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from bench.analysis.brownout import brownout
from bench.recording import Recording
from bench.records import StructuredArray
from bench.report.html import tables
from bench.report.html.markup import Markup, join, lines, tag
from bench.report.html.page import disclosure, plot, section
from bench.report.levers import REMARK as LEVERS_REMARK
from bench.report.levers import lever_rows
from bench.report.plots.bars import budgets, prediction, rounds
from bench.report.plots.network import relearning, throughputs
from bench.report.plots.tcp import timers_and_windows
from bench.report.plots.timeline import origin_ns, timeline
from bench.report.postcopy import REMARK as FAULTS_REMARK
from bench.report.postcopy import post_copy
from bench.report.text import NOT_SEEN, after, count, duration
from bench.result import MigrationResult, RunResult
from bench.timeline import Event
from bench.units import format_bytes

MAX_BUTTONS: Final = 12
Navigation = list[tuple[str, str]]


def run_sections(recording: Recording, page_directory: Path, prefix: str = "") -> tuple[list[Markup], Navigation]:
    """All sections of one run.

    :param page_directory: where the page will lie, for links to captures and logs.
    :param prefix: of all anchors, so that one page can hold several runs.
    :raises ResultError: the recording is broken.
    """
    result, events = recording.result, recording.events
    records = _records(recording, result)
    looked = {flow.name: recording.samples(flow.host, flow.name) for flow in result.flows}
    samples = {name: some for name, some in looked.items() if some is not None and len(some)}
    shown = _telling(result)
    parts: list[tuple[str, str, Markup | None]] = [
        ("overview", "Overview", _overview(recording, shown)),
        ("timeline", "Timeline", _timeline(result, events, records, samples, prefix)),
        ("budget", "Outage", _budget(result, prefix)),
        ("relearning", "Relearning", _relearning(result, shown, prefix)),
        ("rounds", "Rounds", _rounds(shown, prefix)),
        ("postcopy", "Post-copy", _post_copy(result, shown, prefix)),
        ("levers", "Levers", _levers(result, shown, prefix)),
        ("interference", "While copying", _interference(result, shown, prefix)),
        ("throughput", "Throughput", _throughput(result, shown, records, prefix)),
        ("prediction", "Prediction", _prediction(result, shown, prefix)),
        ("tcp", "TCP", _tcp(result, shown, samples, prefix)),
        (
            "flows",
            "Flows",
            section(
                f"{prefix}flows",
                "Client flows",
                tables.flows(result.flows),
                remark="outage: no answer for so long; counted over the whole run",
            ),
        ),
        ("migrations", "Migrations", _migrations(result, prefix)),
        ("links", "Network", _links(result, prefix)),
        ("machine", "Machine", _machine(recording, page_directory, prefix)),
    ]
    present = [(name, title, part) for name, title, part in parts if part is not None]
    return [part for _, _, part in present], [(f"{prefix}{name}", title) for name, title, _ in present[1:]]


def _records(recording: Recording, result: RunResult) -> dict[str, StructuredArray]:
    """The records of each flow, as far as there are any."""
    found = {flow.name: recording.records(flow.host, flow.name) for flow in result.flows}
    return {name: records for name, records in found.items() if records is not None}


def _telling(result: RunResult) -> MigrationResult:
    """The migration to draw where one has to stand for all: that with the longest outage."""
    migrations = result.migrations or [result]
    return max(migrations, key=lambda one: max((flow.outage_ns or 0 for flow in one.flows), default=0))


def _which(result: RunResult, shown: MigrationResult) -> str:
    """Which migration a section is about, where there are several."""
    if len(result.migrations) < 2:
        return ""
    number = next(at for at, one in enumerate(result.migrations, 1) if one is shown)
    return f"migration {number} of {len(result.migrations)}, the one with the longest outage"


# the top


def _tile(value: object, what: str, more: str = "", kind: str = "") -> Markup:
    return tag(
        "div", tag("b", value), tag("span", what), tag("em", more) if more else None, class_=f"tile {kind}".strip()
    )


def _overview(recording: Recording, shown: MigrationResult) -> Markup:
    result = recording.result
    migrations = result.migrations or [result]
    outages = [(flow.outage_ns, flow.name) for flow in result.flows if flow.outage_ns is not None]
    longest = max(outages, default=None)
    dead = [flow.name for flow in result.flows if not flow.alive]
    stable = [switch.stable_ns for switch in shown.relearn.switches if switch.stable_ns is not None]
    way = f"{result.guest} from {migrations[0].source} to {migrations[0].destination}"
    if len(migrations) > 1:
        way = f"{len(migrations)} migrations, first {way}"
    head = tag(
        "header",
        tag("h1", result.title or recording.label),
        tag(
            "p",
            way,
            " ",
            tables.outcome_badge(result.outcome),
            f" {result.reason}" if result.reason else "",
            f" · started {result.started_at}",
        ),
        class_="run",
    )
    trust = "good" if result.trust.ok else "warn"
    tiles = tag(
        "div",
        _tile(duration(result.downtime_ns), "downtime", "the guest was paused"),
        _tile(
            duration(longest[0]) if longest else "none",
            "longest outage",
            f"of {longest[1]}" if longest else "no client saw one",
        ),
        _tile(
            f"{len(result.flows) - len(dead)} of {len(result.flows)}",
            "flows alive",
            ", ".join(dead),
            "bad" if dead else "good",
        ),
        _tile(
            after(max(stable), shown.resume_ns) if stable else NOT_SEEN, "network stable", "after the guest's resume"
        ),
        _tile(duration(result.total_ns), "total time", "set-up to handover"),
        _tile(format_bytes(result.bytes_sent), "sent", f"for {format_bytes(result.memory.bytes)} of memory"),
        _identity(result),
        _tile(
            "yes" if result.trust.ok else "doubt",
            "trust",
            "" if result.trust.ok else count(len(result.trust.reasons), "reason"),
            trust,
        ),
        class_="tiles",
    )
    doubts = None
    if not result.trust.ok:
        doubts = tag(
            "div",
            tag("strong", "Doubt these numbers, because"),
            tag("ul", *(tag("li", reason) for reason in result.trust.reasons[:50])),
            class_="note",
        )
    expected = None
    if result.expectations:
        held = sum(item.ok for item in result.expectations)
        expected = section(
            "expectations",
            "Expectations",
            tables.expectations(result.expectations),
            remark=f"{held} of {len(result.expectations)} hold",
        )
    return join([head, tiles, doubts, expected])


def _identity(result: RunResult) -> Markup:
    if result.memory.identical is None:
        return _tile("not compared", "memory", "", "warn")
    kind = "good" if result.memory.identical else "bad"
    return _tile("identical" if result.memory.identical else "DIFFERENT", "memory on both sides", "", kind)


# the figures, each with its table


def _timeline(
    result: RunResult,
    events: Sequence[Event],
    records: Mapping[str, StructuredArray],
    samples: Mapping[str, StructuredArray],
    prefix: str,
) -> Markup:
    figure, windows = timeline(result, events, records, samples)
    buttons = [(window.name, window.begin_ms, window.end_ms) for window in [*windows[:-1][:MAX_BUTTONS], windows[-1]]]
    return section(
        f"{prefix}timeline",
        "Timeline",
        plot(
            f"{prefix}plot-timeline", figure, title="Phases, relearning and requests on one time axis", windows=buttons
        ),
        disclosure("Phases as a table", tables.phases(result.phases)),
        remark="drag to zoom, double click to go back; red: the guest is paused; shaded in a row: that flow's outage",
    )


def _budget(result: RunResult, prefix: str) -> Markup | None:
    if not any(flow.budget for flow in result.flows):
        return None
    return section(
        f"{prefix}budget",
        "Where each outage went",
        plot(f"{prefix}plot-budget", budgets(result.flows), title="Outage budget of every flow as stacked bars"),
        tables.budgets(result.flows),
        remark="blue: engine and guest, amber: the network, green: the client",
    )


def _relearning(result: RunResult, shown: MigrationResult, prefix: str) -> Markup | None:
    if not shown.relearn.switches:
        return None
    figure = relearning(result, shown)
    left = shown.relearn.announce_ns
    frames = count(shown.relearn.announcements, "frame")
    announced = (
        f"The announcement left the destination {after(left, shown.resume_ns)} after the resume, {frames} in all."
    )
    return section(
        f"{prefix}relearning",
        "Relearning",
        plot(f"{prefix}plot-relearning", figure, title="The topology, each switch in the colour of when it was stable")
        if figure
        else None,
        tag("p", announced, class_="remark") if left is not None else None,
        tables.relearning(shown),
        remark=_which(result, shown) or "moments relative to the guest's resume",
    )


def _rounds(shown: MigrationResult, prefix: str) -> Markup | None:
    if not shown.rounds:
        return None
    return section(
        f"{prefix}rounds",
        "Rounds",
        plot(
            f"{prefix}plot-rounds",
            rounds(shown.rounds),
            title="Pages, dirty pages, throughput and dirty rate of each round",
        ),
        tables.rounds(shown.rounds),
        remark="pages of 4096 bytes; the last round while the guest is paused",
    )


def _post_copy(result: RunResult, shown: MigrationResult, prefix: str) -> Markup | None:
    found = post_copy(shown.cost)
    if found is None:
        return None
    which = _which(result, shown)
    remark = f"{which}; {FAULTS_REMARK}" if which else FAULTS_REMARK
    return section(f"{prefix}postcopy", "Post-copy", tables.post_copy(found), remark=remark)


def _levers(result: RunResult, shown: MigrationResult, prefix: str) -> Markup | None:
    found = lever_rows(shown.cost)
    if not found:
        return None
    which = _which(result, shown)
    remark = f"{which}; {LEVERS_REMARK}" if which else LEVERS_REMARK
    return section(f"{prefix}levers", "What each lever saved and cost", tables.levers(found), remark=remark)


def _interference(result: RunResult, shown: MigrationResult, prefix: str) -> Markup | None:
    if not shown.interference:
        return None
    which = _which(result, shown)
    remark = "before the migration (up to 5 s), and from its first round to the pause"
    return section(
        f"{prefix}interference",
        "While memory was copied",
        tables.interference(shown.interference),
        remark=f"{which}; {remark}" if which else remark,
    )


def _throughput(
    result: RunResult, shown: MigrationResult, records: Mapping[str, StructuredArray], prefix: str
) -> Markup | None:
    cut = [brownout(flow, shown, records[flow.name]) for flow in shown.flows if flow.name in records]
    figure = throughputs(shown, records, cut, origin_ns(result))
    if figure is None:
        return None
    return section(
        f"{prefix}throughput",
        "Throughput through brownout, blackout and ramp",
        plot(f"{prefix}plot-throughput", figure, title="Throughput of every flow over time"),
        tables.brownouts(cut),
        remark=_which(result, shown),
    )


def _tcp(
    result: RunResult, shown: MigrationResult, samples: Mapping[str, StructuredArray], prefix: str
) -> Markup | None:
    """Timers, windows and verdicts."""
    told = [flow for flow in result.flows if flow.verdict is not None]
    zero = origin_ns(result)
    window = [(shown.start_ns - zero) / 1e6, (shown.end_ns - zero) / 1e6 + 1000]
    figure = timers_and_windows(samples, zero, window)
    if figure is None and not told:
        return None
    return section(
        f"{prefix}tcp",
        "What became of the connections",
        plot(f"{prefix}plot-tcp", figure, title="Retransmission timers and congestion windows") if figure else None,
        tables.fates(told) if told else None,
        remark="what the kernel said at the clients; waited: of the outage, for the retransmission timer",
    )


def _prediction(result: RunResult, shown: MigrationResult, prefix: str) -> Markup | None:
    found = shown.prediction
    if found is None or (found.predicted is None and found.bound is None):
        return None
    return section(
        f"{prefix}prediction",
        "Prediction and lower bound",
        plot(f"{prefix}plot-prediction", prediction(shown, found), title="Predicted, measured and least possible"),
        tables.prediction(shown, found),
        remark="made before the migration; bound: the least that any engine could have needed",
    )


def _migrations(result: RunResult, prefix: str) -> Markup | None:
    if len(result.migrations) < 2:
        return None
    return section(f"{prefix}migrations", "Migrations", tables.migrations(result.migrations))


def _links(result: RunResult, prefix: str) -> Markup | None:
    if not result.links:
        return None
    return section(f"{prefix}links", "Links", tables.links(result.links), remark="two values: out / back")


# the run's surroundings


def _machine(recording: Recording, page_directory: Path, prefix: str) -> Markup:
    result = recording.result
    files = [
        Path(name) for name in ("result.json", "events.jsonl", "scenario.json") if (recording.path / name).is_file()
    ]
    files += [*recording.captures, *recording.logs]
    linked = [tag("li", tag("a", str(file), href=_link(recording.path / file, page_directory))) for file in files[:200]]
    scenario = recording.scenario
    guest = result.environment.get("guest")
    machine = {name: value for name, value in result.environment.items() if name != "guest"}
    return section(
        f"{prefix}machine",
        "Machine, scenario, files",
        tag(
            "div",
            tag("div", tag("h3", "Environment"), tables.environment(machine)),
            tag("div", tag("h3", "Captures, logs, data"), tag("ul", *linked)),
            class_="two",
        ),
        disclosure("The guest at the run's end", tables.environment(guest))
        if isinstance(guest, dict) and guest
        else None,
        disclosure("The scenario", tag("pre", lines(json.dumps(scenario, indent=2)))) if scenario else None,
    )


def _link(path: Path, page_directory: Path) -> str:
    return quote(os.path.relpath(path.resolve(), page_directory.resolve()))
