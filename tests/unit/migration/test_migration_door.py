"""Who gets in at the destination's door, and who does not: real sockets over the loopback, no migration."""

import os
import socket
import ssl
import threading

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.migration import wire
from bench.migration.certificates import make_certificate
from bench.migration.door import VISITORS, Door
from bench.migration.tls import Tls, TlsConnection, make_context
from bench.migration.transport import Connection, PeerLost, listen
from bench.migration.wire import Kind

TICKET = "0123"
HELLO = wire.encode_json(Kind.HELLO, {"ticket": TICKET})


@pytest.fixture
def door():
    made = Door(listen("127.0.0.1", 0), TICKET, NS_PER_S, Connection)
    yield made
    made.close()


@pytest.fixture
def connect(door):
    made = []

    def connect():
        made.append(socket.create_connection(("127.0.0.1", door.port), 5))
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


def entrant(door, within_ns=5 * NS_PER_S):
    never, other = os.pipe()
    try:
        return door.wait(Deadline(within_ns), never, lambda: None)
    finally:
        os.close(never)
        os.close(other)


def refused(door, sock):
    """Whether the stranger's connection ends."""
    entrant(door, NS_PER_S // 10)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_the_source_comes_in(door, connect):
    connect().sendall(HELLO)
    came = entrant(door)
    assert came.frame.fields == {"ticket": TICKET}
    came.connection.close()
    assert door.refused == 0


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64,
        b"\0" * 4096,
        wire.encode_json(Kind.HELLO, {"ticket": "4567"}),
        wire.encode_json(Kind.HELLO, {}),
        wire.encode_json(Kind.JOIN, {"ticket": TICKET, "role": "faults"}),  # before HELLO
        wire.encode_final(1),
        HELLO[:-3] + b"xyz",
    ],
)
def test_a_stranger_does_not_and_the_source_still_does(door, connect, said):
    stranger = connect()
    stranger.sendall(said)
    assert refused(door, stranger)
    connect().sendall(HELLO)
    entrant(door).connection.close()
    assert door.refused == 1


def test_silent_strangers_and_half_frames_do_not_keep_the_source_waiting(door, connect):
    for number in range(8):
        connect().sendall(HELLO[: number * 3])
    connect().sendall(HELLO)
    entrant(door).connection.close()


