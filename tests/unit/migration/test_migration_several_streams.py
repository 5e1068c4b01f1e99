"""Several streams: whatever each socket takes, and in whatever order what was sent arrives, memories end equal."""

import contextlib
import itertools
import socket
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import WireError
from bench.memory import content
from bench.memory.hashes import BLOCK_PAGES, PageHashes
from bench.memory.image import GuestMemory
from bench.migration import transport, wire
from bench.migration.compression import load_codec
from bench.migration.levers import Levers
from bench.migration.packing import make_sender
from bench.migration.pages import PageReceiver, Sent
from bench.migration.pieces import views_of
from bench.migration.streams import Streams
from bench.migration.streams_arrival import Lanes
from bench.migration.transport import Connection, Pacer, PeerClosed, PeerLost, TransportInfo
from bench.migration.wire import Kind

PAGES = 300
LEVERS = [
    Levers(),
    Levers(zero_pages=False),
    Levers(compression="zstd"),
    Levers(delta_cache_bytes=4 << 20),
    Levers(compression="lz4", delta_cache_bytes=100 << 12),
]


class FakeConnection:
    """Takes as much as *draw* says, and gives as much as it says of what it has taken."""

    link_timeout_ns = NS_PER_S
    give_up = None
    buffered = 0
    prepare = staticmethod(views_of)

    def __init__(self, draw):
        self.draw = draw
        self.data = bytearray()
        self.sent_bytes = 0
        self.broken = False
        self.watchers = {}
        self.aborted = False

    def fileno(self):
        return id(self)

    def watch(self, fd, callback):
        self.watchers[fd] = callback

    def unwatch(self, fd):
        del self.watchers[fd]

    def limit_unsent(self, limit_bytes):
        pass

    def send_available(self, views):
        count = self.draw(max(1, sum(view.nbytes for view in views)))
        whole = b"".join(views)
        self.data += whole[:count]
        self.sent_bytes += count
        views[:] = [memoryview(whole[count:])] if count < len(whole) else []
        return count

    def read_available(self, view):
        if not self.data:
            return 0
        count = min(len(self.data), 1 + self.draw(len(view)), len(view))
        view[:count] = self.data[:count]
        del self.data[:count]
        return count

    def expect(self, count):
        assert count >= 1

    def info(self):
        return TransportInfo(self.sent_bytes, 0, 1, 1, 0)

    def abort(self):
        self.aborted = True


class FakeStreams(Streams):
    """Which sockets have room, *draw* says."""

    draw = None

    def _select(self, outputs, timeout_ns):
        del timeout_ns
        chosen = [stream for stream in outputs if self.draw(1)]
        return chosen or outputs[:1]


class FakeLanes(Lanes):
    """One of the streams that may be read has something."""

    draw = None

    def _ready(self):
        lanes = [lane for lane in self.readable if lane.connection.data or lane.inside_frame]
        return [lanes[self.draw(len(lanes) - 1)]]


def drawing(seed):
    """Numbers from 0 to what is asked for, of one example."""
    rng = np.random.default_rng(seed)
    return lambda most: int(rng.integers(0, most + 1))


page_sets = st.one_of(
    st.sets(st.integers(0, PAGES - 1), max_size=60),
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 256)).map(lambda r: set(range(r[0], min(PAGES, sum(r))))),
).map(lambda pages: np.array(sorted(pages), dtype=np.int64))
rounds = st.lists(
    st.tuples(page_sets, st.integers(0, 2**32), st.sampled_from(["text", "random", "zero", "words"])), max_size=5
)


