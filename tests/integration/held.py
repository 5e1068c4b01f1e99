"""Migrations whose source engine stands still where a test says, until it is let go on (``fakes/held_source``)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.errors import DeadlineError
from bench.host.commands import python_environment, spawn_child
from bench.migration import driver
from bench.migration.states import State

FAKES = Path(__file__).resolve().parents[1] / "fakes"
SOON_NS = NS_PER_S // 20
LONG_NS = 60 * NS_PER_S


def hold_source(monkeypatch: pytest.MonkeyPatch, *, at: Iterable[State] = (), after: Iterable[str] = ()) -> None:
    """Of migrations that are started from now on: hold on entering these states, and after these events."""
    held = {"HOLD_AT": " ".join(state.value for state in at), "HOLD_AFTER": " ".join(after)}
    held["PYTHONPATH"] = f"{python_environment()['PYTHONPATH']}:{FAKES}"

    def spawn_held(module, **options):
        if module == "bench.migration.source":
            return spawn_child("held_source", **{**options, "env": held})
        return spawn_child(module, **options)

    monkeypatch.setattr(driver, "spawn_child", spawn_held)
    monkeypatch.setattr(driver, "SETTLE_NS", NS_PER_S)


def pid_of(moving: driver.Migration, side: str) -> int:
    return moving._sides[side].process.pid


def wait_until_held(moving: driver.Migration) -> None:
    """At the next place to hold at; the runner's side goes on meanwhile."""
    stat = Path(f"/proc/{pid_of(moving, 'source')}/stat")
    deadline = Deadline(LONG_NS)
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert not deadline.expired, "it never came there"
        with contextlib.suppress(DeadlineError):
            outcome = moving.wait(None, Deadline(SOON_NS))
            pytest.fail(f"it ended before it came there: {outcome}")


def go_on(moving: driver.Migration) -> None:
    with contextlib.suppress(ProcessLookupError):  # killed
        os.kill(pid_of(moving, "source"), signal.SIGCONT)


def post_cancel(moving: driver.Migration) -> int:
    """To an engine that stands still; its answer comes when it goes on."""
    return moving._sides["source"].channel.post("cancel")
