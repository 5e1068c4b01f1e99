"""JSON lines over a Unix stream socket, with descriptors: how the processes of one run talk to each other.

Grammar: every message is one JSON object on one line, at most :data:`MAX_MESSAGE_BYTES`. Kinds, told apart by
their keys::

    {"event": {"t":…, "source":…, "name":…, "data":{…}}}         upwards, at any time
    {"command": "pause", "id": 7, "args": {…}}                    downwards
    {"reply": 7, "value": {…}}  or  {"reply": 7, "error": "…"}    upwards, exactly one for each command

A message that carries descriptors says how many in ``"fds"``; they travel by SCM_RIGHTS with its bytes.
Everything read is bounded; a peer that breaks the grammar gets one :class:`HostError`.
"""

from __future__ import annotations

import array
import json
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bench.clock import Deadline
from bench.errors import BenchError, DeadlineError, GuestError, HostError
from bench.timeline import Event

MAX_MESSAGE_BYTES = 16 << 20
MAX_FDS = 253  # SCM_MAX_FD

Message = dict[str, Any]


class ChannelClosed(HostError):
    """The other process closed the channel or died."""


class Channel:
    """One end. Not thread-safe: one owner thread.

    :param sock: a connected AF_UNIX SOCK_STREAM socket; the channel owns it.
    :param peer: the name of the other process, for error messages.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.fds: deque[int] = deque()
        self._buffer = bytearray()
        self._scanned = 0
        self._next_id = 0
        sock.setblocking(True)

    @classmethod
    def from_fd(cls, fd: int, peer: str) -> Channel:
        return cls(socket.socket(fileno=fd), peer)

    @staticmethod
    def pair(here: str, there: str) -> tuple[Channel, socket.socket]:
        """A connected pair: the channel for this process, and the raw socket that a child inherits as *there*."""
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        del here
        return Channel(mine, there), other

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            fd = self.fds.popleft()
            socket.close(fd)

    def peer_closed(self) -> bool:
        """True when the other end is closed, whatever lies unread here. Reads nothing."""
        poll = select.poll()
        poll.register(self.sock, 0)  # POLLHUP is always told
        return bool(poll.poll(0))

    # sending

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """:raises ChannelClosed: when the peer is gone."""
        if fds:
            message = {**message, "fds": len(fds)}
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(data) > MAX_MESSAGE_BYTES:
            raise HostError(f"message to {self.peer} of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        try:
            if fds:
                rights = array.array("i", fds)
                sent = self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                data = data[sent:]
            if data:
                self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed(f"{self.peer} is gone") from error

    def send_event(self, event: Event) -> None:
        self.send({"event": event.to_json()})

    def send_reply(self, command_id: int, value: Mapping[str, Any] | None = None, fds: Sequence[int] = ()) -> None:
        self.send({"reply": command_id, "value": dict(value or {})}, fds)

    def send_error(self, command_id: int, error: str) -> None:
        self.send({"reply": command_id, "error": error[:4000]})

    # receiving

    def pending(self) -> bool:
        """True when a whole message is buffered, so that the socket need not become readable first."""
        return self._buffer.find(b"\n", self._scanned) >= 0

    def receive(self, deadline: Deadline | None = None) -> Message:
        """The next message; its descriptors are appended to :attr:`fds`.

        :raises ChannelClosed: at end of file.
        :raises DeadlineError: when the deadline passes first.
        :raises HostError: when the peer breaks the grammar.
        """
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                return self._decode(line)
            self._scanned = len(self._buffer)
            if self._scanned > MAX_MESSAGE_BYTES:
                raise HostError(f"{self.peer} sent a message over {MAX_MESSAGE_BYTES} bytes")
            if deadline is not None and not select.select([self.sock], [], [], deadline.remaining_s)[0]:
                raise DeadlineError(f"{self.peer}: no message within {deadline.duration_ns / 1e9:g} s")
            self._fill()

    def receive_ready(self) -> list[Message]:
        """One read from a socket that is readable, and every message that is whole by then (none, perhaps).

        For event loops, which must not wait for the rest of a message. Raises as :meth:`receive`.
        """
        self._fill()
        messages = []
        while self.pending():
            messages.append(self.receive())
        self._scanned = len(self._buffer)
        if self._scanned > MAX_MESSAGE_BYTES:
            raise HostError(f"{self.peer} sent a message over {MAX_MESSAGE_BYTES} bytes")
        return messages

    def _fill(self) -> None:
        try:
            data, ancillary, _flags, _address = self.sock.recvmsg(
                1 << 18, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:
            raise ChannelClosed(f"{self.peer} is gone") from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights = array.array("i")
                rights.frombytes(payload[: len(payload) - len(payload) % rights.itemsize])
                self.fds.extend(rights)
        if not data:
            raise ChannelClosed(f"{self.peer} closed its channel")
        self._buffer += data

    def _decode(self, line: bytes) -> Message:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise HostError(f"{self.peer} sent a line that is not JSON") from error
        if not isinstance(message, dict):
            raise HostError(f"{self.peer} sent a message that is no object")
        return message

    def take_fds(self, count: int) -> list[int]:
        """The oldest *count* descriptors received. :raises HostError: when fewer came."""
        if count < 0 or count > len(self.fds):
            raise HostError(f"{self.peer} announced {count} descriptors and sent {len(self.fds)}")
        return [self.fds.popleft() for _ in range(count)]

    # commands

    def post(self, command: str, args: Mapping[str, Any] | None = None, fds: Sequence[int] = ()) -> int:
        """Send a command without waiting; returns its id, that the reply will carry."""
        self._next_id += 1
        self.send({"command": command, "id": self._next_id, "args": dict(args or {})}, fds)
        return self._next_id

    def call(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        deadline: Deadline,
        on_event: Callable[[Event], None] | None = None,
        fds: Sequence[int] = (),
    ) -> Message:
        """Send a command and wait for its reply; events that arrive meanwhile go to *on_event*.

        :returns: the reply's ``value``; a reply with descriptors leaves them in :attr:`fds`.
        :raises GuestError: when the reply is an error (its text).
        :raises DeadlineError, ChannelClosed: as :meth:`receive`.
        """
        return self.answer(self.post(command, args, fds), command, deadline=deadline, on_event=on_event)

    def answer(
        self, wanted: int, command: str, *, deadline: Deadline, on_event: Callable[[Event], None] | None = None
    ) -> Message:
        """Wait for the reply to a command that was posted with the id *wanted*; otherwise as :meth:`call`."""
        while True:
            said = self.event_or_answer(wanted, command, deadline)
            if not isinstance(said, Event):
                return said
            if on_event is not None:
                on_event(said)

    def event_or_answer(self, wanted: int, command: str, deadline: Deadline) -> Event | Message:
        """Wait for an event, or for the value of that reply. Raises as :meth:`call`."""
        while True:
            message = self.receive(deadline)
            if "event" in message:
                return Event.from_json(message["event"])
            if message.get("reply") == wanted:
                if "error" in message:
                    raise GuestError(f"{self.peer}: {command}: {message['error']}")
                value = message.get("value", {})
                return value if isinstance(value, dict) else {}


class Worker(Protocol):
    """What a process does between the commands of its channel (:func:`serve_worker`)."""

    def turn(self, channel_fd: int) -> bool:
        """Wait for something and handle it. :returns: whether the channel has something to say."""
        ...

    def command(self, name: str, args: Mapping[str, Any]) -> None:
        """Any but the first command. :raises BenchError, OSError, KeyError, ValueError: it cannot be done."""
        ...

    def close(self) -> None: ...


def serve_worker(channel: Channel, make: Callable[[Mapping[str, Any]], Worker]) -> None:
    """The life of such a process: the first command makes its worker, which has its turns until the channel ends.

    :param make: called with the first command's arguments; raises as :meth:`Worker.command`.
    """
    worker: Worker | None = None
    try:
        while True:
            if worker is not None and not channel.pending() and not worker.turn(channel.fileno()):
                continue
            message = channel.receive()
            try:
                if worker is None:
                    worker = make(message["args"])
                else:
                    worker.command(str(message["command"]), message["args"])
                channel.send_reply(message["id"])
            except (BenchError, OSError, KeyError, ValueError) as error:
                channel.send_error(message["id"], f"{type(error).__name__}: {error}")
    except ChannelClosed:
        pass
    finally:
        if worker is not None:
            worker.close()
