"""Pages over a real TCP connection: what is placed is what was sent, whatever its shape, and deadlines end waits."""

import contextlib
import socket
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import MigrationError, WireError
from bench.memory.hashes import BLOCK_PAGES, PageHashes
from bench.memory.image import GuestMemory
from bench.migration import transport, wire
from bench.migration.pages import PageReceiver, PageSender, Sent
from bench.migration.transport import Connection, Pacer, PeerLost, chunk_pages
from bench.migration.wire import Kind

PAGES = 600


@contextlib.contextmanager
def connected(link_timeout_ns=5 * NS_PER_S):
    listener = transport.listen("127.0.0.1", 0)
    left = Connection.connect("127.0.0.1", listener.getsockname()[1], Deadline(5 * NS_PER_S), link_timeout_ns)
    right = Connection(listener.accept()[0], link_timeout_ns)
    listener.close()
    try:
        yield left, right
    finally:
        left.close()
        right.close()


@pytest.fixture
def pair():
    with connected() as both:
        yield both


@pytest.fixture
def memories():
    with GuestMemory.create(PAGES * 4096) as source, GuestMemory.create(PAGES * 4096) as destination:
        yield source, destination


def receive_round(connection, receiver, decoder):
    while True:
        frame = decoder.next()
        if frame.kind is Kind.ROUND_END:
            receiver.end_round(frame)
            return
        receiver.place(frame)


page_sets = st.one_of(
    st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=80),
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(lambda r: set(range(r[0], min(PAGES, sum(r))))),
    st.sets(st.integers(0, PAGES - 1), max_size=9).map(lambda left_out: set(range(PAGES)) - left_out),
).map(lambda pages: np.array(sorted(pages), dtype=np.int64))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(page_sets, st.integers(0, 2**32), st.sampled_from([0, 0.01, 0.5, 1])), min_size=1, max_size=4),
    st.sampled_from([100, wire.MAX_FRAME_PAGES, wire.MAX_RUN_PAGES]),
)
def test_rounds_of_any_pages_leave_both_memories_and_hashes_equal(rounds, chunk):
    """Pages become zero and are written again; each round sends what it changed, as one that was dirty."""
    with (
        connected() as (left, right),
        GuestMemory.create(PAGES * 4096) as source,
        GuestMemory.create(PAGES * 4096) as destination,
    ):
        hashes = PageHashes(PAGES, BLOCK_PAGES)
        receiver = PageReceiver(right, destination, hashes)
        decoder = wire.Decoder(right, wire.TO_DESTINATION, PAGES)
        sender = PageSender(left, source, Pacer(0))
        for number, (pages, seed, zero_share) in enumerate(rounds, 1):
            rng = np.random.default_rng(seed)
            source.words[pages] = rng.integers(1, 2**63, (len(pages), 512), dtype=np.uint64)
            source.words[pages[rng.random(len(pages)) < zero_share]] = 0
            thread = threading.Thread(target=receive_round, args=(right, receiver, decoder))
            thread.start()
            sent = Sent()
            for begin in range(0, len(pages), chunk):
                sender.send(pages[begin : begin + chunk], sent)
            left.send(wire.encode_round_end(number, sent.pages))
            thread.join(10)
            assert not thread.is_alive()
            assert sent.pages == len(pages)
            assert sent.zero_pages == np.count_nonzero(source.words[pages].max(axis=1) == 0)
        assert np.array_equal(source.words, destination.words)
        whole = PageHashes(PAGES, BLOCK_PAGES)
        whole.update_range(source.words)
        assert hashes.digest() == whole.digest()


def test_neighbours_leave_in_one_frame_and_others_in_frames_that_fit_the_room(pair, memories):
    left, right = pair
    source, destination = memories
    source.words[:] = 1
    frames = []

    def receive():
        decoder = wire.Decoder(right, wire.TO_DESTINATION, PAGES)
        receiver = PageReceiver(right, destination, None)
        while (frame := decoder.next()).kind is not Kind.ROUND_END:
            frames.append((frame.kind, frame.pages))
            receiver.place(frame)

    thread = threading.Thread(target=receive)
    thread.start()
    sender = PageSender(left, source, Pacer(0))
    sender.send(np.arange(PAGES), Sent())
    sender.send(np.delete(np.arange(PAGES), 300), Sent())
    left.send(wire.encode_round_end(1, 0))
    thread.join(10)
    most = wire.MAX_FRAME_PAGES
    rest = [(Kind.RUN, most), (Kind.PAGES, most), (Kind.RUN, PAGES - 1 - 2 * most)]
    assert frames == [(Kind.RUN, PAGES), *rest]


