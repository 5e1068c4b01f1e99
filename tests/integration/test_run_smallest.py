"""The smallest scenario from command to prompt: what a run must do, say and leave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench_runs import LENIENT, Bench, call, completed, dead_runs, events_of, interfaces, settings

from bench.clock import NS_PER_MS
from bench.result import MigrationResult, RunResult
from bench.scenario import restore_scenario

pytestmark = pytest.mark.root

PHASES = ["setup", "precopy", "stop-and-copy", "device-state", "storage", "resume", "announce"]
# As issue 2 promises them: others build on these names.
MEMBERS = {
    "": "schema outcome reason total_ns downtime_ns phases rounds memory flows relearn links environment trust",
    "phases": "name start_ns end_ns",
    "rounds": "pages zero_pages bytes_sent dirty_pages_after start_ns end_ns",
    "memory": "bytes identical digest",
    "flows": "name kind requests lost duplicated corrupted alive outage_ns budget",
    "flows.budget": "stage ns",
    "relearn": "announce_ns switches",
    "relearn.switches": "name controller_ns confirmed_ns first_frame_ns stable_ns frames_to_old_port",
    "links": "name asked applied measured",
    "trust": "ok reasons",
}


@pytest.fixture(scope="module")
def before() -> set[str]:
    return interfaces()


@pytest.fixture(scope="module")
def run(before: set[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return completed(tmp_path_factory.mktemp("smallest"), *settings("run.capture=true", *LENIENT))


@pytest.fixture(scope="module")
def result(run: Bench) -> RunResult:
    return run.result()


def members(value: Any, path: str) -> list[dict[str, Any]]:
    """Every object at a dotted *path*, through lists."""
    found = [value]
    for name in path.split(".") if path else ():
        found = [item[name] for item in found]
        found = [item for part in found for item in (part if isinstance(part, list) else [part])]
    return found


def test_it_completes_with_identical_memory(result: RunResult) -> None:
    assert result.outcome == "completed"
    assert result.memory.identical is True
    assert result.memory.bytes == 16 << 20
    assert result.memory.digest == result.memory.digest_source == result.memory.digest_destination
    assert re.fullmatch(r"[0-9a-f]{32,}", result.memory.digest or "")


def test_every_promised_member_is_there(run: Bench) -> None:
    raw = json.loads((run.output / "result.json").read_text())
    for path, names in MEMBERS.items():
        found = members(raw, path)
        assert found, path
        for item in found:
            assert not set(names.split()) - item.keys(), path


def test_phases_and_rounds_follow_each_other(result: RunResult) -> None:
    assert [phase.name for phase in result.phases] == PHASES
    assert all(phase.start_ns <= phase.end_ns for phase in result.phases)
    assert [phase.start_ns for phase in result.phases] == sorted(phase.start_ns for phase in result.phases)
    assert [item.paused for item in result.rounds] == [*[False] * (len(result.rounds) - 1), True]
    for earlier, later in zip(result.rounds, result.rounds[1:], strict=False):
        assert earlier.end_ns <= later.start_ns
    assert result.rounds[0].pages == (16 << 20) // 4096
    assert 0 < result.rounds[0].zero_pages < result.rounds[0].pages
    assert result.rounds[-1].dirty_pages_after == 0
    assert result.start_ns <= result.pause_ns < result.resume_ns <= result.end_ns  # type: ignore[operator]
    assert result.downtime_ns == result.resume_ns - result.pause_ns  # type: ignore[operator]
    assert result.downtime_ns < result.total_ns  # type: ignore[operator]


def test_no_connection_is_lost_and_nothing_is_corrupted(result: RunResult) -> None:
    assert [flow.kind for flow in result.flows] == ["udp-echo", "tcp-request", "tcp-download", "tcp-upload"]
    for flow in result.flows:
        assert flow.alive, (flow.name, flow.error)
        assert flow.requests > 0
        assert flow.corrupted == flow.duplicated == 0
        if flow.kind != "udp-echo":
            assert flow.lost == 0
    assert result.connections == 3


def test_every_outage_is_explained_to_within_a_millisecond(result: RunResult) -> None:
    require_budgets(result)


def require_budgets(migration: MigrationResult) -> None:
    for flow in migration.flows:
        if flow.kind == "command":
            continue
        assert flow.outage_ns is not None, flow.name
        assert flow.budget_ok, (flow.name, flow.budget_note)
        assert abs(sum(part.ns for part in flow.budget) - flow.outage_ns) <= NS_PER_MS, flow.name
        assert all(part.ns >= 0 for part in flow.budget), flow.name
        assert migration.downtime_ns is not None
        if flow.kind == "udp-echo":  # a probe each millisecond cannot miss a downtime
            assert flow.outage_ns >= migration.downtime_ns - 2 * NS_PER_MS


def test_the_switch_relearns_and_stays(result: RunResult) -> None:
    (switch,) = result.relearn.switches
    assert result.relearn.announcements == 10
    moments = [result.relearn.announce_ns, switch.controller_ns, switch.confirmed_ns]
    assert None not in moments
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert switch.first_frame_ns is not None
    assert switch.stable_ns is not None


def test_links_say_asked_applied_and_measured(result: RunResult) -> None:
    assert sorted(link.name for link in result.links) == ["c1-s1", "h1-s1", "h2-s1", "st1-s1"]
    for link in result.links:
        assert link.ok
        assert link.mechanism
        assert link.asked
        assert link.applied
        assert link.measured


def test_the_environment_is_named(result: RunResult) -> None:
    for key in ("kernel", "datapath", "delay", "controller", "cpu", "guest"):
        assert result.environment[key], key


def test_what_else_lies_in_the_directory(run: Bench) -> None:
    names = {path.name for path in run.output.iterdir()}
    assert names == {"result.json", "scenario.json", "events.jsonl", "requests", "logs", "captures"}
    scenario = restore_scenario((run.output / "scenario.json").read_text(), "scenario.json")
    assert scenario.guest.memory == 16 << 20
    assert scenario.run.capture
    assert any(path.name.startswith("guest.") for path in (run.output / "logs").iterdir())
    events = events_of(run.output)
    assert [event.t_ns for event in events] == sorted(event.t_ns for event in events)
    sources = {event.source for event in events}
    for source in ("engine.source", "engine.destination", "client.c1", "guest.h1", "guest.h2"):
        assert source in sources
    assert any(source.startswith("controller") for source in sources)


def test_captures_of_the_guests_ports_can_be_read(run: Bench) -> None:
    captures = sorted((run.output / "captures").iterdir())
    assert [path.suffix for path in captures] == [".pcapng", ".pcapng"]
    for path in captures:
        # Not as root: tcpdump gives its rights away, and cannot read what is in root's directories then.
        done = subprocess.run(
            ["tcpdump", "-Z", "root", "-nn", "-r", path], capture_output=True, text=True, check=True, timeout=60
        )
        assert "10.0.1.1" in done.stdout
    packets = [path.stat().st_size for path in captures]
    assert min(packets) > 1000


def test_the_terminal_says_what_the_result_says_and_show_repeats_it(run: Bench, result: RunResult) -> None:
    shown = call("show", run.output)
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert shown.stdout.strip() in run.stdout
    assert "completed" in shown.stdout
    for word in ("downtime", "Phases", "Rounds", "Relearning", "Outage budget", "trust"):
        assert word in shown.stdout
    for flow in result.flows:
        assert flow.name in shown.stdout
    assert f"result: {run.output}" in run.stdout
    assert run.stderr == ""


def test_the_result_can_be_shown_where_it_was_copied_to(run: Bench, tmp_path: Path) -> None:
    shutil.copy(run.output / "result.json", tmp_path)
    assert call("show", tmp_path).stdout == call("show", run.output).stdout


def test_a_second_run_does_not_touch_it(run: Bench) -> None:
    text = (run.output / "result.json").read_text()
    done = call("run", "smallest", "-o", run.output)
    assert done.returncode == 2
    assert str(run.output) in done.stderr
    assert (run.output / "result.json").read_text() == text


def test_nothing_is_left(run: Bench, before: set[str]) -> None:
    assert dead_runs() == []
    assert interfaces() == before