def test_a_silent_stranger_is_sent_away(door, connect, monkeypatch):
    monkeypatch.setattr("bench.migration.door.VISIT_NS", NS_PER_S // 20)
    stranger = connect()
    assert refused(door, stranger)


def test_a_flood_costs_bounded_memory_and_never_another_address_its_place(door):
    """A flood from 127.0.0.2, while the source from 127.0.0.1 has said half of its frame."""
    with socket.create_connection(("127.0.0.1", door.port), 5) as source:
        source.sendall(HELLO[:10])
        entrant(door, NS_PER_S // 20)
        flood = []
        try:
            for _ in range(VISITORS * 2):
                flood.append(socket.create_connection(("127.0.0.1", door.port), 5, source_address=("127.0.0.2", 0)))
                door.serve()
            assert len(door._visitors) <= VISITORS
            source.sendall(HELLO[10:])
            entrant(door).connection.close()
        finally:
            for sock in flood:
                sock.close()
    assert door.refused >= VISITORS


def test_not_a_byte_more_than_the_first_frame_is_read(door, connect):
    connect().sendall(HELLO + b"next")
    came = entrant(door)
    assert came.connection.read_exactly(4) == b"next"
    came.connection.close()


def test_the_number_of_kinds_changes_after_the_first(door, connect):
    door.kinds = (Kind.JOIN,)
    stranger = connect()
    stranger.sendall(HELLO)
    assert refused(door, stranger)
    connect().sendall(wire.encode_json(Kind.JOIN, {"ticket": TICKET, "role": "faults"}))
    came = entrant(door)
    assert came.frame.fields["role"] == "faults"
    came.connection.close()


# TLS


class Pair:
    """Both ends of a TLS connection, greeted."""

    def __init__(self, context_here, context_there):
        ours, theirs = _tcp_pair()
        self.here = TlsConnection(ours, 2 * NS_PER_S, context_here, server=False)
        self.there = TlsConnection(theirs, 2 * NS_PER_S, context_there, server=True)

    def greet(self):
        for _ in range(20):
            if not self.here.greet() | self.there.greet():
                return
        raise AssertionError("no end of the handshake")

    def close(self):
        self.here.close()
        self.there.close()


def _tcp_pair():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@pytest.fixture
def pair():
    source, destination = Tls().credentials()
    made = Pair(make_context(source, server=False), make_context(destination, server=True))
    made.greet()
    yield made
    made.close()


@pytest.mark.parametrize("sizes", [[1], [24, 4096], [16384], [24, 1 << 20], [16383, 2, 40000, 1], [24, 1 << 20, 24, 5]])
def test_what_is_sent_arrives_whatever_the_pieces(pair, sizes):
    parts = [os.urandom(size) for size in sizes]
    whole = b"".join(parts)
    sender = threading.Thread(target=pair.here.send, args=parts)
    sender.start()
    head, rest = pair.there.read_exactly(1), bytearray(len(whole) - 1)
    pair.there.read_into(memoryview(rest))
    sender.join()
    assert bytes(head + rest) == whole
    assert pair.here.sent_bytes == len(whole)
    assert not pair.there.buffered
    cost = pair.here.cost()
    assert 0 < cost["overhead_bytes"] == cost["wire_bytes"] - len(whole)
    assert pair.here.info().queued_bytes <= len(whole)


def test_what_was_decrypted_but_not_read_is_seen_without_the_socket(pair):
    pair.here.send(b"abcdef")
    pair.there.wait(1, Deadline(NS_PER_S), "data")
    assert pair.there.read_exactly(2) == b"ab"
    assert pair.there.buffered == 4
    pair.there.wait(1, Deadline(0), "what is there already")
    assert pair.there.read_exactly(4) == b"cdef"
    assert pair.there.read_available(memoryview(bytearray(4))) == 0


def test_the_stream_is_not_readable_on_the_wire():
    source, destination = Tls().credentials()
    assert make_context(source, server=False).minimum_version == ssl.TLSVersion.TLSv1_3
    assert source["key"] != destination["key"]
    assert source["key"] not in str(destination)


@pytest.mark.parametrize("wrong", ["server", "client"])
def test_a_wrong_certificate_is_refused(wrong):
    source, destination = Tls().credentials()
    other = make_certificate("stranger")
    changed = {"key": other.key, "certificate": other.certificate}
    if wrong == "client":
        source = {**source, **changed}
    else:
        destination = {**destination, **changed}
    pair = Pair(make_context(source, server=False), make_context(destination, server=True))
    try:
        with pytest.raises(PeerLost, match="certificate is not the one made for this migration"):
            pair.greet()
    finally:
        pair.close()


def test_an_altered_record_ends_the_connection(pair):
    pair.here._tls.write(b"page")
    record = bytearray(pair.here._outgoing.read())
    record[-1] ^= 1
    pair.here.sock.send(record)
    pair.there.wait(1, Deadline(NS_PER_S), "data")
    with pytest.raises(PeerLost):
        pair.there.read_exactly(4)


def test_a_stranger_without_tls_is_refused_at_a_tls_door():
    _source, destination = Tls().credentials()
    context = make_context(destination, server=True)
    door = Door(
        listen("127.0.0.1", 0),
        TICKET,
        NS_PER_S,
        lambda sock, timeout: TlsConnection(sock, timeout, context, server=True),
    )
    try:
        with socket.create_connection(("127.0.0.1", door.port), 5) as stranger:
            stranger.sendall(HELLO)
            assert refused(door, stranger)
            assert door.refused == 1
    finally:
        door.close()
