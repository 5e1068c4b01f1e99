"""Dialling a destination that does not answer: what is watched is served, and can end it at any time."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.migration.carriers import CARRIERS, load_carrier
from bench.migration.transport import PeerLost, connected, ready_beside

LONG_NS = 60 * NS_PER_S


class Cancelled(Exception):
    pass


@contextlib.contextmanager
def silent() -> Iterator[socket.socket]:
    """A listener that lets connections in and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextlib.contextmanager
def full() -> Iterator[int]:
    """The port of a listener whose queue is full: who connects now is not answered."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        stack.enter_context(socket.create_connection(listener.getsockname(), 5))
        yield listener.getsockname()[1]


@contextlib.contextmanager
def cancelled_once(ready: threading.Event | None = None) -> Iterator[dict]:
    """What to watch so that it is cancelled: at once, or when *ready* is set."""
    reader, writer = socket.socketpair()
    with reader, writer:

        def cancel() -> None:
            reader.recv(1)
            raise Cancelled

        if ready is None:
            writer.send(b"c")
            yield {reader.fileno(): cancel}
            return
        thread = threading.Thread(target=lambda: ready.wait(30) and writer.send(b"c"))
        thread.start()
        yield {reader.fileno(): cancel}
        thread.join()


@pytest.mark.parametrize("security", sorted(CARRIERS))
def test_no_answer_to_the_connection_itself(security):
    carrier = load_carrier(security)
    here, _there = credentials(security)
    with full() as port, cancelled_once() as watched:
        dialer = carrier.dialer("127.0.0.1", port, LONG_NS, here)
        with pytest.raises(Cancelled):
            dialer.dial(Deadline(LONG_NS), watched)


@pytest.mark.parametrize("security", sorted(set(CARRIERS) - {"none"}))
def test_no_word_after_the_connection(security):
    """The cancel comes when the connection is there and the carrier's own handshake has begun."""
    carrier = load_carrier(security)
    here, _there = credentials(security)
    arrived = threading.Event()
    with silent() as listener, cancelled_once(arrived) as watched:
        held: list[socket.socket] = []

        def accept() -> None:
            held.append(listener.accept()[0])
            held[0].recv(1)
            arrived.set()

        thread = threading.Thread(target=accept)
        thread.start()
        dialer = carrier.dialer("127.0.0.1", listener.getsockname()[1], LONG_NS, here)
        with pytest.raises(Cancelled):
            dialer.dial(Deadline(LONG_NS), watched)
        thread.join()
        held[0].settimeout(10)
        with held[0], contextlib.suppress(ConnectionResetError):
            while held[0].recv(1 << 16):  # ends: nobody holds the connection any more
                pass


def credentials(security: str):
    """Of a carrier, without what its destination tells."""
    if security != "ssh":
        return load_carrier(security).credentials()
    from bench.migration.certificates import make_ssh_key

    host, user = make_ssh_key(), make_ssh_key()
    return {"key": user.key, "host_key": host.public, "forward": ["127.0.0.1", 1]}, {}


def test_a_deadline_and_a_refusal_are_a_lost_peer():
    with full() as port, pytest.raises(PeerLost, match="no answer within"):
        connected("127.0.0.1", port, Deadline(20 * NS_PER_MS))
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        with pytest.raises(PeerLost, match="refused"):
            connected("127.0.0.1", unbound.getsockname()[1], Deadline(LONG_NS))


def test_what_is_watched_is_served_until_the_socket_is_ready():
    left, right = socket.socketpair()
    other, wake = socket.socketpair()
    with left, right, other, wake:

        def serve() -> None:
            other.recv(1)
            right.send(b"x")

        wake.send(b"w")
        assert ready_beside(left.fileno(), 1, Deadline(LONG_NS), {other.fileno(): serve})
        assert left.recv(1) == b"x"
