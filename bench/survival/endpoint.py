"""One end of one cell's connection: what it sends, what it sees, and how it ends. On the peer's event loop.

A message is :data:`HEADER` (number, CLOCK_MONOTONIC ns of its first ``send``) and filler up to the cell's size. The end
that *sends first* streams or asks; the other one takes, or answers each message with itself. What an end keeps is
bounded: the messages around the outage, not all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.flows.spec import error_name
from bench.flows.tcp_info import TcpInfo, tcp_info
from bench.probe.loop import READABLE, WRITABLE, Loop, Periodic

HEADER: Final = struct.Struct("<QQ")
SAMPLE_NS: Final = 10 * NS_PER_MS
SAMPLE_AHEAD_NS: Final = 2 * NS_PER_MS
MOST_SAMPLES: Final = 400
MOST_UNANSWERED: Final = 64  # since the outage began, then a stream waits: its application's buffer is full
_TCP_NODELAY, _TCP_CONGESTION, _TCP_USER_TIMEOUT = socket.TCP_NODELAY, socket.TCP_CONGESTION, socket.TCP_USER_TIMEOUT


@dataclass(frozen=True, slots=True)
class EndSpec:
    """One end as the lab orders it.

    :param number: of the cell; the client's port is derived from it.
    :param first: whether this end sends first.
    """

    number: int
    pattern: str
    first: bool
    interval_ns: int
    size: int
    congestion: str
    user_timeout_ns: int
    keepalive: tuple[int, int, int] | None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> EndSpec:
        """From the lab, which is ours: only shape errors of programming are caught here, as TypeError."""
        keepalive = raw.get("keepalive")
        return cls(**{**raw, "keepalive": tuple(keepalive) if keepalive else None})


def set_options(sock: socket.socket, spec: EndSpec) -> None:
    """:raises OSError: when this kernel lacks the congestion control."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, spec.congestion.encode())
    if spec.user_timeout_ns:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, spec.user_timeout_ns // NS_PER_MS)
    if spec.keepalive is not None and spec.first:
        idle_ns, interval_ns, count = spec.keepalive
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_ns // NS_PER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_ns // NS_PER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


