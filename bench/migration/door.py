"""Where the connections of one migration come in, at the destination, and strangers do not.

Whoever connects is a *visitor* until it has shown that it belongs to this migration: by its carrier's handshake, if
there is one, and then by a first frame (HELLO or JOIN) with the migration's ticket, which both engines got from the
runner. A visitor that says something else, says nothing for :data:`VISIT_NS`, or is one too many is sent away. All of
it happens without waiting, in short turns beside the migration, and in bounded memory: at most :data:`VISITORS`, each
with at most one frame, whose fields the wire format bounds. When there are too many, one of the address that has the
most goes, so that a flood from elsewhere never costs the source its place.
"""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, MigrationError
from bench.host.timer import TimerFd
from bench.migration import wire
from bench.migration.engine import log, reason_of
from bench.migration.transport import Connection
from bench.migration.wire import Frame, Kind

VISIT_NS: Final = 3 * NS_PER_S
VISITORS: Final = 32
ACCEPTS: Final = 16  # in one turn
LOGGED: Final = 20  # refusals that the log names


@dataclass(frozen=True, slots=True)
class Entrant:
    """A connection that belongs to the migration.

    :param frame: its first one, without payload: HELLO or JOIN.
    :param peer: who it is from, for reports.
    """

    connection: Connection
    frame: Frame
    peer: str


class _Short(Exception):
    """The frame goes on to byte *args[0]*."""


class _Visitor:
    """A connection that has not shown yet that it belongs here. Reads its first frame, and not a byte more."""

    def __init__(self, connection: Connection, address: str, peer: str) -> None:
        self.connection = connection
        self.address = address
        self.peer = peer
        self.until = Deadline(VISIT_NS)
        self.events = select.EPOLLIN
        self._greeted = False
        self._data = bytearray()
        self._read = 0

    def turn(self, kinds: tuple[Kind, ...]) -> Frame | None:
        """Go on as far as possible. :returns: the first frame once it is there.

        :raises BenchError: when it is nobody's.
        """
        if not self._greeted:
            wanted = self.connection.greet()
            self.events = select.EPOLLOUT if wanted & select.POLLOUT else select.EPOLLIN
            if wanted:
                return None
            self._greeted = True
        while True:
            self._read = 0
            try:
                return wire.Decoder(self, kinds).next()
            except _Short as short:
                missing = short.args[0] - len(self._data)
            buffer = bytearray(missing)
            count = self.connection.read_available(memoryview(buffer))
            if not count:
                return None
            self._data += buffer[:count]

    def read_exactly(self, count: int) -> bytes:
        """For the decoder."""
        end = self._read + count
        if len(self._data) < end:
            raise _Short(end)
        begin, self._read = self._read, end
        return bytes(self._data[begin:end])


class Door:
    """See this module.

    :param listener: a listening socket that does not block; the door owns it.
    :param wrap: makes a connection of an accepted socket, whose :meth:`Connection.greet` is its handshake.
    :ivar port: what the source dials.
    :ivar kinds: what a first frame may be at this time.
    :ivar refused: how many were sent away.
    """

    def __init__(
        self,
        listener: socket.socket,
        ticket: str,
        link_timeout_ns: int,
        wrap: Callable[[socket.socket, int], Connection],
    ) -> None:
        self.port: int = listener.getsockname()[1]
        self.kinds: tuple[Kind, ...] = (Kind.HELLO,)
        self.refused = 0
        self._listener = listener
        self._ticket = ticket
        self._link_timeout_ns = link_timeout_ns
        self._wrap = wrap
        self._visitors: dict[int, _Visitor] = {}
        self._entrants: deque[Entrant] = deque()
        self._timer = TimerFd()
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN)
        self._closed = False

    def fileno(self) -> int:
        """Readable when :meth:`serve` has something to do; negative once the door is closed."""
        return -1 if self._closed else self._epoll.fileno()

    def serve(self) -> None:
        """Let whoever is there go on a step. Never waits."""
        if self._closed:
            return
        for fd, _events in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._timer.fileno():
                self._timer.clear()
            elif fd in self._visitors:
                self._turn(self._visitors[fd])
        for visitor in [visitor for visitor in self._visitors.values() if visitor.until.expired]:
            self._send_away(visitor, "it said nothing, or not all of it, in time")
        self._timer.arm(min((visitor.until.at_ns for visitor in self._visitors.values()), default=None))

    @property
    def waiting(self) -> bool:
        """Whether :meth:`take` has one to give."""
        return bool(self._entrants)

    def take(self) -> Entrant | None:
        """The next one that belongs here, which is the caller's from now on; None when there is none yet."""
        return self._entrants.popleft() if self._entrants else None

    def wait(self, deadline: Deadline, other_fd: int, on_other: Callable[[], None]) -> Entrant | None:
        """The next one that belongs here, None at the deadline.

        :param other_fd: something else to serve meanwhile, by calling *on_other*.
        """
        poll = select.poll()
        poll.register(self._epoll.fileno(), select.POLLIN)
        poll.register(other_fd, select.POLLIN)
        while (entrant := self.take()) is None and not deadline.expired:
            for fd, _events in poll.poll(-(-deadline.remaining_ns // 1_000_000)):
                if fd == other_fd:
                    on_other()
                else:
                    self.serve()
        return entrant

    def close(self) -> None:
        """Nobody gets in any more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for visitor in list(self._visitors.values()):
            self._send_away(visitor, "the door is closed")
        for entrant in self._entrants:
            entrant.connection.close()
        self._listener.close()
        self._timer.close()
        self._epoll.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, (address, port) = self._listener.accept()
            except OSError:  # nobody, or somebody that is gone again
                return
            if len(self._visitors) >= VISITORS:
                self._make_room()
            try:
                visitor = _Visitor(self._wrap(sock, self._link_timeout_ns), address, f"{address}:{port}")
            except OSError:
                sock.close()
                continue
            self._visitors[visitor.connection.fileno()] = visitor
            self._epoll.register(visitor.connection, select.EPOLLIN)

    def _make_room(self) -> None:
        most = Counter(visitor.address for visitor in self._visitors.values()).most_common(1)[0][0]
        oldest = min(
            (visitor for visitor in self._visitors.values() if visitor.address == most),
            key=lambda visitor: visitor.until.at_ns,
        )
        self._send_away(oldest, "there are too many")

    def _turn(self, visitor: _Visitor) -> None:
        before = visitor.events
        try:
            frame = visitor.turn(self.kinds)
            if frame is not None:
                self._check(frame)
        except (BenchError, OSError) as error:
            self._send_away(visitor, reason_of(error))
            return
        if frame is None:
            if visitor.events != before:
                self._epoll.modify(visitor.connection, visitor.events)
            return
        self._forget(visitor)
        self._entrants.append(Entrant(visitor.connection, frame, visitor.peer))

    def _check(self, frame: Frame) -> None:
        ticket = str(frame.fields.get("ticket", ""))
        if not hmac.compare_digest(ticket.encode(), self._ticket.encode()):
            raise MigrationError("it does not belong to this migration")

    def _send_away(self, visitor: _Visitor, why: str) -> None:
        self.refused += 1
        if self.refused <= LOGGED:
            log(f"a connection from {visitor.peer} is refused: {why}")
        self._forget(visitor)
        with contextlib.suppress(OSError):
            visitor.connection.abort()

    def _forget(self, visitor: _Visitor) -> None:
        del self._visitors[visitor.connection.fileno()]
        if not self._epoll.closed:
            self._epoll.unregister(visitor.connection)