def rewrite(words, pages, seed, kind):
    rng = np.random.default_rng(seed)
    if kind == "words":
        words[rng.integers(0, len(words), 20), rng.integers(0, 512, 20)] = seed
    elif len(pages):
        fresh = np.empty((len(pages), 512), dtype=np.uint64)
        content.fill_pages(fresh, {kind: 1.0}, seed)
        words[pages] = fresh


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(LEVERS), st.integers(2, 6), st.integers(1, 64), st.integers(0, 2**32), rounds)
def test_no_order_of_arrival_lets_an_older_copy_win(levers, count, chunk, seed, script):
    """The rounds are all on their way before the first byte is read: nothing but the rounds' ends orders them."""
    draw = drawing(seed)
    connections = [FakeConnection(draw) for _ in range(count)]
    streams = FakeStreams(connections)
    streams.draw = draw
    with GuestMemory.create(PAGES * 4096) as source, GuestMemory.create(PAGES * 4096) as destination:
        sender = make_sender(streams, source, Pacer(0), levers)
        source.fill({"zero": 0.3, "text": 0.4, "random": 0.3}, 1)
        memories = []
        for number, (pages, fresh, kind) in enumerate([(np.arange(PAGES), 0, ""), *script], 1):
            before = source.words.copy()
            if kind:
                rewrite(source.words, pages, fresh, kind)
            changed = np.flatnonzero((source.words != before).any(axis=1)) if number > 1 else pages
            pages = np.union1d(pages, changed).astype(np.int64)
            sent = Sent()
            sender.begin_round(number)
            for begin in range(0, len(pages), chunk):
                sender.send(pages[begin : begin + chunk], sent)
            sender.end_round()
            sent.sent_bytes += streams.end_round(number, sent.pages)
            assert sent.pages == len(pages)
            memories.append(source.words.copy())
        assert sum(connection.sent_bytes for connection in connections) == sum(streams.cost()["streams"]["bytes"])
        assert not any(connection.broken for connection in connections)

        hashes = PageHashes(PAGES, BLOCK_PAGES)
        receiver = PageReceiver(connections[0], destination, hashes, load_codec(levers.compression))
        lanes = FakeLanes(connections, receiver, {}, NS_PER_S)
        lanes.draw = draw
        for number, memory in enumerate(memories, 1):
            frame = lanes.next()
            assert (frame.kind, frame.count) == (Kind.ROUND_END, number)
            receiver.end_round(frame)
            assert np.array_equal(destination.words, memory)
        whole = PageHashes(PAGES, BLOCK_PAGES)
        whole.update_range(source.words)
        assert hashes.digest() == whole.digest()
        assert not any(connection.data for connection in connections)


# real sockets


@contextlib.contextmanager
def connected(count, link_timeout_ns=5 * NS_PER_S):
    """Both ends of *count* connections."""
    with contextlib.ExitStack() as stack:
        listener = transport.listen("127.0.0.1", 0)
        stack.callback(listener.close)
        ends = [], []
        for _ in range(count):
            near = Connection.connect("127.0.0.1", listener.getsockname()[1], Deadline(5 * NS_PER_S), link_timeout_ns)
            for side, connection in zip(ends, (near, Connection(listener.accept()[0], link_timeout_ns)), strict=True):
                stack.callback(connection.close)
                side.append(connection)
        yield ends


@contextlib.contextmanager
def memories():
    with GuestMemory.create(PAGES * 4096) as source, GuestMemory.create(PAGES * 4096) as destination:
        source.fill({"zero": 0.2, "random": 0.8}, 1)
        yield source, destination


def run_beside(work):
    """*work* in a thread. :returns: a function that waits for its end and gives its result or raises its error."""
    results, errors = [], []

    def run():
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def end():
        thread.join(20)
        assert not thread.is_alive()
        if errors:
            raise errors[0]
        return results[0]

    return end


def send_all(streams, memory, number=1, pacer=None, chunk=64):
    sender = make_sender(streams, memory, pacer or Pacer(0), Levers())
    sent = Sent()
    for begin in range(0, PAGES, chunk):
        sender.send(np.arange(begin, min(PAGES, begin + chunk)), sent)
    streams.end_round(number, sent.pages)
    return sent


def send_rounds(streams, memory):
    """Until something ends it."""
    for number in itertools.count(1):
        send_all(streams, memory, number)


def read_to_the_end(connection, into):
    while True:
        part = memoryview(bytearray(1 << 20))
        into += part[: connection.read_available(part)]


def lanes_of(connections, memory):
    receiver = PageReceiver(connections[0], memory, None)
    return Lanes(connections, receiver, {}, 5 * NS_PER_S), receiver


@pytest.mark.parametrize("count", [2, 4, 16])
def test_memory_crosses_over_real_sockets(count):
    with connected(count) as (left, right), memories() as (source, destination):
        lanes, receiver = lanes_of(right, destination)
        streams = Streams(left, joined_ns=7)
        for number in (1, 2):
            source.words[:, 3] = number
            end = run_beside(lanes.next)
            sent = send_all(streams, source, number)
            receiver.end_round(end())
            assert np.array_equal(source.words, destination.words)
            assert sent.pages == PAGES
        cost = streams.cost()["streams"]
        assert (cost["count"], cost["joined_ns"], sum(cost["pages"])) == (count, 7, 2 * PAGES)
        assert sum(cost["bytes"]) == sum(connection.sent_bytes for connection in left)
        assert streams.bytes_beside == sum(cost["bytes"][1:]) > 0


