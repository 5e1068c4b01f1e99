"""tcp-connect from the guest: a new connection every *interval*, one request on it, then it is closed.

A connection whose handshake was under way when the guest was paused is made anew where it resumes; its request counts
from its first attempt.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench.clock import now_ns
from bench.flows.spec import APPLICATION_TIMEOUT, GRACE_NS, error_name, filler
from bench.guest.clients.base import CLIENT, Means, OutboundFlow
from bench.guest.clients.dial import Dial
from bench.guest.connection import Connection
from bench.guest.services.base import integer, pack, unpack
from bench.records import STATUS_CORRUPT

PORT = 7
MOST_OPEN = 256
_FILLER_STEPS = 65519


class ConnectFlow(OutboundFlow):
    """See the module."""

    kind = "tcp-connect"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._filler = filler(self.spec.name)
        self._open: dict[int, _Short] = {}
        self._due_ns = 0
        self._skipped = 0
        self._last_good = -1
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._due_ns = now_ns()
        self.event("flow_started", local_port=None)
        self._tick()

    def _tick(self) -> None:
        now = now_ns()
        late = max(0, now - self._due_ns) // self.spec.interval_ns
        self._skipped += late
        self._due_ns += (late + 1) * self.spec.interval_ns
        if len(self._open) >= MOST_OPEN:
            self._skipped += 1
        elif not self.stopping:
            short = self._open[self.count] = _Short(self, self.count, now)
            self.count += 1
            short.begin()
        self.at(self._due_ns, self._tick)

    def content(self, number: int) -> bytes:
        start = number % _FILLER_STEPS
        return number.to_bytes(8, "little") + self._filler[start : start + self.spec.size - 8]

    def ended(self, short: _Short, received_ns: int, status: int, error: Exception | None) -> None:
        """One is over: with its answer, or of *error*."""
        if self._open.pop(short.number, None) is None:
            return
        self.note(short.number, short.begun_ns, received_ns, self.spec.size, status)
        if error is not None:
            self.errors[error_name(error)] += 1
        else:
            self.last_reply_ns, self._last_good = received_ns, max(self._last_good, short.number)
        if self.stopping and not self._open:
            self.finish()

    def look(self, now: int) -> None:
        for short in list(self._open.values()):
            if now - short.begun_ns > self.spec.timeout_ns:
                short.die(TimeoutError("no answer in time"))

    def over(self, connection: Connection) -> None:
        """Of the guest: *connection* is closed."""
        service = connection.service
        if isinstance(service, _Short) and service.number in self._open:
            service.die(connection.error or ConnectionResetError(errno.ECONNRESET, "closed before its answer"))

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        if self._open:
            self.at(now_ns() + GRACE_NS, self.finish)
        else:
            self.finish()

    def finish(self) -> None:
        if not self.done and self.stopping:
            recent = max(1, 10**9 // self.spec.interval_ns)
            if self.count and self._last_good < self.count - recent:
                self.alive = False
                self.error = self.errors.most_common(1)[0][0] if self.errors else APPLICATION_TIMEOUT
        super().finish()

    def release(self) -> None:
        for short in list(self._open.values()):
            self.note(short.number, short.begun_ns, 0, self.spec.size)
            short.drop()
        self._open.clear()

    # moving

    def freeze(self) -> None:
        super().freeze()
        for short in self._open.values():
            short.give_up()

    def serve(self) -> None:
        if self.done:
            return
        for short in list(self._open.values()):
            if short.connection is None:
                short.begin()
        self.at(max(self._due_ns, now_ns()), self._tick)

    def short(self, number: int) -> _Short:
        """Of the guest: what the connection that moved belongs to; one that has its answer is only being closed."""
        if number in self._open:
            return self._open[number]
        short = _Short(self, number, 0)
        short.closing = True
        return short

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "open": [short.state() for short in self._open.values()],
            "due_ns": self._due_ns,
            "skipped": self._skipped,
            "last_good": self._last_good,
            "errors": dict(self.errors),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._due_ns, self._skipped = integer(state, "due_ns"), integer(state, "skipped")
        self._last_good = int(state["last_good"])
        self.errors = Counter({str(name)[:64]: int(times) for name, times in dict(state["errors"]).items()})
        for raw in list(state["open"])[:MOST_OPEN]:
            short = _Short(self, integer(raw, "number"), integer(raw, "begun_ns"))
            short.load(raw)
            self._open[short.number] = short

    def report(self) -> dict[str, Any]:
        return {**super().report(), "skipped": self._skipped, "errors": dict(self.errors)}


class _Short:
    """One of its connections, from connect to its answer; the service at the guest's end of it."""

    name = CLIENT

    def __init__(self, flow: ConnectFlow, number: int, begun_ns: int) -> None:
        self._flow = flow
        self.number = number
        self.begun_ns = begun_ns
        self.connection: Connection | None = None
        self._request = flow.content(number)
        self._offset = 0
        self._reply = bytearray()
        self._dial: Dial | None = None
        self.closing = False

    def begin(self) -> None:
        means: Means = self._flow.means
        self._offset = 0
        self._reply.clear()
        self._dial = Dial(means, self._flow.spec.tcp, (self._flow.spec.address, PORT), self._connected, self.die)

    def _connected(self, sock: socket.socket) -> None:
        self._dial = None
        self.connection = self._flow.means.adopt(sock, self)
        self.connection.serve()

    def die(self, error: Exception) -> None:
        self._flow.ended(self, 0, 0, error)
        self.drop()

    def drop(self) -> None:
        """Close what there is."""
        self.give_up()
        self.closing = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def give_up(self) -> None:
        """A handshake under way cannot move."""
        if self._dial is not None:
            self._dial.give_up()
            self._dial = None

    # a service

    @property
    def reading(self) -> bool:
        return True

    def received(self, data: bytes) -> None:
        received_ns = now_ns()
        self._reply += data
        if len(self._reply) >= len(self._request) and not self.closing:
            self.closing = True
            self._flow.ended(self, received_ns, 0 if self._reply == self._request else STATUS_CORRUPT, None)

    def received_eof(self) -> None:
        self.closing = True

    def output(self, limit: int) -> bytes:
        return b"" if self.closing else self._request[self._offset : self._offset + limit]

    def sent(self, count: int) -> None:
        self._offset += count

    def wake_ns(self) -> int | None:
        return None

    def export(self) -> dict[str, Any]:
        return {"flow": self._flow.spec.name, "number": self.number}

    def restored(self, connection: Connection) -> None:
        """Of the guest: the connection that moved."""
        self.connection = connection

    def state(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "begun_ns": self.begun_ns,
            "offset": self._offset,
            "reply": pack(self._reply),
        }

    def load(self, raw: Mapping[str, Any]) -> None:
        self._offset, self._reply = integer(raw, "offset"), bytearray(unpack(raw["reply"]))
