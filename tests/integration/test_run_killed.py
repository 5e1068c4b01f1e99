"""SIGKILL of any process of a run: one clear message, nothing left, and the guest goes on where it may."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from bench_runs import CALM, QUICK, Bench, call, dead_runs, events_of, interfaces, settings, started

from bench.result import RunResult

pytestmark = pytest.mark.root

SLOW = ("links.default.bandwidth=20Mbit", "guest.memory=32MiB", "guest.content={zero=0.0,text=0.0,random=1.0}")
COPYING = "copying memory while the guest runs"


def killed(directory: Path, part: str, code: int, *more: str) -> Bench:
    """A run of which the process with *part* in its command line was killed during pre-copy, after its end."""
    before = interfaces()
    with started(directory, *settings(*QUICK, *CALM, *SLOW, *more)) as run:
        run.wait_for_output(COPYING)
        path = run.wait_for_run_directory()
        run.kill(part)
        assert run.wait() == code, run.stdout + run.stderr
    assert run.leftovers() == []
    assert not path.exists()
    assert interfaces() == before
    assert "Traceback" not in run.stdout + run.stderr
    return run


def message(run: Bench) -> str:
    """The one message of a run that broke."""
    assert run.stderr.startswith("bench: ")
    assert run.stderr.count("bench: ") == 1
    assert f"no result; logs: {run.output}" in run.stdout
    assert any((run.output / "logs").iterdir())
    return run.stderr


def require_alive_at_the_source(result: RunResult) -> None:
    for flow in result.flows:
        assert flow.alive, (flow.name, flow.error)
        assert flow.corrupted == 0
    assert result.environment["guest"]["state"] == "running"
    assert result.downtime_ns is None


@pytest.mark.parametrize("engine", ["source", "destination"])
def test_an_engine(tmp_path: Path, engine: str) -> None:
    run = killed(tmp_path, f"bench.migration.{engine}", 1)
    result = run.result()
    assert result.outcome == "failed"
    assert f"{engine} engine died (killed by SIGKILL)" in result.reason
    require_alive_at_the_source(result)
    assert "ownership_taken" not in {event.name for event in events_of(run.output)}
    assert f"failed: {result.reason[:20]}" in " ".join(run.stdout.split())
    assert run.stderr == ""


def test_the_guest(tmp_path: Path) -> None:
    run = killed(tmp_path, "bench.guest.process", 1)
    result = run.result()
    assert result.outcome == "failed"
    assert "guest" in result.reason
    assert any("guest" in reason for reason in result.trust.reasons)
    assert run.stderr == ""


def test_the_controller(tmp_path: Path) -> None:
    text = message(killed(tmp_path, "controllers", 1))
    assert "controller" in text
    assert "SIGKILL" in text


def test_the_delay_line(tmp_path: Path) -> None:
    run = killed(tmp_path, "bench.link.delayline", 1, "links.default.delay=0.2ms")
    text = message(run)
    assert "delay line" in text
    assert "SIGKILL" in text


def test_ovs_vswitchd(tmp_path: Path) -> None:
    text = message(killed(tmp_path, "ovs-vswitchd", 1))
    assert "ovs-vswitchd" in text
    assert "SIGKILL" in text


def test_a_client_agent(tmp_path: Path) -> None:
    text = message(killed(tmp_path, "bench.probe.client", 1))
    assert "c1" in text
    assert "SIGKILL" in text


@pytest.mark.alone  # what `bench clean` removes is no other test's
def test_the_bench_itself(tmp_path: Path) -> None:
    """Nobody is there to tidy up: the kernel takes the processes, `bench clean` what is below /run."""
    before = interfaces()
    with started(tmp_path, *settings(*QUICK, *CALM, *SLOW)) as run:
        run.wait_for_output(COPYING)
        path = run.wait_for_run_directory()
        os.kill(run.child.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert run.leftovers() == []
    assert path.name in dead_runs()
    done = call("clean")
    assert done.returncode == 0
    assert path.name in done.stdout
    assert not path.exists()
    assert interfaces() == before


@pytest.mark.parametrize("generation", ["init", "runner"])
def test_what_holds_the_run(tmp_path: Path, generation: str) -> None:
    before = interfaces()
    with started(tmp_path, *settings(*QUICK, *CALM, *SLOW)) as run:
        run.wait_for_output(COPYING)
        path = run.wait_for_run_directory()
        init = run.only_child(run.child.pid)
        os.kill(init if generation == "init" else run.runner(init), signal.SIGKILL)
        assert run.wait() == 128 + signal.SIGKILL
    assert run.leftovers() == []
    assert not path.exists()
    assert interfaces() == before
    assert run.stderr == "bench: the run was killed\n"
