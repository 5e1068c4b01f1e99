"""Squeezed pages over a real TCP connection: memories end equal with every lever, and the costs add up."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.clock import NS_PER_S, Deadline
from bench.errors import MigrationError, WireError
from bench.memory import content
from bench.memory.hashes import BLOCK_PAGES, PageHashes
from bench.memory.image import GuestMemory
from bench.migration import transport, wire
from bench.migration.compression import load_codec
from bench.migration.levers import Levers
from bench.migration.packing import looks_random, make_sender
from bench.migration.pages import PageReceiver, PageSender, Sent
from bench.migration.transport import Connection, Pacer
from bench.migration.wire import Kind

PAGES = 600
LEVERS = [
    Levers(zero_pages=False),
    Levers(compression="zstd"),
    Levers(compression="lz4"),
    Levers(delta_cache_bytes=4 << 20),
    Levers(delta_cache_bytes=100 << 12),
    Levers(compression="zstd", delta_cache_bytes=1 << 20),
    Levers(compression="lz4", delta_cache_bytes=1 << 20, zero_pages=False),
]


class Pair:
    """A sender and a receiver, each with its memory."""

    def __init__(self, stack, levers):
        listener = transport.listen("127.0.0.1", 0)
        self.left = Connection.connect("127.0.0.1", listener.getsockname()[1], Deadline(5 * NS_PER_S))
        self.right = Connection(listener.accept()[0])
        listener.close()
        for connection in (self.left, self.right):
            stack.callback(connection.close)
        self.source, self.destination = (stack.enter_context(GuestMemory.create(PAGES * 4096)) for _ in range(2))
        self.hashes = PageHashes(PAGES, BLOCK_PAGES)
        self.sender = make_sender(self.left, self.source, Pacer(0), levers)
        self.receiver = PageReceiver(self.right, self.destination, self.hashes, load_codec(levers.compression))
        self.decoder = wire.Decoder(self.right, wire.TO_DESTINATION, PAGES)
        self.round = 0

    def send(self, pages):
        self.round += 1
        thread = threading.Thread(target=self._receive)
        thread.start()
        sent = Sent()
        self.sender.begin_round(self.round)
        for begin in range(0, len(pages), 256):
            self.sender.send(pages[begin : begin + 256], sent)
        self.sender.end_round()
        self.left.send(wire.encode_round_end(self.round, sent.pages))
        thread.join(10)
        assert not thread.is_alive()
        return sent

    def _receive(self):
        while True:
            frame = self.decoder.next()
            if frame.kind is Kind.ROUND_END:
                self.receiver.end_round(frame)
                return
            self.receiver.place(frame)

    def assert_equal(self):
        assert np.array_equal(self.source.words, self.destination.words)
        whole = PageHashes(PAGES, BLOCK_PAGES)
        whole.update_range(self.source.words)
        assert self.hashes.digest() == whole.digest()


@contextlib.contextmanager
def connected(levers):
    with contextlib.ExitStack() as stack:
        yield Pair(stack, levers)


page_sets = st.one_of(
    st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=80),
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 256)).map(lambda r: set(range(r[0], min(PAGES, sum(r))))),
).map(lambda pages: np.array(sorted(pages), dtype=np.int64))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(LEVERS),
    st.lists(
        st.tuples(page_sets, st.integers(0, 2**32), st.sampled_from(["text", "random", "zero", "words"])), max_size=6
    ),
)
def test_rounds_of_any_pages_leave_both_memories_and_hashes_equal(levers, rounds):
    with connected(levers) as pair:
        pair.source.fill({"zero": 0.3, "text": 0.4, "random": 0.3}, 1)
        pair.send(np.arange(PAGES))
        pair.assert_equal()
        for pages, seed, kind in rounds:
            words = pair.source.words
            rng = np.random.default_rng(seed)
            if kind == "words":
                words[rng.choice(pages, 20), rng.integers(0, 512, 20)] = seed
            else:
                fresh = np.empty((len(pages), 512), dtype=np.uint64)
                content.fill_pages(fresh, {kind: 1.0}, seed)
                words[pages] = fresh
            sent = pair.send(pages)
            assert sent.pages == len(pages)
            pair.assert_equal()


@pytest.mark.parametrize(("name", "most"), [("zstd", 0.45), ("lz4", 0.65)])
def test_text_shrinks_and_random_pages_are_sent_plain(name, most):
    with connected(Levers(compression=name)) as pair:
        pair.source.fill({"text": 0.5, "random": 0.5}, 1)
        sent = pair.send(np.arange(PAGES))
        cost = pair.sender.cost()["compression"]
        assert (cost["pages"], cost["plain_pages"]) == (PAGES // 2, PAGES // 2)
        assert cost["output_bytes"] < most * cost["input_bytes"]
        assert cost["saved_bytes"] == cost["input_bytes"] - cost["output_bytes"]
        assert sent.sent_bytes < PAGES * 4096 - cost["saved_bytes"] + 20_000
        assert cost["cpu_ns"] > 0
        assert pair.receiver.unpacking.cpu_ns > 0


def test_small_writes_become_small_and_the_hit_rate_is_told():
    with connected(Levers(delta_cache_bytes=400 * 4096)) as pair:
        pair.source.fill({"random": 1.0}, 1)
        assert pair.send(np.arange(PAGES)).sent_bytes > PAGES * 4096
        pair.source.words[:PAGES, 7] = 1
        sent = pair.send(np.arange(PAGES))
        cost = pair.sender.cost()["delta"]
        assert (cost["hits"], cost["misses"], cost["overflows"]) == (400, 200, 0)
        assert cost["hit_rate"] == pytest.approx(2 / 3)
        assert sent.sent_bytes < 200 * 4096 + 400 * 32
        pair.source.fill({"random": 1.0}, 2)  # nothing is as it was
        before = pair.sender.cost()["delta"]["hits"]
        pair.send(np.arange(PAGES))
        after = pair.sender.cost()["delta"]
        assert after["overflows"] == after["hits"] - before > 0
        pair.assert_equal()


def test_nothing_is_a_delta_outside_of_rounds():
    with connected(Levers(delta_cache_bytes=4 << 20)) as pair:
        pair.source.fill({"random": 1.0}, 1)
        pair.send(np.arange(PAGES))
        sent = Sent()
        pair.sender.send(np.arange(10), sent)
        assert sent.sent_bytes > 10 * 4096


def test_zero_pages_are_sent_as_they_are_when_not_looked_for():
    with connected(Levers(zero_pages=False)) as pair:
        sent = pair.send(np.arange(PAGES))
        assert (sent.zero_pages, pair.sender.cost()) == (0, {})
        assert sent.sent_bytes > PAGES * 4096


def test_without_levers_the_sender_is_the_plain_one():
    with connected(Levers()) as pair:
        assert type(pair.sender) is PageSender
        pair.send(np.arange(PAGES))
        cost = pair.sender.cost()["zero_pages"]
        assert cost["pages"] == PAGES
        assert PAGES * 4096 - 200 < cost["saved_bytes"] < PAGES * 4096


def test_a_packed_frame_that_nobody_announced_is_refused():
    with connected(Levers()) as pair:
        pair.left.send(wire.encode_squeezed(Kind.PACKED, np.array([0], dtype=np.uint32), 3), b"abc")
        with pytest.raises(WireError, match="without compression"):
            pair.receiver.place(pair.decoder.next())


def test_random_pages_are_told_from_text():
    rows = np.empty((400, 512), dtype=np.uint64)
    kinds = content.fill_pages(rows, {"zero": 0.2, "text": 0.5, "random": 0.3}, 1)
    assert np.array_equal(looks_random(rows), kinds == content.RANDOM)


@pytest.mark.parametrize(
    "wrong",
    [
        {"compression": "gzip"},
        {"compression": 1},
        {"compression_level": True},
        {"compression": "zstd", "compression_level": 99},
        {"delta_cache_bytes": -1},
        {"delta_cache_bytes": "64MiB"},
        {"zero_pages": 1},
        {"cgroup": None},
    ],
)
def test_an_order_with_a_wrong_lever_is_refused(wrong):
    with pytest.raises(MigrationError):
        Levers.from_json(wrong)
