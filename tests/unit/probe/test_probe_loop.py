"""The loop: what is due runs once, in order, and one broken callback does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from bench.clock import NS_PER_MS, now_ns
from bench.probe.loop import READABLE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as loop:
        yield loop


def fail(error: Exception) -> None:
    raise AssertionError(error)


def test_due_calls_run_in_order_and_not_early(loop: Loop) -> None:
    ran: list[tuple[str, int]] = []
    start = now_ns()
    due = {"late": start + 20 * NS_PER_MS, "soon": start + 5 * NS_PER_MS, "past": start - 1}
    for name, when in due.items():
        loop.at(when, lambda name=name: ran.append((name, now_ns())), fail)  # type: ignore[misc]
    loop.at(due["late"] + 1, loop.stop, fail)
    loop.run()
    assert [name for name, _at in ran] == ["past", "soon", "late"]
    assert all(at >= due[name] for name, at in ran)


def test_a_periodic_timer_counts_what_it_missed(loop: Loop) -> None:
    counts: list[int] = []
    start = now_ns() - 50 * NS_PER_MS  # 50 due times lie in the past already: one call stands for them
    periodic = loop.every(NS_PER_MS, counts.append, fail, start)
    loop.run_once()
    assert len(counts) == 1
    assert counts[0] >= 50
    while len(counts) < 5:
        loop.run_once()
    elapsed = (now_ns() - start) // NS_PER_MS
    assert sum(counts) <= elapsed + 1
    periodic.close()
    periodic.close()


def test_errors_go_to_their_owner(loop: Loop) -> None:
    errors: list[Exception] = []

    def broken(_events: int) -> None:
        raise ConnectionResetError(104, "reset")

    served = []
    pipes = [os.pipe(), os.pipe()]
    try:
        for _read, write in pipes:
            os.write(write, b"x")
        loop.watch(pipes[0][0], READABLE, broken, errors.append)
        loop.watch(pipes[1][0], READABLE, served.append, fail)
        loop.run_once()
        assert len(errors) == len(served) == 1
        loop.unwatch(pipes[0][0])
        loop.unwatch(pipes[0][0])
        loop.run_once()
        assert (len(errors), len(served)) == (1, 2)
    finally:
        for pair in pipes:
            loop.unwatch(pair[0])
            for fd in pair:
                os.close(fd)


def test_a_callback_may_close_another(loop: Loop) -> None:
    pipes = [os.pipe(), os.pipe()]
    calls: list[int] = []

    def serve(mine: int, other: int) -> None:
        calls.append(mine)
        loop.unwatch(other)

    try:
        for read, write in pipes:
            os.write(write, b"x")
            other = pipes[0][0] if read == pipes[1][0] else pipes[1][0]
            loop.watch(read, READABLE, lambda _events, read=read, other=other: serve(read, other), fail)  # type: ignore[misc]
        loop.run_once()
        assert len(calls) == 1
    finally:
        for pair in pipes:
            loop.unwatch(pair[0])
            for fd in pair:
                os.close(fd)
