"""tcp-connect: a new connection to the echo service every *interval*, one request on it, then it is closed.

``sent_ns`` is before connect(2), ``received_ns`` after the ``recv`` that completed the reply. A connection that is not
answered within ``timeout`` counts as lost and is closed; its error is counted by name. At most :data:`MOST_OPEN` wait
at a time: what would be one more is skipped and counted, as after an outage a client's backlog is not its service's.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from typing import Any, Final

from bench.clock import NS_PER_S, now_ns
from bench.flows.connecting import begin_connecting, require_connected
from bench.flows.spec import APPLICATION_TIMEOUT, GRACE_NS, error_name, filler
from bench.probe.flows.base import Flow
from bench.probe.loop import READABLE, WRITABLE, Periodic
from bench.records import STATUS_CORRUPT

PORT: Final = 7
MOST_OPEN: Final = 256
_FILLER_STEPS: Final = 65519  # a prime below the filler's length less the largest request


class TcpConnectFlow(Flow):
    """See the module."""

    kind = "tcp-connect"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._filler = filler(self.spec.name)
        self._timer: Periodic | None = None
        self._open: dict[int, _Connection] = {}
        self._skipped = 0
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._timer = self.loop.every(self.spec.interval_ns, self._tick, self.fail)
        self.event("flow_started", local_port=None)

    def _tick(self, expirations: int) -> None:
        self._skipped += expirations - 1
        if len(self._open) >= MOST_OPEN:
            self._skipped += 1
            return
        start = len(self.records) % _FILLER_STEPS
        request = len(self.records).to_bytes(8, "little") + self._filler[start : start + self.spec.size - 8]
        number = self.records.append(now_ns(), 0, self.spec.size, 0)
        self._open[number] = _Connection(self, number, request)
        self._open[number].begin()

    def ended(self, number: int, error: Exception | None) -> None:
        """Connection *number* is done, or died of *error*."""
        self._open.pop(number, None)
        if error is not None:
            self.errors[error_name(error)] += 1
        else:
            self.last_reply_ns = now_ns()
        if self.stopping and not self._open:
            self.finish()

    def check(self, now: int) -> None:
        for number in [number for number in self._open if now - self.records.sent_ns(number) > self.spec.timeout_ns]:
            self._open[number].die(TimeoutError("no answer in time"))

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        if self._timer is not None:
            self._timer.close()
        if self._open:
            self._finish_after(GRACE_NS)
        else:
            self.finish()

    def finish(self) -> None:
        if not self.done and self.stopping:
            records = self.records.array()
            recent = records[records["sent_ns"] >= (records["sent_ns"][-1] if len(records) else 0) - NS_PER_S]
            if len(recent) and not (recent["received_ns"] > 0).any():
                self.alive = False
                self.error = self.errors.most_common(1)[0][0] if self.errors else APPLICATION_TIMEOUT
        super().finish()

    def release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()

    def extra(self) -> dict[str, Any]:
        return {"skipped": self._skipped, "errors": dict(self.errors)}


class _Connection:
    """One of them, from connect to its reply."""

    def __init__(self, flow: TcpConnectFlow, number: int, request: bytes) -> None:
        self._flow = flow
        self._number = number
        self._request = request
        self._unsent = memoryview(request)
        self._reply = bytearray()
        self._sock: socket.socket | None = None
        self._connected = False

    def begin(self) -> None:
        try:
            sock = self._sock = begin_connecting(self._flow.spec.tcp, (self._flow.guest_address, PORT))
        except OSError as problem:
            self.die(problem)
            return
        self._flow.loop.watch(sock.fileno(), WRITABLE, self._ready, self.die)

    def _ready(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if not self._connected:
            require_connected(sock)
            self._connected = True
        if self._unsent and events & WRITABLE:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[sock.send(self._unsent) :]
            if not self._unsent:
                self._flow.loop.change(sock.fileno(), READABLE)
        if events & ~WRITABLE:
            data = sock.recv(len(self._request) - len(self._reply))
            received_ns = now_ns()
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed before its reply")
            self._reply += data
            if len(self._reply) == len(self._request):
                self._flow.records.answer(self._number, received_ns)
                if self._reply != self._request:
                    self._flow.records.flag(self._number, STATUS_CORRUPT)
                self.close()
                self._flow.ended(self._number, None)

    def die(self, error: Exception) -> None:
        self.close()
        self._flow.ended(self._number, error)

    def close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                self._flow.loop.unwatch(sock.fileno())
            sock.close()
