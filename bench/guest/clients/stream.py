"""What the guest's flows over one TCP connection share: connecting, dying, connecting anew, and being moved.

A flow is itself the service (:class:`~bench.guest.services.base.StreamService`) at the guest's end of its connection,
so that the connection moves as every other one does.
"""

from __future__ import annotations

import contextlib
import socket
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from bench.clock import NS_PER_MS, now_ns
from bench.errors import ProbeError
from bench.flows.tcp_info import tcp_info
from bench.flows.tcp_samples import TcpSamples
from bench.guest.clients.base import CLIENT, OutboundFlow
from bench.guest.clients.dial import Dial
from bench.guest.connection import Connection

RECONNECT_NS = 100 * NS_PER_MS


class StreamFlow(OutboundFlow):
    """One connection at a time. Subclasses say what crosses it."""

    name = CLIENT
    port: ClassVar[int]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection: Connection | None = None
        self.samples = TcpSamples()
        self._dial: Dial | None = None
        self._poke: Callable[[], None] | None = None
        self._waiting_since_ns = 0
        self._moved = False
        self._over = ""

    # what subclasses say

    @property
    def port_now(self) -> int:
        return self.port

    def opened(self) -> None:
        """A new connection stands; what is to be sent first comes with the next :meth:`output`."""

    def reset(self) -> None:
        """The connection is gone: forget what belonged to it."""

    @abstractmethod
    def output(self, limit: int) -> bytes | memoryview: ...

    @abstractmethod
    def sent(self, count: int) -> None: ...

    @abstractmethod
    def take(self, data: bytes, received_ns: int) -> None:
        """What came. :raises ProbeError: it is not what it can be."""

    # a service

    def attach(self, poke: Callable[[], None]) -> None:
        self._poke = poke

    @property
    def reading(self) -> bool:
        return True

    @property
    def closing(self) -> bool:
        return self.done or bool(self._over)

    def received(self, data: bytes) -> None:
        received_ns = now_ns()
        try:
            self.take(data, received_ns)
        except ProbeError as error:
            self._over = "EPROTO"
            self.event("flow_broken", why=error.message[:200])

    def received_eof(self) -> None:
        self._over = self._over or "EOF"

    def wake_ns(self) -> int | None:
        return None

    def export(self) -> dict[str, Any]:
        return {"flow": self.spec.name}

    def poke(self) -> None:
        """There is something to be sent, or the connection is to be closed."""
        if self._poke is not None and self.connection is not None:
            self._poke()

    def waiting(self, since_ns: int) -> None:
        """The flow expects something since then (0: it does not); beyond ``timeout`` it is dead."""
        self._waiting_since_ns = since_ns

    # life

    def start(self) -> None:
        self._connect()

    def _connect(self) -> None:
        if self.done:
            return
        self.waiting(now_ns())
        self._dial = Dial(
            self.means, self.spec.tcp, (self.spec.address, self.port_now), self._connected, self.lost_connection
        )

    def _connected(self, sock: socket.socket) -> None:
        self._dial = None
        self.waiting(0)
        self.local_port = sock.getsockname()[1]
        congestion = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
        self.event("flow_started", local_port=self.local_port, congestion=congestion)
        self.opened()
        self.connection = connection = self.means.adopt(sock, self)
        connection.serve()

    def lost_connection(self, error: Exception | None) -> None:
        """The connection, or the attempt to make it, is over."""
        self._dial = None
        self.connection = None
        why = error if error is not None else self._over or "EOF"
        self._over = ""
        if self.done:
            return
        if self.stopping or not self.spec.retry:
            self.fail(why)
            return
        self.reconnects += 1
        self.event("flow_reconnects", error=str(why)[:100], number=self.reconnects)
        self.waiting(0)
        self.reset()
        self.at(now_ns() + RECONNECT_NS, self._connect)

    def over(self, connection: Connection) -> None:
        """Of the guest: *connection* is closed."""
        if connection is self.connection:
            self.lost_connection(connection.error)

    def look(self, now: int) -> None:
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(OSError):
                self.samples.look(connection.sock)
        if self._waiting_since_ns and not self.done and now - self._waiting_since_ns > self.spec.timeout_ns:
            self._give_up(TimeoutError(f"nothing for {self.spec.timeout_ns} ns"))

    def _give_up(self, error: Exception) -> None:
        """The client's patience is over, not the kernel's."""
        if self._dial is not None:
            self._dial.give_up()
        connection = self.connection
        self.count_retransmits()
        self.connection = None
        self.lost_connection(error)
        if connection is not None:
            connection.close()

    def count_retransmits(self) -> None:
        """Before this socket goes: what the kernel sent again on it."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.retransmits = (self.retransmits or 0) + tcp_info(self.connection.sock).retransmits

    def finish(self) -> None:
        if not self.done:
            self.count_retransmits()
            super().finish()
            self.poke()  # closes it, what is to be said said

    def release(self) -> None:
        if self._dial is not None:
            self._dial.give_up()
            self._dial = None

    # moving

    def freeze(self) -> None:
        super().freeze()
        self.release()

    def serve(self) -> None:
        connection = self.connection
        if connection is None:
            self._connect()  # one that was being made could not move
        elif self._moved:
            self._moved = False
            with contextlib.suppress(OSError):  # what TCP_REPAIR does not carry; every kernel here has had it once
                self.spec.tcp.apply(connection.sock)

    def restored(self, connection: Connection) -> None:
        """Of the guest: the connection that moved with this flow."""
        self.connection = connection
        self._moved = True

    def state(self) -> dict[str, Any]:
        sofar = self.retransmits
        if self.connection is not None:
            saved = sofar or 0
            with contextlib.suppress(OSError):
                saved += tcp_info(self.connection.sock).retransmits
            sofar = saved
        return {**super().state(), "waiting_since_ns": self._waiting_since_ns, "retransmits": sofar}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._waiting_since_ns = int(state["waiting_since_ns"])
