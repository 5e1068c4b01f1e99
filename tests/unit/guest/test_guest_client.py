"""The control client believes only answers that make sense, and leaks no descriptor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.errors import DeadlineError, GuestError
from bench.guest.client import GuestControl, Writer, guest_command
from bench.host.channel import Channel, ChannelClosed, Message
from bench.timeline import Event

Answer = Callable[[Message, Channel], None]


class FakeGuest:
    """Answers every command by *answer*, in a thread; keeps what it was asked."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control = GuestControl(here)
        self.asked: list[Message] = []
        self.answer: Answer = lambda message, channel: channel.send_reply(message["id"])
        self._channel = Channel(there, "test")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                self.asked.append(message)
                self.answer(message, self._channel)
        except ChannelClosed:
            self._channel.close()

    def reply(self, value: dict[str, Any], files: int = 0) -> None:
        """Answer with *value* and so many descriptors."""

        def answer(message: Message, channel: Channel) -> None:
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(files)]
            channel.send_reply(message["id"], value, fds)
            for fd in fds:
                os.close(fd)

        self.answer = answer

    def close(self) -> None:
        self.control.close()
        self._thread.join(10)


@pytest.fixture
def guest() -> Iterator[FakeGuest]:
    made = FakeGuest()
    yield made
    made.close()


TIMES = {"pause_begin_ns": 1, "vcpus_stopped_ns": 2, "net_cut_ns": 3, "dumped_ns": 4}
PAUSED = {"device_bytes": 9, "connections": 2, "times": TIMES, "owner": "h1", "generation": 3, "embryonic": 0}


def test_answers_become_values(guest: FakeGuest) -> None:
    guest.reply({"bytes": 4096, "writers": [{"pid": 1, "base": 2}]}, 1)
    memory = guest.control.memory()
    os.close(memory.fd)
    assert (memory.size_bytes, memory.writers) == (4096, (Writer(1, 2),))
    guest.reply(PAUSED, 1)
    paused = guest.control.pause()
    os.close(paused.fd)
    assert (paused.connections, paused.owner, paused.generation, paused.times) == (2, "h1", 3, TIMES)
    guest.reply({"resumed": False, "owner": "h2"})
    assert guest.control.resume() == (False, "h2")
    guest.reply(
        {"taken": True, "owner": "h2", "ownership_ns": 1, "resumed_ns": 2, "port_wired_ns": 3, "announce_ns": 4}
    )
    assert guest.control.take({"frames": [], "offsets_ns": []}, "h1", 3).announce_ns == 4
    assert guest.asked[-1]["args"]["expect"] == {"owner": "h1", "generation": 3}


def test_a_pause_tells_when_memory_stands_still_and_then_gives_the_device_state(guest: FakeGuest) -> None:
    still = {"pause_begin_ns": 1, "vcpus_stopped_ns": 2, "net_cut_ns": 3}
    go_on = threading.Event()

    def answer(message: Message, channel: Channel) -> None:
        channel.send_event(Event.now("guest", "still", times=still))
        assert go_on.wait(10)
        with Path(os.devnull).open() as file:
            channel.send_reply(message["id"], PAUSED, [file.fileno()])

    guest.answer = answer
    pausing = guest.control.begin_pause()
    assert pausing.still() == still
    assert not pausing.done_within(0)
    go_on.set()
    assert pausing.done_within(10 * NS_PER_S)
    paused = pausing.finish()
    os.close(paused.fd)
    assert paused.times == TIMES


def test_a_guest_that_only_answers_stood_still_by_then(guest: FakeGuest) -> None:
    guest.reply(PAUSED, 1)
    pausing = guest.control.begin_pause()
    assert pausing.still() == TIMES
    assert pausing.done_within(0)
    os.close(pausing.finish().fd)


@pytest.mark.parametrize("told_before", [False, True])
def test_a_pause_that_fails_says_so_whenever_it_does(guest: FakeGuest, told_before: bool) -> None:
    def answer(message: Message, channel: Channel) -> None:
        if told_before:
            channel.send_event(Event.now("guest", "still", times=TIMES))
        channel.send_error(message["id"], "the guest runs on")

    guest.answer = answer
    pausing = guest.control.begin_pause()
    if told_before:
        pausing.still()
    with pytest.raises(GuestError, match="pause: the guest runs on"):
        pausing.finish() if told_before else pausing.still()


@pytest.mark.parametrize(
    ("call", "value", "files"),
    [
        (lambda control: control.memory(), {"bytes": 1, "writers": []}, 0),
        (lambda control: control.memory(), {"bytes": 1, "writers": []}, 2),
        (lambda control: control.memory(), {"bytes": 1, "writers": [{}]}, 1),
        (lambda control: control.memory(), {"writers": []}, 1),
        (lambda control: control.pause(), {**PAUSED, "times": None}, 1),
        (lambda control: control.pause(), {**PAUSED, "generation": "3"}, 1),
        (lambda control: control.pause(), PAUSED, 0),
        (lambda control: control.configure({}), {}, 0),
        (lambda control: control.take(None, "h1"), {"taken": True}, 0),
        (lambda control: control.track(True, "soft-dirty"), {"writers": 3}, 0),
    ],
)
def test_nonsense_is_a_guest_error_and_leaks_nothing(
    guest: FakeGuest, call: Callable[[GuestControl], Any], value: dict[str, Any], files: int
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    guest.reply(value, files)
    with pytest.raises(GuestError):
        call(guest.control)
    guest.control.close()
    guest.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before - 2


def test_a_refusal_names_the_command(guest: FakeGuest) -> None:
    guest.answer = lambda message, channel: channel.send_error(message["id"], "it is paused")
    with pytest.raises(GuestError, match="pause: it is paused"):
        guest.control.pause()


def test_quit_waits_for_the_end_and_does_not_mind_a_guest_that_is_gone(guest: FakeGuest) -> None:
    with pytest.raises(DeadlineError):
        guest.control.quit(Deadline(50 * NS_PER_MS))

    def answer(message: Message, channel: Channel) -> None:
        channel.send_reply(message["id"])
        channel.sock.shutdown(socket.SHUT_RDWR)

    guest.answer = answer
    guest.control.quit()
    guest.control.quit()


def test_connecting_gives_up_when_the_process_died_or_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="ended before"):
        GuestControl.connect(tmp_path / "no.sock", alive=lambda: False)
    with pytest.raises(DeadlineError):
        GuestControl.connect(tmp_path / "no.sock", deadline=Deadline(20 * NS_PER_MS))


def test_the_client_is_lean() -> None:
    """Engines import it: nothing but the standard library and lean modules of the bench."""
    code = "import bench.guest.client, sys; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not {"numpy", "pydantic", "rich", "scapy", "mininet", "pyroute2"} & set(out.split())


def test_the_command_starts_the_process_module(tmp_path: Path) -> None:
    command = guest_command(tmp_path / "s", tmp_path / "e", tmp_path / "l")
    assert command[1:3] == ["-m", "bench.guest.process"]
    assert NS_PER_S > 0
