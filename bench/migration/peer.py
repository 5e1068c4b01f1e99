"""The destination engine as the source sees it: the connections to it, and what it says."""

from __future__ import annotations

import contextlib
import select
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, MigrationError
from bench.migration import wire
from bench.migration.carriers import Dialer, load_carrier
from bench.migration.commands import Commands
from bench.migration.order import Order
from bench.migration.outlet import OneStream, Outlet
from bench.migration.streams import Streams
from bench.migration.transport import Connection
from bench.migration.wire import Frame, Kind

CONNECT_NS: Final = 10 * NS_PER_S
CANCEL_GRACE_NS: Final = NS_PER_S  # for the frame under way, then the connection is reset


class Peer:
    """One migration's connections to its destination. Use as a context: it closes all of them."""

    def __init__(self, order: Order, commands: Commands) -> None:
        self._order = order
        self._commands = commands
        self._stack = contextlib.ExitStack()
        self._bytes_elsewhere = 0
        self._connections: list[Connection] = []
        self._outlet: Outlet | None = None
        self._dialer: Dialer
        self._connection: Connection | None = None
        self._decoder: wire.Decoder

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def open(self) -> Connection:
        """The first connection. :raises PeerLost: when nobody answers there."""
        order = self._order
        carrier = load_carrier(order.security)
        self._dialer = carrier.dialer(order.address, order.port, order.link_timeout_ns, order.credentials)
        self._use(self._dial())
        return self.connection

    def connect(self, role: str) -> Connection:
        """A further connection. :raises PeerLost: when nobody answers there."""
        connection = self._dial()
        connection.send(wire.encode_json(Kind.JOIN, {"ticket": self._order.ticket, "role": role}))
        return connection

    def open_outlet(self) -> Outlet:
        """Where the pages of rounds leave from now on: this opens further connections if there are to be any."""
        begin_ns, streams = now_ns(), self._order.levers.streams
        if streams > 1:
            beside = [self.connect("stream") for _ in range(streams - 1)]
            self._outlet = Streams([self.connection, *beside], now_ns() - begin_ns)
        else:
            self._outlet = OneStream(self.connection)
        return self._outlet

    def expect_pause(self, link_timeout_ns: int) -> None:
        """The guest is about to stand still: of all connections, see :meth:`Connection.set_link_timeout` and
        :meth:`Connection.hurry`.
        """
        for each in (self.connection, self._outlet):
            if each is not None:
                each.set_link_timeout(link_timeout_ns)
                each.hurry()

    def close_outlet(self) -> None:
        """The rounds are over, and the destination has all that they sent."""
        if self._outlet is not None:
            self._outlet.close()

    def replace(self, connection: Connection, memory_pages: int) -> None:
        """Go on over another one."""
        self.count_bytes(self.connection)
        self._use(connection, memory_pages)

    def count_bytes(self, connection: Connection) -> None:
        """A connection beside the first one is done with: keep what it sent in :attr:`bytes_sent`."""
        self._bytes_elsewhere += connection.sent_bytes

    @property
    def connection(self) -> Connection:
        """The first connection, or the one that has replaced it."""
        assert self._connection is not None
        return self._connection

    @property
    def bytes_sent(self) -> int:
        """On all connections of this migration."""
        here = self._connection.sent_bytes if self._connection is not None else 0
        beside = self._outlet.bytes_beside if self._outlet is not None else 0
        return here + beside + self._bytes_elsewhere

    def receive(self, kind: Kind, duration_ns: int, *others: Kind) -> Frame:
        """The next frame, which must be of *kind* (or one of *others*). :raises MigrationError: when it is an ERROR."""
        self.connection.wait(select.POLLIN, Deadline(duration_ns), f"{kind.name} from the destination")
        frame = self._decoder.next()
        if frame.kind is Kind.ERROR:
            raise MigrationError(f"the destination failed: {text(frame, 'reason')}")
        if frame.kind is not kind and frame.kind not in others:
            raise MigrationError(f"the destination sent {frame.kind.name} instead of {kind.name}")
        return frame

    def check(self) -> None:
        """Serve what the connection watches. :raises Cancelled: when the runner asked for it."""
        self.connection.check()
        self._commands.check()

    def tell(self, kind: Kind, reason: str) -> None:
        """Tell the destination, if the connection still works and is between two frames; reset it if not."""
        if self._connection is None:
            return
        self._hurry()
        if self._outlet is not None:
            with contextlib.suppress(BenchError, OSError):
                self._outlet.abandon()
        if self._connection.broken:
            self._connection.abort()
            return
        with contextlib.suppress(BenchError, OSError):
            self._connection.send(wire.encode_json(kind, {"reason": reason}))

    def _dial(self) -> Connection:
        connection = self._dialer.dial(Deadline(CONNECT_NS), {self._commands.fileno(): self._serve_commands})
        self._stack.callback(connection.close)
        self._connections.append(connection)
        return connection

    def _serve_commands(self) -> None:
        """:raises Cancelled: when the runner asks for it: nothing has to be finished where nothing has begun."""
        self._commands.serve()
        self._commands.check()

    def cost(self) -> dict[str, Any]:
        """What the carrier took at this side: see :mod:`bench.migration.cost`."""
        costs = [cost for connection in self._connections if (cost := connection.cost())]
        if not costs:
            return {}
        total = {key: sum(cost[key] for cost in costs) for key in costs[0] if key != "handshake_ns"}
        return {
            "security": {
                "carrier": self._order.security,
                "connections": len(costs),
                "handshake_ns": costs[0]["handshake_ns"],
                **total,
            }
        }

    def _use(self, connection: Connection, memory_pages: int = 0) -> None:
        self._connection = connection
        self._commands.on_cancel = self._hurry
        connection.watch(self._commands.fileno(), self._commands.serve)
        self._decoder = wire.Decoder(connection, wire.TO_SOURCE, memory_pages)

    def _hurry(self) -> None:
        self.connection.give_up = Deadline(CANCEL_GRACE_NS)


def text(frame: Frame, key: str) -> str:
    """A text of a JSON frame, bounded."""
    return str(frame.fields.get(key, ""))[:1000]
