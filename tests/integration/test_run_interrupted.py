"""Ctrl-C and SIGTERM at any time end in a result that says so; nothing is left and the guest was not harmed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_runs import CALM, QUICK, Bench, dead_runs, events_of, interfaces, settings, started

from bench.result import RunResult

pytestmark = pytest.mark.root

# 32 MiB of random pages over 20 Mbit/s take 13 s, which leaves time to press a key.
SLOW = ("links.default.bandwidth=20Mbit", "guest.memory=32MiB", "guest.content={zero=0.0,text=0.0,random=1.0}")


def interrupted(
    directory: Path, text: str, notice: Callable[[Bench], None], code: int, *more: str
) -> tuple[Bench, RunResult]:
    """A run that gets *notice* when it has said *text*, after its end; it must have ended in order."""
    before = interfaces()
    with started(directory, *settings(*QUICK, *CALM, *more)) as run:
        run.wait_for_output(text)
        path = run.wait_for_run_directory()
        notice(run)
        assert run.wait() == code, run.stdout + run.stderr
    assert run.leftovers() == []
    assert not path.exists()
    assert run.run_directory is not None
    assert run.run_directory.name not in dead_runs()
    assert interfaces() == before
    assert run.stderr == ""
    assert f"result: {run.output}" in run.stdout
    json.loads((run.output / "scenario.json").read_text())
    return run, run.result()


def sigterm(run: Bench) -> None:
    os.kill(run.child.pid, signal.SIGTERM)


@pytest.mark.parametrize("text", ["raising the network", "warming up"])
def test_before_the_migration(tmp_path: Path, text: str) -> None:
    run, result = interrupted(tmp_path, text, Bench.press_ctrl_c, 130, "run.warmup=60s")
    assert (result.outcome, result.reason) == ("cancelled", "interrupted by SIGINT")
    assert result.migrations == []
    assert "did not move: cancelled: interrupted by SIGINT" in run.stdout


def test_while_the_migration_is_set_up(tmp_path: Path) -> None:
    _run, result = interrupted(tmp_path, "migration 1 of 1", Bench.press_ctrl_c, 130)
    assert result.outcome in ("cancelled", "completed")  # it may have been too late by then
    assert "interrupted by SIGINT" in result.reason


@pytest.mark.parametrize(("notice", "code", "name"), [(Bench.press_ctrl_c, 130, "SIGINT"), (sigterm, 143, "SIGTERM")])
def test_during_pre_copy_the_guest_stays_where_it_was(
    tmp_path: Path, notice: Callable[[Bench], None], code: int, name: str
) -> None:
    run, result = interrupted(tmp_path, "copying memory while the guest runs", notice, code, *SLOW)
    assert (result.outcome, result.reason) == ("cancelled", f"interrupted by {name}")
    (migration,) = result.migrations
    assert migration.pause_ns is None
    assert migration.downtime_ns is None
    for flow in result.flows:
        assert flow.alive, (flow.name, flow.error)
        assert flow.corrupted == 0
    stats = result.environment["guest"]
    assert stats["state"] == "running"
    names = {event.name for event in events_of(run.output)}
    assert "ownership_taken" not in names
    assert "interrupted: cancelling the migration" in run.stdout


def test_after_the_migration_it_stays_completed(tmp_path: Path) -> None:
    _run, result = interrupted(tmp_path, "letting the flows settle", Bench.press_ctrl_c, 130, "run.settle=60s")
    assert (result.outcome, result.reason) == ("completed", "interrupted by SIGINT")
    assert result.memory.identical is True
    assert all(flow.alive for flow in result.flows)


def test_between_migrations_the_first_is_told(tmp_path: Path) -> None:
    more = ("run.repeat=3", "run.pause_between=60s")
    _run, result = interrupted(tmp_path, "pausing between migrations", Bench.press_ctrl_c, 130, *more)
    assert [item.outcome for item in result.migrations] == ["completed"]
    assert result.reason == "interrupted by SIGINT"
    assert all(flow.alive for flow in result.flows)


def test_an_impatient_user(tmp_path: Path) -> None:
    """A second Ctrl-C kills what the first asked to stop."""
    before = interfaces()
    with started(tmp_path, *settings(*QUICK, *CALM, *SLOW)) as run:
        run.wait_for_output("copying memory while the guest runs")
        path = run.wait_for_run_directory()
        run.press_ctrl_c()
        if not run.ended_within(0.5):  # what comes sooner counts as the same key press
            run.press_ctrl_c()
        assert run.wait() in (130, 137, -signal.SIGINT)  # the last: it was just about to end by itself
    assert run.leftovers() == []
    assert not path.exists()
    assert interfaces() == before