def test_what_was_lost_at_the_end_is_sent_again_soon_where_the_kernel_can(pair):
    try:
        pair[0].sock.getsockopt(socket.IPPROTO_TCP, transport.TCP_RTO_MIN_US)
    except OSError:
        pytest.skip("TCP_RTO_MIN_US: needs Linux 6.16")
    pair[0].hurry()
    assert pair[0].sock.getsockopt(socket.IPPROTO_TCP, transport.TCP_RTO_MIN_US) == transport.HURRIED_US


def test_zero_pages_cost_a_few_bytes(pair, memories):
    sent = Sent()
    PageSender(pair[0], memories[0], Pacer(0)).send(np.arange(256), sent)
    assert (sent.pages, sent.zero_pages) == (256, 256)
    assert sent.sent_bytes < 64


def test_a_round_with_other_pages_than_counted_is_refused(pair, memories):
    receiver = PageReceiver(pair[1], memories[1], None)
    receiver.place(wire.Frame(Kind.ZERO, 1, 3, runs=np.array([[0, 3]], dtype=np.uint32)))
    with pytest.raises(WireError, match="3 pages arrived, 4 were sent"):
        receiver.end_round(wire.Frame(Kind.ROUND_END, 1, 4))


def test_the_end_of_the_stream_is_one_wire_error(pair):
    left, right = pair
    left.send(b"abc")
    left.close()
    with pytest.raises(WireError, match="inside a frame"):
        right.read_exactly(4)
    with pytest.raises(WireError, match="closed"):
        right.read_exactly(4)


def test_a_peer_that_sends_nothing_is_lost():
    with connected(link_timeout_ns=50 * NS_PER_MS) as (_left, right), pytest.raises(PeerLost, match="sent nothing"):
        right.read_exactly(1)


def test_a_peer_that_reads_nothing_is_lost_and_the_connection_broken():
    with connected(link_timeout_ns=50 * NS_PER_MS) as (left, _right):
        with pytest.raises(PeerLost):
            left.send(bytes(64 << 20))
        assert left.broken


def test_giving_up_ends_a_wait_before_its_own_deadline():
    with connected() as (left, right):
        asked, answer = socket.socketpair()
        with asked, answer:

            def on_readable():
                asked.recv(1)
                left.give_up = Deadline(20 * NS_PER_MS)

            left.watch(asked.fileno(), on_readable)
            answer.send(b"!")
            begin_ns = now_ns()
            with pytest.raises(PeerLost):
                left.send(bytes(64 << 20))
            assert now_ns() - begin_ns < left.link_timeout_ns
        del right


def test_everything_arrives_in_order_through_a_full_socket(pair):
    left, right = pair
    data = np.random.default_rng(1).integers(0, 256, 32 << 20, dtype=np.uint8).tobytes()
    got = bytearray(len(data) + 3)
    thread = threading.Thread(target=right.read_into, args=(memoryview(got),))
    thread.start()
    assert left.send(b"abc", data[: 1 << 20], data[1 << 20 :]) == len(data) + 3
    thread.join(20)
    assert got == b"abc" + data
    assert left.sent_bytes == len(got)
    info = left.info()
    assert info.acked_bytes >= len(got) - info.queued_bytes
    assert info.min_rtt_ns <= info.rtt_ns * 1000


def test_nobody_there_is_an_error_that_names_the_place():
    with contextlib.closing(transport.listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(MigrationError, match=f"127.0.0.1:{port}") as caught:
            transport.listen("127.0.0.1", port)
        assert "migration.port" in caught.value.remedy
    with pytest.raises(PeerLost, match=str(port)):
        Connection.connect("127.0.0.1", port, Deadline(NS_PER_S))


@given(st.integers(8_000, 10**11), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50))
def test_pacing_keeps_the_mean_rate(rate_bps, pieces):
    """A sender that waits as told never exceeds the rate by more than its credit, and loses none of it."""
    pacer = Pacer(rate_bps)
    now = begin = NS_PER_S
    for piece in pieces:
        now = max(now, pacer.sent(piece, now))
    least_ns = sum(pieces) * 8 * NS_PER_S // rate_bps
    assert least_ns - Pacer.CREDIT_NS - len(pieces) <= now - begin <= least_ns


def test_no_limit_is_no_wait():
    assert Pacer(0).sent(10**9, 5) == 5


@pytest.mark.parametrize(
    ("rate", "pages"), [(None, 16), (8_000, 1), (100_000_000, 30), (10**9, 256), (400 * 10**9, 256)]
)
def test_a_piece_takes_ten_milliseconds_at_most(rate, pages):
    assert chunk_pages(rate, 10 * NS_PER_MS, 4096, 256) == pages