def test_what_is_known_of_the_link_is_the_sum_over_all_streams():
    with connected(3) as (left, right), memories() as (source, destination):
        lanes, _receiver = lanes_of(right, destination)
        streams = Streams(left)
        end = run_beside(lanes.next)
        send_all(streams, source)
        end()
        info = streams.info()
        each = [connection.info() for connection in left]
        assert info.acked_bytes + info.queued_bytes >= sum(connection.sent_bytes for connection in left)
        assert info.acked_bytes <= sum(part.acked_bytes for part in each)
        assert info.min_rtt_ns <= min(part.rtt_ns for part in each)


def test_pages_go_on_while_one_stream_is_stuck():
    """Nobody reads stream 2: once its socket is full, the others carry what is left."""
    with connected(3) as (left, right), GuestMemory.create(16 << 20) as source:
        source.fill({"random": 1.0}, 1)
        for connection in (*left, *right):
            connection.limit_queue(256 << 10)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
        streams = Streams(left)
        sender = make_sender(streams, source, Pacer(0), Levers())
        stop = threading.Event()

        def read(connection):
            buffer = memoryview(bytearray(1 << 20))
            while not stop.is_set():
                with contextlib.suppress(PeerLost):
                    connection.read_available(buffer)

        threads = [threading.Thread(target=read, args=(right[number],)) for number in (0, 2)]
        for thread in threads:
            thread.start()
        sent = Sent()
        for begin in range(0, source.page_count, 32):
            sender.send(np.arange(begin, begin + 32), sent)
        stop.set()
        for thread in threads:
            thread.join()
        carried = [stream.all_pages for stream in streams._streams]
        assert sum(carried) == source.page_count
        assert carried[1] < 1024 < min(carried[0], carried[2])


@pytest.mark.parametrize("moment", ["sending", "waiting"])
def test_one_dead_stream_ends_the_sending(moment):
    with connected(3) as (left, right), memories() as (source, _destination):
        streams = Streams(left)
        if moment == "sending":
            right[1].abort()
            with pytest.raises(PeerLost, match="stream 2"):
                send_rounds(streams, source)
        else:
            right[2].abort()
            with pytest.raises(PeerLost, match="stream 3"):
                left[0].wait(1, Deadline(5 * NS_PER_S), "READY from the destination")


def test_a_stream_that_takes_nothing_is_lost_although_the_others_live():
    with connected(2, link_timeout_ns=100 * NS_PER_MS) as (left, right), memories() as (source, destination):
        del destination
        streams = Streams(left)
        stop = threading.Event()

        def read():
            while not stop.is_set():
                right[0].read_available(memoryview(bytearray(1 << 20)))

        thread = threading.Thread(target=read)
        thread.start()
        try:
            with pytest.raises(PeerLost, match="stream 2"):
                send_rounds(streams, source)
        finally:
            stop.set()
            thread.join()


def test_nothing_of_a_stranger_is_taken_from_a_stream():
    with connected(2) as (left, right):
        Streams(left)
        right[1].send(b"x")
        with pytest.raises(WireError, match="sent something"):
            left[0].wait(1, Deadline(5 * NS_PER_S), "READY from the destination")


def test_giving_up_ends_a_wait_for_full_sockets():
    with connected(2, link_timeout_ns=60 * NS_PER_S) as (left, _right), memories() as (source, _destination):
        streams = Streams(left)
        left[0].give_up = Deadline(50 * NS_PER_MS)
        begin_ns = now_ns()
        with pytest.raises(PeerLost):
            send_rounds(streams, source)
        assert now_ns() - begin_ns < left[0].link_timeout_ns


def test_abandoning_leaves_the_first_connection_between_two_frames():
    with connected(2) as (left, right), memories() as (source, _destination):
        streams = Streams(left)
        sender = make_sender(streams, source, Pacer(0), Levers(zero_pages=False))
        left[0].limit_queue(64 << 10)
        while not left[0].broken:
            sender.send(np.arange(PAGES)[:256], Sent())
        got = bytearray()

        def read():
            with contextlib.suppress(PeerClosed):
                read_to_the_end(right[0], got)

        end = run_beside(read)
        streams.abandon()
        assert not left[0].broken
        left[0].send(wire.encode_json(Kind.CANCEL, {"reason": "enough"}))
        left[0].close()
        end()
        assert got.endswith(wire.encode_json(Kind.CANCEL, {"reason": "enough"}))
        with pytest.raises(PeerLost):
            read_to_the_end(right[1], bytearray())


