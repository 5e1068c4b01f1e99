"""udp-echo and udp-stream from the guest: datagrams on a fixed schedule, which a paused guest does not keep.

What was due while the guest stood still is skipped and counted, as of a machine that stood still.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from bench.clock import now_ns
from bench.flows import datagram
from bench.flows.spec import GRACE_NS, filler
from bench.guest.clients.base import OutboundFlow
from bench.guest.services.base import integer, pack, unpack
from bench.records import STATUS_CORRUPT, STATUS_UNSENT

_HEADER = struct.Struct("<QQ")
_FILLER_STEPS = 65521
_BUFFER_BYTES = 2048
_MAX_UNREAD = 4096


class DatagramFlow(OutboundFlow):
    """A connected UDP socket whose port moves with the guest."""

    port: ClassVar[int]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sock: socket.socket | None = None
        self._due_ns = 0
        self._skipped = 0
        self._unread: list[bytes] = []
        self.interval_ns = self.spec.interval_ns

    def payload(self, number: int, sent_ns: int) -> bytes:
        raise NotImplementedError

    def arrived(self, data: bytes, received_ns: int) -> None:
        """An answer."""

    def start(self) -> None:
        try:
            self._open(0)
        except OSError as error:
            self.fail(error)
            return
        self.event("flow_started", local_port=self.local_port)
        self._due_ns = now_ns()
        self._watch()
        self._tick()

    def _open(self, local_port: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((self.means.ip, local_port))
        sock.connect((self.spec.address, self.port))
        self.local_port = sock.getsockname()[1]

    def _watch(self) -> None:
        if self._sock is not None:
            self.means.loop.watch_bulk(self._sock.fileno(), select.EPOLLIN, self._readable)

    def _tick(self) -> None:
        now = now_ns()
        due = max(0, now - self._due_ns) // self.interval_ns + 1
        burst = min(due, datagram.MAX_BURST if self.interval_ns < datagram.MIN_TICK_NS else 1)
        self._skipped += due - burst
        self._due_ns += due * self.interval_ns
        for _ in range(burst):
            self._send()
        self.at(max(self._due_ns, now + datagram.MIN_TICK_NS), self._tick)

    def _send(self) -> None:
        sock = self._sock
        if sock is None:
            return
        number, status, sent_ns = self.count, 0, now_ns()
        self.count += 1
        data = self.payload(number, sent_ns)
        try:
            sock.send(data)
        except OSError:  # perhaps that of an earlier one (an ICMP answer to it): it is cleared now
            try:
                sock.send(data)
            except OSError:
                status = STATUS_UNSENT
        self.note(number, sent_ns, 0, len(data), status)
        self.was_sent(sent_ns)

    def was_sent(self, sent_ns: int) -> None:
        """One more left."""

    def _readable(self, _events: int) -> None:
        sock = self._sock
        while sock is not None:
            try:
                data = sock.recv(_BUFFER_BYTES)
            except OSError:
                return
            self.arrived(data, now_ns())

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        self.at(now_ns() + GRACE_NS // 4, self.finish)

    def release(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self.means.loop.unwatch_bulk(sock.fileno())
            sock.close()

    # moving

    def serve(self) -> None:
        if self.done or self._sock is None:
            return
        with contextlib.suppress(ValueError, FileExistsError):  # watched already, when this is where it was
            self._watch()
        unread, self._unread = self._unread, []
        for data in unread:
            self.arrived(data, now_ns())
        self.at(max(self._due_ns, now_ns()), self._tick)

    def state(self) -> dict[str, Any]:
        sock = self._sock
        with contextlib.suppress(OSError):  # at last there is none
            while sock is not None and len(self._unread) < _MAX_UNREAD:
                self._unread.append(sock.recv(_BUFFER_BYTES))
        return {
            **super().state(),
            "due_ns": self._due_ns,
            "skipped": self._skipped,
            "unread": [pack(data) for data in self._unread],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """:raises OSError: its port cannot be had."""
        super().load(state)
        self._due_ns, self._skipped = integer(state, "due_ns"), integer(state, "skipped")
        self._unread = [unpack(text) for text in list(state["unread"])[:_MAX_UNREAD]]
        if not self.done:
            self._open(self.local_port or 0)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "skipped": self._skipped}


class EchoFlow(DatagramFlow):
    """A probe to the echo service every *interval*; its answer carries when it was sent."""

    kind = "udp-echo"
    port = 7

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._content = filler(self.spec.name)
        self._content_bytes = max(0, min(self.spec.size, datagram.MAX_BYTES) - _HEADER.size)

    def _content_of(self, number: int) -> bytes:
        start = number % _FILLER_STEPS
        return self._content[start : start + self._content_bytes]

    def payload(self, number: int, sent_ns: int) -> bytes:
        return _HEADER.pack(number, sent_ns) + self._content_of(number)

    def arrived(self, data: bytes, received_ns: int) -> None:
        if len(data) < _HEADER.size:
            return
        number, sent_ns = _HEADER.unpack_from(data)
        if number >= self.count or sent_ns > received_ns:
            return
        good = data[_HEADER.size :] == self._content_of(number)
        self.note(number, sent_ns, received_ns, len(data), 0 if good else STATUS_CORRUPT)
        self.last_reply_ns = received_ns


class OneWayFlow(DatagramFlow):
    """One-way datagrams at a rate; the server outside notes what arrives."""

    kind = "udp-stream"
    port = datagram.PORT

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.spec.rate_bps:
            self.interval_ns = datagram.interval_ns(self.spec.size, self.spec.rate_bps)

    def payload(self, number: int, sent_ns: int) -> bytes:
        return datagram.pack(self.number, number, sent_ns, self.spec.size)

    def was_sent(self, sent_ns: int) -> None:
        self.last_reply_ns = sent_ns  # nobody answers; that it goes on is all that can be said meanwhile
