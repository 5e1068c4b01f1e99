"""Sends prepared Ethernet frames at given times, from a process of its own that nothing in the guest keeps waiting.

It is a fork of the guest's process, made before there is any memory or connection to inherit, keeps no descriptor but
its own, and asks the kernel for real-time scheduling (:func:`bench.host.timer.be_woken_on_time`). It ends with its
channel, and with the process that forked it.

Messages on the channel (JSON lines, :mod:`bench.host.channel`)::

    {"plan": n, "frames": ["hex", …], "sends": [[due_ns, card, frame], …]}   downwards; replaces the former plan
    {"plan": n, "sent": [[index, at_ns, error], …]}                          upwards, in their order

``frame`` is an index, -1 for a frame that is lost: it is noted, and does not leave.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import DeadlineError, GuestError
from bench.host.channel import Channel, ChannelClosed
from bench.host.forking import keep_only
from bench.host.kernel import set_parent_death_signal, set_process_name
from bench.host.timer import TimerFd, be_woken_on_time

PRIORITY: Final = 2
"""Above the delay line's, which is busy for longer."""

_STOP_NS: Final = NS_PER_S

log = logging.getLogger("guest")


class Due(NamedTuple):
    """A frame (None: nothing leaves, it is only noted) by a card, at CLOCK_MONOTONIC *due_ns*."""

    due_ns: int
    card: int
    frame: bytes | None


class Sent(NamedTuple):
    """What became of the frame number *which* of a plan, and when; *error* is empty where it left."""

    plan: int
    which: int
    at_ns: int
    error: str


def open_cards(interfaces: Sequence[str]) -> list[socket.socket]:
    """A sending socket for each, in the calling thread's network namespace. :raises OSError: there is no such one."""
    socks: list[socket.socket] = []
    for interface in interfaces:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # protocol 0: send only
        socks.append(sock)
        sock.bind((interface, 0))
    return socks


def send(socks: Sequence[socket.socket], card: int, frame: bytes) -> str:
    """:returns: why it did not leave; "" when it did."""
    try:
        socks[card].send(frame)
    except (OSError, IndexError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


class PunctualSender:
    """The process, from the guest's. Not thread-safe.

    :param socks: what it sends by, one for each card.
    :ivar pid: of the process; 0 once it was ended.
    :raises GuestError: it cannot be forked.
    """

    def __init__(self, socks: Sequence[socket.socket]) -> None:
        self._channel, other = Channel.pair("guest", "announcer")
        self._plan = 0
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError as error:
            self._channel.close()
            other.close()
            raise GuestError(f"the announcer does not start: {error.strerror}") from error
        if self.pid == 0:
            _live(socks, other, parent)
        other.close()

    def fileno(self) -> int:
        """Readable when there is something to :meth:`receive`."""
        return self._channel.fileno()

    def plan(self, sends: Sequence[Due]) -> int:
        """These frames and none of those before. :returns: the number of this plan.

        :raises GuestError: the process is gone.
        """
        self._plan += 1
        frames = list(dict.fromkeys(item.frame for item in sends if item.frame is not None))
        index = {frame: number for number, frame in enumerate(frames)}
        told = [[item.due_ns, item.card, -1 if item.frame is None else index[item.frame]] for item in sends]
        try:
            self._channel.send({"plan": self._plan, "frames": [frame.hex() for frame in frames], "sends": told})
        except ChannelClosed as error:
            raise GuestError("the announcer is gone") from error
        return self._plan

    def receive(self) -> list[Sent]:
        """What has been sent since, without waiting for more. :raises ChannelClosed: the process is gone."""
        return [
            Sent(int(message["plan"]), int(which), int(at_ns), str(error))
            for message in self._channel.receive_ready()
            for which, at_ns, error in message["sent"]
        ]

    def close(self) -> list[Sent]:
        """End it; nothing leaves after this. Idempotent and bounded. :returns: what had not been received."""
        if not self.pid:
            return []
        pid, self.pid = self.pid, 0
        left: list[Sent] = []
        deadline = Deadline(_STOP_NS)
        with contextlib.suppress(OSError, ChannelClosed, DeadlineError):
            self._channel.sock.shutdown(socket.SHUT_WR)
            while select.select([self._channel], [], [], deadline.remaining_s)[0]:
                left += self.receive()
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        return left


def _live(socks: Sequence[socket.socket], other: socket.socket, parent: int) -> None:
    """The forked process; never returns."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() == parent:
            keep_only([other.fileno(), *(sock.fileno() for sock in socks), 0, 1, 2])
            set_process_name("announcer")
            be_woken_on_time(PRIORITY)
            gc.freeze()
            gc.disable()
            _serve(Channel(other, "guest"), socks)
    except Exception:
        log.exception("the announcer failed")
    finally:
        os._exit(0)


def _serve(channel: Channel, socks: Sequence[socket.socket]) -> None:
    timer = TimerFd()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(timer, select.POLLIN)
    plan, frames, sends, position = 0, list[bytes](), list[list[int]](), 0
    while True:
        timer.arm(sends[position][0] if position < len(sends) else None)
        for fd, _events in poll.poll():
            if fd != channel.fileno():
                timer.clear()
                continue
            try:
                messages = channel.receive_ready()
            except ChannelClosed:
                return
            for message in messages:
                plan, sends, position = message["plan"], message["sends"], 0
                frames = [bytes.fromhex(text) for text in message["frames"]]
        told: list[list[object]] = []
        while position < len(sends) and sends[position][0] <= now_ns():
            _due_ns, card, frame = sends[position]
            error = "" if frame < 0 else send(socks, card, frames[frame])
            told.append([position, now_ns(), error])
            position += 1
        if told:
            channel.send({"plan": plan, "sent": told})