def test_pacing_holds_for_all_streams_together():
    with connected(4) as (left, right), memories() as (source, destination):
        lanes, _receiver = lanes_of(right, destination)
        end = run_beside(lanes.next)
        begin_ns = now_ns()
        rate_bps = 80_000_000
        sent = send_all(Streams(left), source, pacer=Pacer(rate_bps), chunk=8)
        end()
        least_ns = sent.sent_bytes * 8 * NS_PER_S // rate_bps
        assert now_ns() - begin_ns >= least_ns - Pacer.CREDIT_NS


@pytest.mark.parametrize("end", ["says why", "says nothing"])
def test_a_lost_stream_leaves_the_source_a_moment_to_say_why(end):
    with connected(2) as (left, right), memories() as (_source, destination):
        lanes, _receiver = lanes_of(right, destination)
        left[1].abort()
        if end == "says why":
            left[0].send(wire.encode_json(Kind.CANCEL, {"reason": "enough"}))
            assert lanes.next().kind is Kind.CANCEL
        else:
            with pytest.raises(PeerLost, match="stream 2"):
                lanes.next()


def test_a_stream_that_owes_its_rounds_end_is_lost():
    with connected(2, link_timeout_ns=100 * NS_PER_MS) as (left, right), memories() as (_source, destination):
        lanes, _receiver = lanes_of(right, destination)
        left[0].send(wire.encode_round_end(1, 0))
        with pytest.raises(PeerLost, match="stream 2: nothing arrived"):
            lanes.next()


def test_a_stream_that_trickles_is_not_lost():
    """Less arrives in the time of a dead link than a reader of whole payloads wakes for."""
    timeout_ns = 100 * NS_PER_MS
    with connected(2, link_timeout_ns=timeout_ns) as (left, right), memories() as (source, destination):
        lanes, _receiver = lanes_of(right, destination)
        end = run_beside(lanes.next)
        payload = source.words[:64].data.cast("B")
        left[1].send(wire.encode_run(0, 64))
        for begin in range(0, len(payload), 32 << 10):
            left[1].send(payload[begin : begin + (32 << 10)])
            left[1].wait(0, Deadline(timeout_ns // 2), "a slow link")
        left[1].send(wire.encode_round_end(1, 64))
        left[0].send(wire.encode_round_end(1, 64))
        assert end().kind is Kind.ROUND_END
        assert np.array_equal(destination.words[:64], source.words[:64])


def test_the_source_may_be_silent_between_rounds_for_longer_than_a_link():
    with connected(2, link_timeout_ns=20 * NS_PER_MS) as (left, right), memories() as (_source, destination):
        lanes, _receiver = lanes_of(right, destination)
        end = run_beside(lanes.next)
        left[0].wait(0, Deadline(100 * NS_PER_MS), "silence")
        for connection in left:
            connection.send(wire.encode_round_end(1, 0))
        assert end().kind is Kind.ROUND_END


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (wire.encode_round_end(1, 3), "stream 2: round 1: 0 pages arrived, 3 were sent"),
        (wire.encode_round_end(2, 0), "stream 2 ended round 2, the first one 1"),
        (wire.encode_final(1), "stream 2: FINAL frame in the wrong direction or state"),
        (wire.encode_run(PAGES - 1, 2), "stream 2: RUN frame out of bounds"),
        (b"x" * wire.HEADER_BYTES, "stream 2: unknown frame kind"),
    ],
)
def test_what_a_stream_must_not_say_is_one_wire_error(frame, message):
    with connected(2) as (left, right), memories() as (_source, destination):
        lanes, _receiver = lanes_of(right, destination)
        left[1].send(frame)
        left[0].send(wire.encode_round_end(1, 0))
        with pytest.raises(WireError, match=message):
            lanes.next()


def test_the_runner_is_served_while_streams_are_waited_for():
    with connected(2) as (_left, right), memories() as (_source, destination):
        asked, answer = socket.socketpair()

        class Gone(Exception):
            pass

        def serve():
            raise Gone

        with asked, answer:
            lanes = Lanes(right, PageReceiver(right[0], destination, None), {asked.fileno(): serve}, NS_PER_S)
            answer.send(b"!")
            with pytest.raises(Gone):
                lanes.next()


def test_a_descriptor_that_was_closed_is_not_waited_for_for_ever():
    """It would count as readable, and a core be kept busy."""
    with connected(2) as (_left, right), memories() as (_source, destination):
        gone, other = socket.socketpair()
        lanes = Lanes(right, PageReceiver(right[0], destination, None), {gone.fileno(): lambda: None}, NS_PER_S)
        gone.close()
        with other, pytest.raises(ValueError, match="was closed while"):
            lanes.next()
