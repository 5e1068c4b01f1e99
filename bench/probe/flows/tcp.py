"""What the flows over one TCP connection share: connecting, dying, and what the kernel says of the connection."""

from __future__ import annotations

import contextlib
import socket
from abc import abstractmethod
from typing import Any, ClassVar, Final

from bench.clock import NS_PER_MS, now_ns
from bench.flows.connecting import begin_connecting, require_connected
from bench.flows.spec import error_name
from bench.flows.tcp_info import tcp_info
from bench.flows.tcp_samples import TcpSamples
from bench.probe.flows.base import Flow
from bench.probe.loop import READABLE, WRITABLE

RECONNECT_NS: Final = 100 * NS_PER_MS


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
        self.samples = TcpSamples()
        self.reconnects = 0
        self._lost_retransmits = 0

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
        self._waiting_since_ns = now_ns()
        try:
            sock = begin_connecting(self.spec.tcp, (self.guest_address, self.port_now))
        except OSError as problem:
            self.fail(problem)
            return
        self.sock = sock
        self.local_port = sock.getsockname()[1]
        self._events = WRITABLE
        self.loop.watch(sock.fileno(), WRITABLE, self._ready, self.fail)

    def _ready(self, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        if not self._connected:
            require_connected(sock)
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

    def look(self) -> None:
        """Sample what the kernel says of the connection."""
        if self.sock is not None:
            self.samples.look(self.sock)

    def check(self, now: int) -> None:
        if self._waiting_since_ns and not self.done and now - self._waiting_since_ns > self.spec.timeout_ns:
            self.fail(TimeoutError(f"nothing for {self.spec.timeout_ns} ns"))

    def ended(self) -> None:
        """The guest closed the connection: with a flow that was not done, that is the flow's death."""
        self.fail("EOF")

    def release(self) -> None:
        sock = self.sock
        if sock is None:
            return
        with contextlib.suppress(OSError):
            self.retransmits = self._lost_retransmits + tcp_info(sock).retransmits
        self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.loop.unwatch(sock.fileno())
        sock.close()
        self.sock = None

    def fail(self, error: Exception | str) -> None:
        """With ``retry`` a client does what an application does: it connects anew, and what it had asked is lost."""
        sock = self.sock
        if not self.spec.retry or self.done or self.stopping:
            super().fail(error)
            return
        if sock is not None:
            with contextlib.suppress(OSError):
                self._lost_retransmits += tcp_info(sock).retransmits
            self._let_go(sock)
        self.reconnects += 1
        why = error_name(error) if isinstance(error, Exception) else error
        self.event("flow_reconnects", error=why, number=self.reconnects)
        self._connected = False
        self._events = 0
        self.reset()
        self._at(now_ns() + RECONNECT_NS, self.start)

    def reset(self) -> None:
        """The connection is gone: forget what belonged to it."""

    def extra(self) -> dict[str, Any]:
        return {"congestion": self._congestion, "reconnects": self.reconnects}
