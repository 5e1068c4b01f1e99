"""Several guests: crossing and evacuating, each to its own end whatever becomes of the others; one of each runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from bench_runs import (
    PLAIN_LINKS,
    QUICK,
    Bench,
    completed,
    dead_runs,
    events_of,
    interfaces,
    require_moved,
    settings,
    started,
)

from bench.analysis.overall import most_at_once
from bench.result import RunResult

pytestmark = pytest.mark.root

RANDOM = "guest.content={zero=0.0,text=0.0,random=1.0}"
# 12 MiB of random pages over 20 Mbit/s take 5 s, which leaves time to interfere.
SLOW = ("links.default.bandwidth=20Mbit", "guest.memory=12MiB", RANDOM)
COPYING = "g1: set up: copying memory while the guest runs"


def require_one_of_each(run: Bench, result: RunResult) -> None:
    """By their events: who ran a guest, and gave it up, in which order; and what each guest says at the end."""
    assert result.overall is not None
    events = events_of(run.output)
    for guest in result.overall.guests:
        moved = sum(item.outcome == "completed" for item in result.migrations if item.guest == guest.name)
        own = [event for event in events if event.guest == guest.name and event.source.startswith("guest.")]
        taken = [event.t_ns for event in own if event.name == "ownership_taken"]
        paused = [event.t_ns for event in own if event.name == "vcpus_stopped"]
        assert len(taken) == moved
        assert result.environment["guests"][guest.name]["state"] == "running"
        assert result.environment["guests"][guest.name]["self_check_errors"] == 0
        assert all(before < after for before, after in zip(paused, taken, strict=False))


def require_served(result: RunResult) -> None:
    for flow in result.flows:
        assert flow.alive, (flow.name, flow.error)
        assert flow.corrupted == flow.duplicated == 0, flow.name
        assert flow.requests > 0


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    more = ("run.repeat=2", "run.pause_between=100ms", "guest.memory=24MiB", "run.capture=true", "moves.1.start=0ms")
    return completed(tmp_path_factory.mktemp("crossing"), *settings(*PLAIN_LINKS, *more), scenario="crossing")


def test_guests_cross_and_come_back_with_identical_memory(crossing: Bench) -> None:
    result = crossing.result()
    ends = sorted((item.guest, item.source, item.destination) for item in result.migrations)
    assert ends == [("g1", "h1", "h2"), ("g1", "h2", "h1"), ("g2", "h1", "h2"), ("g2", "h2", "h1")]
    for migration in result.migrations:
        require_moved(migration)
        assert {flow.guest for flow in migration.flows} == {migration.guest}
        assert [switch.name for switch in migration.relearn.switches] == ["s1"]
        assert migration.relearn.announcements > 0
    assert result.overall is not None
    assert [(item.name, item.home, item.host, item.moved) for item in result.overall.guests] == [
        ("g1", "h1", "h1", 2),
        ("g2", "h2", "h2", 2),
    ]
    require_one_of_each(crossing, result)
    require_served(result)


def test_they_really_were_under_way_at_the_same_time(crossing: Bench) -> None:
    result = crossing.result()
    assert result.overall is not None
    assert result.overall.at_once == 2
    first = [item for item in result.migrations if (item.guest, item.source) in (("g1", "h1"), ("g2", "h2"))]
    copying = [(phase.start_ns, phase.end_ns) for item in first for phase in item.phases if phase.name == "precopy"]
    assert most_at_once(copying) == 2


def test_every_guest_has_its_own_captures_events_and_sums(crossing: Bench) -> None:
    captured = {path.name for path in (crossing.output / "captures").iterdir()}
    assert captured == {f"{guest}@{host}.pcapng" for guest in ("g1", "g2") for host in ("h1", "h2")}
    result = crossing.result()
    assert result.overall is not None
    assert result.overall.bytes_sent == sum(item.bytes_sent for item in result.migrations)
    for name in ("g1", "g2"):
        finished = [event for event in events_of(crossing.output) if event.name == "finished" and event.guest == name]
        assert Counter(event.source for event in finished) == {"engine.source": 2, "engine.destination": 2}
    assert "Who ran when" in crossing.stdout
    assert "4 migrations of 2 guests: completed" in crossing.stdout


def test_a_host_is_emptied_two_at_a_time(tmp_path: Path) -> None:
    run = completed(tmp_path, *settings(*QUICK), scenario="evacuate")
    result = run.result()
    assert [item.outcome for item in result.migrations] == ["completed"] * 4
    for migration in result.migrations:
        require_moved(migration)
        assert migration.source == "h1"
    assert result.overall is not None
    assert result.overall.at_once == 2
    per_host = {item.destination: [] for item in result.migrations}
    for item in result.migrations:
        per_host[item.destination].append((item.start_ns, item.end_ns))
    assert set(per_host) == {"h2", "h3"}
    assert all(most_at_once(stretches) <= 2 for stretches in per_host.values())
    room = {"h2": 64 << 20, "h3": 96 << 20}
    for host, size in room.items():
        assert sum(guest.memory_bytes for guest in result.overall.guests if guest.host == host) <= size
    require_one_of_each(run, result)
    require_served(result)


def disturbed(directory: Path, *more: str, part: str = "") -> Bench:
    """A crossing over slow links, after its end: a process of it was killed, or Ctrl-C was pressed."""
    before = interfaces()
    with started(directory, *settings(*QUICK, *SLOW, "moves.1.start=0ms", *more), scenario="crossing") as run:
        run.wait_for_output(COPYING)
        path = run.wait_for_run_directory()
        if part:
            run.kill(part)
        else:
            run.press_ctrl_c()
        assert run.wait() == (1 if part else 130), run.stdout + run.stderr
    assert run.leftovers() == []
    assert not path.exists()
    assert path.name not in dead_runs()
    assert interfaces() == before
    assert run.stderr == ""
    return run


def test_an_engine_that_is_killed_does_not_end_the_other_migration(tmp_path: Path) -> None:
    run = disturbed(tmp_path, part="engine.source-g1.")
    result = run.result()
    outcomes = {item.guest: item for item in result.migrations}
    assert (outcomes["g1"].outcome, outcomes["g2"].outcome) == ("failed", "completed")
    assert "source engine died (killed by SIGKILL)" in outcomes["g1"].reason
    require_moved(outcomes["g2"])
    assert (result.outcome, result.reason) == ("failed", outcomes["g1"].reason)
    assert result.overall is not None
    assert [guest.host for guest in result.overall.guests] == ["h1", "h1"]
    require_one_of_each(run, result)
    require_served(result)


def test_a_guest_that_is_killed_takes_only_its_own_clients_along(tmp_path: Path) -> None:
    run = disturbed(tmp_path, part="guest.g1.h1.")
    result = run.result()
    outcomes = {item.guest: item for item in result.migrations}
    assert (outcomes["g1"].outcome, outcomes["g2"].outcome) == ("failed", "completed")
    require_moved(outcomes["g2"])
    assert result.overall is not None
    assert [guest.host for guest in result.overall.guests] == [None, "h1"]
    assert result.environment["guests"]["g2"]["state"] == "running"


def test_ctrl_c_cancels_what_runs_and_what_has_not_started(tmp_path: Path) -> None:
    run = disturbed(tmp_path, "migration.plan=sequential")
    result = run.result()
    outcomes = [(item.guest, item.outcome, item.reason) for item in result.migrations]
    assert outcomes == [
        ("g1", "cancelled", "interrupted by SIGINT"),
        ("g2", "cancelled", "never started: interrupted by SIGINT"),
    ]
    assert result.overall is not None
    assert [guest.host for guest in result.overall.guests] == ["h1", "h2"]
    require_one_of_each(run, result)
    require_served(result)
