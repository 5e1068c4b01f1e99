"""What the flows over one TCP connection share: connecting, dying, and what the kernel says of the connection."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from bench.clock import now_ns
from bench.probe.flows.base import Flow
from bench.probe.loop import READABLE, WRITABLE

# struct tcp_info (linux/tcp.h): 8 bytes of small fields, 24 u32, then u64 pacing rates and byte counts.
_TCP_INFO_BYTES: Final = 136
_RETRANSMITS_AT: Final = 100
_BYTES_ACKED_AT: Final = 120
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """The members of ``struct tcp_info`` that flows use."""

    retransmits: int
    bytes_acked: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """:raises OSError: when the socket is closed."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acked = _U64.unpack_from(raw, _BYTES_ACKED_AT)[0] if len(raw) >= _BYTES_ACKED_AT + 8 else 0
    return TcpInfo(_U32.unpack_from(raw, _RETRANSMITS_AT)[0], acked)


class TcpFlow(Flow):
    """One connection. Subclasses say what happens when it stands, is readable, is writable."""

    port: ClassVar[int]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sock: socket.socket | None = None
        self._connected = False
        self._events = 0
        self._waiting_since_ns = 0
        self._congestion = ""

    @property
    def port_now(self) -> int:
        """The guest's port."""
        return self.port

    @abstractmethod
    def connected(self) -> None:
        """The connection stands."""

    @abstractmethod
    def readable(self) -> None:
        """There are bytes, or the end of file."""

    def writable(self) -> None:
        """There is room again, see :meth:`want_write`."""

    def start(self) -> None:
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self.sock = sock
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._waiting_since_ns = now_ns()
            error = sock.connect_ex((self.guest_address, self.port_now))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            self.local_port = sock.getsockname()[1]
        except OSError as problem:
            self.fail(problem)
            return
        self._events = WRITABLE
        self.loop.watch(sock.fileno(), WRITABLE, self._ready, self.fail)

    def _ready(self, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        if not self._connected:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connected = True
            self._waiting_since_ns = 0
            self._set_events(READABLE)
            name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            self._congestion = name.split(b"\0")[0].decode(errors="replace")
            self.event("flow_started", local_port=self.local_port, congestion=self._congestion)
            self.connected()
            return
        if events & ~WRITABLE:
            self.readable()
        if events & WRITABLE and not self.done:
            self.writable()

    def _set_events(self, events: int) -> None:
        if events != self._events and self.sock is not None:
            self._events = events
            self.loop.change(self.sock.fileno(), events)

    def want_write(self, wanted: bool) -> None:
        """Ask to be told when there is room to send."""
        self._set_events(READABLE | WRITABLE if wanted else READABLE)

    def waiting(self, since_ns: int) -> None:
        """The flow expects something since *since_ns* (0: it does not); beyond ``timeout`` it is dead."""
        self._waiting_since_ns = since_ns

    def check(self, now: int) -> None:
        if self._waiting_since_ns and not self.done and now - self._waiting_since_ns > self.spec.timeout_ns:
            self.fail(TimeoutError(errno.ETIMEDOUT, f"nothing for {self.spec.timeout_ns} ns"))

    def ended(self) -> None:
        """The guest closed the connection: with a flow that was not done, that is the flow's death."""
        self.fail("EOF")

    def release(self) -> None:
        sock = self.sock
        if sock is None:
            return
        with contextlib.suppress(OSError):
            self.retransmits = tcp_info(sock).retransmits
        with contextlib.suppress(OSError):
            self.loop.unwatch(sock.fileno())
        sock.close()
        self.sock = None

    def extra(self) -> dict[str, Any]:
        return {"congestion": self._congestion}