class Endpoint:
    """See the module. Life: :meth:`begin`, :meth:`expect` (the outage is scheduled), until :attr:`done`.

    :ivar done: nothing more is to be learnt: data got through after the outage, or the connection died.
    """

    def __init__(self, spec: EndSpec, loop: Loop, on_done: Callable[[Endpoint], None]) -> None:
        self.spec = spec
        self.done = False
        self.sock: socket.socket | None = None
        self._loop = loop
        self._on_done = on_done
        self._events = 0
        self._connecting = False
        self._timer: Periodic | None = None
        self._sampler: Periodic | None = None
        self._unsent = b""
        self._partial = b""
        self._sent = self._sent_before = self._received = 0
        self._begin_ns = self._end_ns = 0
        self._connect_begin_ns = 0
        self._last_before_ns = 0
        self._through: tuple[int, int, int] | None = None  # number, sent_ns, received_ns
        self._error = ""
        self._error_ns = 0
        self._before: TcpInfo | None = None
        self._samples: list[tuple[int, int, int, int, int, int]] = []

    @property
    def _waits(self) -> bool:
        """Whether this end is the one that data has to get through to: who takes the stream, or has asked."""
        return self.spec.first != (self.spec.pattern == "stream")

    # beginning

    def connect(self, address: str, port: int, local_port: int) -> None:
        """As a client; errors of the network end up in the report."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", local_port))
            set_options(sock, self.spec)
            self._connecting = True
            self._connect_begin_ns = now_ns()
            error = sock.connect_ex((address, port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except OSError as problem:
            sock.close()
            self._die(problem)
            return
        self._adopt(sock, WRITABLE)

    def accept(self, sock: socket.socket, waiting: bytes) -> None:
        """As the guest: a connection whose client has said which cell it is. *waiting*: what came behind that."""
        try:
            set_options(sock, self.spec)
        except OSError as problem:
            sock.close()
            self._die(problem)
            return
        self._adopt(sock, READABLE)
        self._take(waiting)
        self.begin()

    def _adopt(self, sock: socket.socket, events: int) -> None:
        self.sock = sock
        self._events = events
        self._loop.watch(sock.fileno(), events, self._ready, self._die)

    def begin(self) -> None:
        """Start to stream or to ask, when that is this end's part."""
        if not self.spec.first or self.done:
            return
        if self.spec.pattern == "stream":
            self._timer = self._loop.every(self.spec.interval_ns, self._tick, self._die)
        elif self.spec.pattern == "request":
            self._send()

    def expect(self, begin_ns: int, end_ns: int) -> None:
        """The outage of this connection will last from *begin_ns* to *end_ns*."""
        self._begin_ns, self._end_ns = begin_ns, end_ns
        self._loop.at(begin_ns - SAMPLE_AHEAD_NS, self._look_before, self._die)

    def _look_before(self) -> None:
        if self.sock is not None:
            self._before = tcp_info(self.sock)
        if self.spec.first:
            self._sampler = self._loop.every(SAMPLE_NS, self._sample, self._die)
        if self.spec.pattern == "idle" and self.spec.first:
            self._loop.at(self._end_ns + NS_PER_MS, self._ask_after, self._die)

    def _ask_after(self) -> None:
        """The outage of an idle connection is over: does it still work?"""
        if not self.done:
            self._send()

    # data

    def _tick(self, _expirations: int) -> None:
        if not self._before:
            self._sent_before = self._sent
        if self._sent - self._sent_before < MOST_UNANSWERED:
            self._send()

    def _send(self) -> None:
        if self.sock is None or self.done:
            return
        self._unsent += HEADER.pack(self._sent, now_ns()).ljust(self.spec.size, b".")
        self._sent += 1
        self._flush()

    def _flush(self) -> None:
        if self.sock is None:
            return
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        self._set_events(READABLE | WRITABLE if self._unsent else READABLE)

    def _set_events(self, events: int) -> None:
        if self.sock is not None and events != self._events:
            self._events = events
            self._loop.change(self.sock.fileno(), events)

    def _ready(self, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        if self._connecting:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connecting = False
            self._connected()
            return
        if events & WRITABLE and self._unsent:
            self._flush()
        if events & ~WRITABLE:
            data = sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the other end closed the connection")
            self._take(data)

    def _connected(self) -> None:
        self._set_events(READABLE)
        self._unsent = struct.pack("<I", self.spec.number)
        self._flush()
        if self.spec.pattern == "connect":
            at_ns = now_ns()
            self._through = (0, self._connect_begin_ns, at_ns)
            self._finish()
            return
        self.begin()

    def _take(self, data: bytes) -> None:
        received_ns = now_ns()
        data = self._partial + data
        size = self.spec.size
        whole = len(data) // size * size
        for at in range(0, whole, size):
            number, sent_ns = HEADER.unpack_from(data, at)
            self._message(number, sent_ns, received_ns)
        self._partial = data[whole:]

    def _message(self, number: int, sent_ns: int, received_ns: int) -> None:
        self._received += 1
        if self._begin_ns and received_ns >= self._end_ns:
            if self._through is None and self._waits:
                self._through = (number, sent_ns, received_ns)
        elif not self._begin_ns or received_ns < self._begin_ns:
            self._last_before_ns = received_ns
        if not self.spec.first and self.spec.pattern in ("request", "idle"):
            self._unsent += HEADER.pack(number, sent_ns).ljust(size := self.spec.size, b".")[:size]
            self._flush()
        elif self.spec.first and self.spec.pattern == "request":
            self._loop.at(received_ns + self.spec.interval_ns, self._send, self._die)
        if self._through is not None:
            self._finish()

    # watching

    def _sample(self, _expirations: int) -> None:
        """Keep each change of the timer's state while the outage lasts."""
        if self.sock is None or len(self._samples) >= MOST_SAMPLES:
            return
        info = tcp_info(self.sock)
        state = (info.timeouts, info.backoff, info.retransmits, info.probes, info.rto_ns)
        if not self._samples or self._samples[-1][1:] != state:
            self._samples.append((now_ns(), *state))

    def _die(self, error: Exception) -> None:
        if not self.done:
            self._error, self._error_ns = error_name(error), now_ns()
            self._finish()

    def _finish(self) -> None:
        """Nothing more is to be learnt here; the connection stays until :meth:`end`, for the other end's sake."""
        if not self.done:
            self.done = True
            self._on_done(self)

    def end(self) -> None:
        """Close the connection. Idempotent."""
        self.done = True
        for timer in (self._timer, self._sampler):
            if timer is not None:
                timer.close()
        sock, self.sock = self.sock, None
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()

    def report(self) -> dict[str, Any]:
        """JSON-able. ``through``: number, ``sent_ns`` and ``received_ns`` of the first message that came after the
        outage; ``before``: TCP_INFO just before it; ``samples``: (ns, timeouts, backoff, retransmits, probes, rto_ns).
        """
        return {
            "number": self.spec.number,
            "last_before_ns": self._last_before_ns,
            "through": self._through,
            "error": self._error,
            "error_ns": self._error_ns,
            "before": asdict(self._before) if self._before is not None else None,
            "samples": self._samples,
        }
