"""Commands come before everything, bulk work is bounded and fair, timers run in order."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.guest import loop as loop_module
from bench.guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(6)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def test_a_new_loop_handles_no_bulk_event_until_released(loop: Loop, pairs: list) -> None:
    seen = []
    here, there = pairs[0]
    there.send(b"x")
    loop.watch_bulk(here.fileno(), select.EPOLLIN, lambda _events: seen.append(here.recv(10)))
    loop.turn(0)
    assert seen == []
    loop.release_bulk()
    loop.turn(0)
    assert seen == [b"x"]
    loop.hold_bulk()
    loop.hold_bulk()
    there.send(b"y")
    loop.turn(0)
    assert seen == [b"x"]


def test_a_command_waits_for_one_bulk_event_at_most(loop: Loop, pairs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sockets stay readable; a command that arrives during one event is handled before the turn after next."""
    monkeypatch.setattr(loop_module, "BULK_TURN_NS", 0)
    order: list[str] = []
    command_here, command_there = pairs[0]

    def bulk(_events: int) -> None:
        order.append("bulk")
        if len(order) == 3:
            command_there.send(b"c")

    def command(_events: int) -> None:
        command_here.recv(10)
        order.append("command")
        loop.stop()

    for here, there in pairs[1:]:
        there.send(b"x")
        loop.watch_bulk(here.fileno(), select.EPOLLIN, bulk)  # never read: always ready
    loop.watch(command_here.fileno(), select.EPOLLIN, command)
    loop.release_bulk()
    loop.run()
    assert order == ["bulk"] * 3 + ["command"]


def test_bulk_descriptors_are_served_in_turn(loop: Loop, pairs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "BULK_TURN_NS", 0)
    counts = [0] * len(pairs)

    def handler(index: int) -> loop_module.Handler:
        def handle(_events: int) -> None:
            counts[index] += 1

        return handle

    for index, (here, there) in enumerate(pairs):
        there.send(b"x")
        loop.watch_bulk(here.fileno(), select.EPOLLIN, handler(index))
    loop.release_bulk()
    for _ in range(10 * len(pairs)):
        loop.turn(0)
    assert counts == [10] * len(pairs)


def test_a_handler_that_holds_the_bulk_ends_the_stretch(loop: Loop, pairs: list) -> None:
    seen = []

    def handle(_events: int) -> None:
        seen.append(1)
        loop.hold_bulk()

    for here, there in pairs:
        there.send(b"x")
        loop.watch_bulk(here.fileno(), select.EPOLLIN, handle)
    loop.release_bulk()
    loop.turn(0)
    assert seen == [1]


def test_timers_run_in_order_of_their_time_and_not_when_cancelled(loop: Loop) -> None:
    ran: list[str] = []
    now = now_ns()
    loop.at(now + 2 * NS_PER_MS, lambda: ran.append("second"))
    loop.at(now + NS_PER_MS, lambda: ran.append("first"))
    loop.at(now + NS_PER_MS, lambda: ran.append("never")).cancel()
    loop.at(now + NS_PER_S * 3600, lambda: ran.append("late")).cancel()
    loop.at(now + 3 * NS_PER_MS, loop.stop)
    loop.run()
    assert ran == ["first", "second"]


def test_a_timer_may_arm_another_and_a_past_one_runs_at_once(loop: Loop) -> None:
    ran: list[int] = []

    def again() -> None:
        ran.append(1)
        if len(ran) < 3:
            loop.at(0, again)
        else:
            loop.stop()

    loop.at(0, again)
    loop.run()
    assert ran == [1, 1, 1]


def test_a_descriptor_unwatched_by_an_earlier_handler_is_not_handled(loop: Loop, pairs: list) -> None:
    seen = []

    def handle(_events: int) -> None:
        seen.append(1)
        for here, _there in pairs:
            loop.unwatch(here.fileno())

    for here, there in pairs:
        there.send(b"x")
        loop.watch(here.fileno(), select.EPOLLIN, handle)
    loop.turn(0)
    assert seen == [1]
    loop.unwatch(pairs[0][0].fileno())


def test_close_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Loop()
    made.at(now_ns() + NS_PER_S, lambda: None)
    made.turn(0)
    made.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
