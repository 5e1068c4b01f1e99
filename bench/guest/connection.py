"""One TCP connection of the guest: a kernel socket on one side, a service's state machine on the other.

The guest keeps the descriptor of a closing connection until the peer has acknowledged everything: an orphan (a closed
socket that the kernel still drains) could not be moved.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from bench.clock import NS_PER_S, now_ns
from bench.guest import tcp_repair
from bench.guest.device_state import OWN_FIN_STATES, StreamState, TcpState
from bench.guest.loop import Loop, Timer
from bench.guest.services.base import StreamService

# Work for one event, so that no connection keeps the loop from a command for long (a service may need 5 us for each of
# the commands in what it is given).
_READ_BYTES = {"echo": 64 << 10, "discard": 256 << 10, "chargen": 64 << 10}
_READ_OTHER_BYTES = 16 << 10
_SEND_BYTES = 128 << 10
_LINGER_NS = 60 * NS_PER_S  # as the kernel's tcp_fin_timeout: how long a peer may take to close after us


@dataclass(slots=True)
class Traffic:
    """Running totals of one service."""

    connections: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Connection:
    """Watched from :meth:`serve` on; not before, so that one in repair mode is left alone.

    :param sock: non-blocking.
    :param traffic: the service's totals, counted up here.
    :param closed: called once when the connection is over and its socket closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        service: StreamService,
        loop: Loop,
        traffic: Traffic,
        closed: Callable[[Connection], None],
    ) -> None:
        self.sock = sock
        self.service = service
        self.saved: TcpState | None = None
        self.error: OSError | None = None  # of which it died
        self._loop = loop
        self._traffic = traffic
        self._closed = closed
        self._fd = sock.fileno()
        self._read_bytes = _READ_BYTES.get(service.name, _READ_OTHER_BYTES)
        self._eof = False
        self._shut = False  # our FIN is in the kernel's hands
        self._backlog: memoryview = memoryview(b"")  # unsent bytes of a restored connection; before all other output
        self._blocked = False
        self._events: int | None = None
        self._wake: Timer | None = None
        self._linger: Timer | None = None
        attach = getattr(service, "attach", None)
        if attach is not None:
            attach(self._poked)

    def adopt(self, state: StreamState) -> None:
        """Go on as *state* says; the socket came from :func:`tcp_repair.restore`. :meth:`finish` follows."""
        self.saved = state.tcp
        self._eof = state.eof
        self._shut = state.tcp.state in OWN_FIN_STATES and not state.tcp.fin_unsent

    # moving

    def freeze(self) -> None:
        """No timer of this connection runs until :meth:`serve`."""
        for timer in (self._wake, self._linger):
            if timer is not None:
                timer.cancel()
        self._wake = self._linger = None

    def dump(self) -> StreamState | None:
        """None when nothing of it can move: it is over."""
        self.saved = tcp_repair.dump(self.sock, self._backlog)
        if self.saved is None:
            return None
        return StreamState(self.service.name, self.service.export(), self._eof, self.saved)

    def undo(self) -> str:
        """Roll :meth:`dump` back; :meth:`serve` follows. :returns: why the connection is lost, "" when it is not."""
        return self._leave_repair(tcp_repair.undo)

    def finish(self) -> str:
        """Leave repair mode after a restore. :returns: why the connection is lost, "" when it is not."""
        return self._leave_repair(self._finish)

    def _finish(self, sock: socket.socket, state: TcpState) -> None:
        self._backlog = tcp_repair.finish(sock, state)

    def _leave_repair(self, leave: Callable[[socket.socket, TcpState], None]) -> str:
        state, self.saved = self.saved, None
        try:
            if state is not None:
                leave(self.sock, state)
        except OSError as error:
            self.error = error
            self.close()
            return f"{self.service.name}: {error}"
        return ""

    @property
    def remote(self) -> tuple[str, int]:
        """The peer's address and port; ("", 0) for a connection that is over."""
        try:
            address = self.sock.getpeername()
        except OSError:
            return "", 0
        return address[0], address[1]

    def unacknowledged_bytes(self) -> int:
        """Of what the service has said: what the peer has not acknowledged yet, sent or not."""
        return tcp_repair.queued_bytes(self.sock) + len(self._backlog)

    # running

    def serve(self) -> None:
        """Begin, or go on after :meth:`freeze`."""
        self._guarded(self._pump)

    def handle(self, events: int) -> None:
        """Of epoll."""
        if events & select.EPOLLERR:
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.error = OSError(number, os.strerror(number)) if number else None
            self.close()
            return
        self._guarded(lambda: self._react(events))

    def close(self) -> None:
        """Close now. Idempotent."""
        if self._fd < 0:
            return
        self.freeze()
        self._loop.unwatch_bulk(self._fd)
        self._fd = -1
        self.sock.close()
        self._closed(self)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:  # reset by the peer, timed out: over
            self.error = error
            self.close()

    def _react(self, events: int) -> None:
        wanted = self._events or 0
        if wanted & select.EPOLLIN and events & (select.EPOLLIN | select.EPOLLHUP):
            self._read()
        self._pump()

    def _read(self) -> None:
        try:
            data = self.sock.recv(self._read_bytes)
        except BlockingIOError:
            return
        self._traffic.received_bytes += len(data)
        if not data:
            self._eof = True
            if not self._shut:
                self.service.received_eof()
        elif not self._shut:  # what comes after our FIN interests nobody
            self.service.received(data)

    def _pump(self) -> None:
        """Send what there is, as far as the kernel takes it and the bound for one event allows."""
        room = _SEND_BYTES
        self._blocked = False
        while self._backlog and not self._blocked:
            self._backlog = self._backlog[self._send(self._backlog) :]
        while not self._blocked and not self._shut:
            chunk = self.service.output(_SEND_BYTES)
            if not chunk:
                break
            if room <= 0:
                self._blocked = True  # more next time
                break
            sent = self._send(chunk)
            self.service.sent(sent)
            self._traffic.sent_bytes += sent
            room -= sent
        if not self._blocked and not self._shut and self.service.closing:
            self.sock.shutdown(socket.SHUT_WR)
            self._shut = True
        self._settle()

    def _send(self, data: bytes | memoryview) -> int:
        """How many bytes the kernel took; ``_blocked`` if not all."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self._blocked = sent < len(data)
        return sent

    def _settle(self) -> None:
        """Watch for what matters now."""
        if self._shut and self._eof:
            if not tcp_repair.tcp_state(self.sock):
                self.close()
                return
            # Hung up for good, which epoll reports for as long as one looks: look at changes only.
            wanted = select.EPOLLET
        else:
            reading = not self._eof and (self._shut or self.service.reading)
            wanted = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if self._blocked else 0)
        if self._shut and self._linger is None:
            self._linger = self._loop.at(now_ns() + _LINGER_NS, self.close)
        self._arm_wake()
        if self._events is None:
            self._events = wanted
            self._loop.watch_bulk(self._fd, wanted, self.handle)
        elif wanted != self._events:
            self._events = wanted
            self._loop.modify_bulk(self._fd, wanted)

    def _arm_wake(self) -> None:
        due_ns = None if self._blocked or self._shut else self.service.wake_ns()
        if self._wake is not None:
            if self._wake.due_ns == due_ns:
                return
            self._wake.cancel()
            self._wake = None
        if due_ns is not None:
            self._wake = self._loop.at(due_ns, self._awake)

    def _poked(self) -> None:
        """The service has more to send, and nothing from the network told so."""
        if self._fd >= 0 and self._events is not None:
            self._guarded(self._pump)

    def _awake(self) -> None:
        self._wake = None
        self._guarded(self._pump)
