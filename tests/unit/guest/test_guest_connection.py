"""A connection between a real socket and a service: nothing lost, nothing read too early, closed when it is over."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.guest.connection import Connection, Traffic
from bench.guest.loop import Loop
from bench.guest.services.simple import ChargenStream, EchoStream


class Paced:
    """Says one byte whenever its time has come, *count* in all, then closes."""

    name = "paced"
    reading = True

    def __init__(self, count: int, interval_ns: int) -> None:
        self.left, self.interval_ns = count, interval_ns
        self.due_ns = now_ns() + interval_ns

    @property
    def closing(self) -> bool:
        return self.left == 0

    def received(self, data: bytes) -> None: ...

    def received_eof(self) -> None: ...

    def output(self, limit: int) -> bytes:
        return b"." if self.left and now_ns() >= self.due_ns else b""

    def sent(self, count: int) -> None:
        self.left -= count
        self.due_ns += self.interval_ns

    def wake_ns(self) -> int | None:
        return self.due_ns if self.left else None

    def export(self) -> dict[str, Any]:
        return {}


class Bed:
    """A loop, and connections to it over the loopback interface."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.loop.release_bulk()
        self.closed: list[Connection] = []
        self.traffic = Traffic()
        self._sockets = contextlib.ExitStack()

    def connect(self, service: Any) -> tuple[Connection, socket.socket]:
        """(the guest's side, the client's)."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        self._sockets.callback(client.close)
        server.setblocking(False)
        client.setblocking(False)
        connection = Connection(server, service, self.loop, self.traffic, self.closed.append)
        self._sockets.callback(connection.close)
        connection.serve()
        return connection, client

    def run(self, until: Any) -> None:
        deadline = Deadline(20 * NS_PER_S)
        while not until():
            assert not deadline.expired
            self.loop.turn(0.01)

    def receive(self, client: socket.socket, count: int) -> bytes:
        data = bytearray()

        def done() -> bool:
            with contextlib.suppress(BlockingIOError):
                while len(data) < count:
                    part = client.recv(count - len(data))
                    if not part:
                        return True
                    data.extend(part)
            return len(data) >= count

        self.run(done)
        return bytes(data)

    def close(self) -> None:
        self._sockets.close()
        self.loop.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


def test_what_is_sent_comes_back_and_is_counted(bed: Bed) -> None:
    _, client = bed.connect(EchoStream())
    client.send(b"hello")
    assert bed.receive(client, 5) == b"hello"
    assert (bed.traffic.received_bytes, bed.traffic.sent_bytes) == (5, 5)


def test_a_client_that_does_not_read_is_not_read_from(bed: Bed) -> None:
    """Back-pressure reaches the client; afterwards everything comes back in order."""
    _, client = bed.connect(EchoStream())
    sent = bytearray()
    stuck = 0
    while stuck < 50:
        try:
            piece = bytes([len(sent) % 251]) * 65536
            sent += piece[: client.send(piece)]
            stuck = 0
        except BlockingIOError:
            stuck += 1
        bed.loop.turn(0)
    client.shutdown(socket.SHUT_WR)
    assert bed.receive(client, len(sent) + 1) == bytes(sent)
    client.close()
    bed.run(lambda: bed.closed)


def test_a_connection_lives_until_the_peer_has_everything(bed: Bed) -> None:
    connection, client = bed.connect(ChargenStream())
    client.shutdown(socket.SHUT_WR)  # ends the pattern, but what was sent before is still under way
    for _ in range(50):
        bed.loop.turn(0)
    assert bed.closed == []
    assert connection.sock.fileno() >= 0
    while True:
        bed.loop.turn(0)
        try:
            if not client.recv(1 << 16):
                break
        except BlockingIOError:
            continue
    bed.run(lambda: bed.closed == [connection])


def test_a_reset_closes_at_once(bed: Bed) -> None:
    connection, client = bed.connect(EchoStream())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    bed.run(lambda: bed.closed == [connection])
    connection.close()
    assert bed.closed == [connection]


def test_a_paced_service_is_woken_and_frozen(bed: Bed) -> None:
    connection, client = bed.connect(Paced(5, 2 * NS_PER_MS))
    assert bed.receive(client, 2) == b".."
    connection.freeze()
    bed.loop.hold_bulk()
    before = bed.traffic.sent_bytes
    end = Deadline(20 * NS_PER_MS)
    while not end.expired:
        bed.loop.turn(0.001)
    assert bed.traffic.sent_bytes == before
    bed.loop.release_bulk()
    connection.serve()
    assert bed.receive(client, 10) == b"..."
    client.close()
    bed.run(lambda: bed.closed == [connection])


def test_a_hung_up_connection_does_not_keep_the_loop_busy(bed: Bed) -> None:
    """Both FINs are there, ours is not acknowledged: the kernel reports that for ever to who looks by level."""
    connection, client = bed.connect(ChargenStream())
    client.shutdown(socket.SHUT_WR)
    for _ in range(50):
        bed.loop.turn(0)
    turns = 0
    original = connection.handle

    def counted(events: int) -> None:
        nonlocal turns
        turns += 1
        original(events)

    bed.loop._bulk_handlers[connection.sock.fileno()] = counted
    for _ in range(100):
        bed.loop.turn(0)
    assert turns <= 2
