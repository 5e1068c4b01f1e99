"""Whatever a peer sends, at every entry of the engines: whole frames, or one error that says so, in bounded memory.

An entry is a place where an engine reads frames, with the kinds that it accepts there; a kind that no entry accepts, or
a compression that no test attacks, fails.
"""

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_migration_wire import MEMORY_PAGES, Stream, encoded, forged, same

from bench.clock import NS_PER_S
from bench.errors import BenchError, WireError
from bench.memory.image import GuestMemory
from bench.migration import delta, postcopy_arrival, wire
from bench.migration.compression import LEVELS, load_codec
from bench.migration.door import Door, _Visitor
from bench.migration.pages import PageReceiver
from bench.migration.reader import FrameReader
from bench.migration.transport import Connection, PeerClosed, listen
from bench.migration.wire import Decoder, Kind

SLOW = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
PIECE_BYTES = 2 << 20
TICKET = "ab12"
MOST_BYTES = 4 << 20  # beside what the peer sent: the reader's buffer is 1.3 MiB

ENTRIES = {
    "destination": wire.TO_DESTINATION,
    "source": wire.TO_SOURCE,
    "a connection that joins": (Kind.JOIN,),
}
READERS = {
    "requests at the source": (Kind.REQUEST,),
    "faults at the destination": postcopy_arrival.PAGE_FRAMES,
    "push at the destination": (*postcopy_arrival.PAGE_FRAMES, Kind.ROUND_END, Kind.ERROR),
}


class Arriving:
    """A connection whose bytes arrive in pieces of given sizes; then it is closed."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes = memoryview(data), list(sizes)

    def read_available(self, view: memoryview) -> int:
        if not len(self.data):
            raise PeerClosed("the other engine closed the connection")
        count = min(len(view), len(self.data), self.sizes.pop(0) if self.sizes else 1 << 20)
        assert count, "a read without room for anything"
        view[:count] = self.data[:count]
        self.data = self.data[count:]
        return count


def frames_of(kinds):
    """Lists of (bytes, frame) of these kinds; the strategy is built once for each, not drawn and thrown away."""
    return st.lists(encoded(kinds), max_size=6)


@st.composite
def spoiled(draw, kinds):
    """A stream that begins well and then does not: cut off, altered, with noise, forged or repeated pieces in it."""
    parts = [data for data, _frame in draw(frames_of(kinds))]
    data = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["cut", "flip", "noise", "forged", "repeat"]))
        if how == "cut":
            del data[at:]
        elif how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "noise":
            data[at:at] = draw(st.binary(min_size=1, max_size=64))
        elif how == "repeat":
            data[at:at] = data[: draw(st.integers(0, 4096))]
        else:
            data[at:at] = draw(forgeries())
    return bytes(data)


@st.composite
def forgeries(draw):
    """A header with a right checksum and whatever fields."""
    number = st.one_of(st.integers(0, 300), st.sampled_from([2**16, 2**31, 2**32 - 1]))
    meta = draw(st.binary(max_size=40))
    told = draw(st.one_of(st.just(len(meta)), number))
    value = draw(st.one_of(number, st.integers(0, 2**64 - 1), st.just(wire.MAGIC)))
    kind = draw(st.one_of(st.sampled_from(list(Kind)).map(int), st.integers(0, 255)))
    return forged(kind, draw(number), value, meta, told)


def read_frames(decoder, stream, kinds):
    """Until an error."""
    while True:
        frame = decoder.next()
        assert frame.kind in kinds
        left = frame.payload_bytes
        while left:  # as a receiver does: never more at once than it has room for
            left -= len(stream.read_exactly(min(left, PIECE_BYTES)))


def read_pieces(reader, on_frame):
    """Until an error."""
    while True:
        for frame, payload in reader.ready():
            on_frame(frame, payload)


@contextlib.contextmanager
def bounded(sent: bytes):
    """Within, no more is ever allocated than *sent* and a constant."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < len(sent) + MOST_BYTES
    finally:
        tracemalloc.stop()


def test_every_kind_is_accepted_somewhere():
    assert {kind for kinds in (*ENTRIES.values(), *READERS.values()) for kind in kinds} == set(Kind)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_kind_of_elsewhere_is_refused(entry):
    for kind in set(Kind) - set(ENTRIES[entry]):
        with pytest.raises(WireError, match=r"wrong direction|out of bounds"):
            Decoder(Stream(forged(kind, 0, 0, b"{}")), ENTRIES[entry], MEMORY_PAGES).next()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_spoiled_stream_is_whole_frames_and_one_wire_error(entry):
    @SLOW
    @given(spoiled(ENTRIES[entry]))
    def check(data):
        stream = Stream(data)
        decoder = Decoder(stream, ENTRIES[entry], MEMORY_PAGES)
        with bounded(data), pytest.raises(WireError):
            read_frames(decoder, stream, ENTRIES[entry])
        assert stream.largest <= PIECE_BYTES

    check()


@pytest.mark.parametrize("entry", READERS)
def test_frames_that_arrive_in_any_pieces_are_the_same(entry):
    kinds = READERS[entry]

    @SLOW
    @given(frames_of(kinds), st.lists(st.integers(1, 5000), max_size=30))
    def check(items, sizes):
        data = b"".join(raw for raw, _frame in items)
        reader = FrameReader(Arriving(data, sizes), kinds, MEMORY_PAGES)
        found = []
        with pytest.raises(PeerClosed):
            read_pieces(reader, lambda frame, payload: found.append((frame, bytes(payload))))
        assert len(found) == len(items)
        for (frame, payload), (raw, expected) in zip(found, items, strict=True):
            assert same(frame, expected)
            assert payload == raw[len(raw) - expected.payload_bytes :]

    check()


@pytest.mark.parametrize("entry", READERS)
def test_a_spoiled_stream_in_pieces_is_one_error(entry):
    kinds = READERS[entry]

    @SLOW
    @given(spoiled(kinds), st.lists(st.integers(1, 5000), max_size=30))
    def check(data, sizes):
        def look(frame, payload):
            assert frame.kind in kinds
            assert len(payload) == frame.payload_bytes

        with bounded(data), pytest.raises((WireError, PeerClosed)):
            read_pieces(FrameReader(Arriving(data, sizes), kinds, MEMORY_PAGES), look)

    check()


# payloads


class Sender:
    """The connection of a receiver: all that it reads."""

    def __init__(self, data: bytes) -> None:
        self.stream = Stream(data)

    def read_into(self, view: memoryview) -> None:
        view[:] = self.stream.read_exactly(view.nbytes)


def require_only_these_pages_change(kind, codec, payload, pages):
    """A squeezed payload is placed in exactly the pages that its frame names, or nowhere at all."""
    with GuestMemory.create(16 * 4096) as memory:
        memory.words[:] = 7
        before = memory.words.copy()
        frame = wire.Frame(kind, len(pages), len(payload), np.array(pages, dtype=np.uint32))
        receiver = PageReceiver(Sender(payload), memory, None, codec)
        try:
            with bounded(payload):
                receiver.place(frame)
        except WireError:
            assert np.array_equal(memory.words, before)
        others = np.setdiff1d(np.arange(16), pages)
        assert np.array_equal(memory.words[others], before[others])
        del receiver


PAGE_LISTS = st.sets(st.integers(0, 15), min_size=1, max_size=16).map(sorted)


@st.composite
def squeezed(draw, make):
    """(pages, a payload for them): a good one, which may be spoiled, or noise."""
    pages = draw(PAGE_LISTS)
    rows = np.zeros((len(pages), 512), dtype=np.uint64)
    for at, value in draw(st.dictionaries(st.integers(0, 511), st.integers(0, 2**64 - 1), max_size=20)).items():
        rows[draw(st.integers(0, len(pages) - 1)), at] = value
    data = bytearray(draw(st.one_of(st.just(make(rows)), st.binary(min_size=1, max_size=300))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()):
            del data[max(1, at) :]
        else:
            data[at] ^= 1 << draw(st.integers(0, 7))
    return pages, bytes(data)


@pytest.mark.parametrize("name", LEVELS)
def test_a_hostile_packed_payload_changes_its_own_pages_or_none(name):
    codec = load_codec(name)

    @SLOW
    @given(squeezed(lambda rows: codec.compress(rows.data.cast("B"))))
    def check(item):
        pages, payload = item
        require_only_these_pages_change(Kind.PACKED, codec, payload, pages)

    check()


def test_a_hostile_delta_changes_its_own_pages_or_none():
    @SLOW
    @given(squeezed(lambda rows: delta.encode(rows != 0, rows)))
    def check(item):
        pages, payload = item
        require_only_these_pages_change(Kind.DELTA, None, payload, pages)

    check()


def test_a_zstd_frame_that_promises_much_is_given_no_room():
    codec = load_codec("zstd")
    bomb = codec.compress(memoryview(bytes(64 << 20)))
    with bounded(bomb), pytest.raises(WireError):
        codec.decompress(bomb, 4096)


@pytest.mark.parametrize("name", LEVELS)
def test_what_unpacks_to_more_is_given_no_room(name):
    codec = load_codec(name)
    bomb = codec.compress(memoryview(bytes(64 << 20)))
    with bounded(bomb), pytest.raises(WireError):
        codec.decompress(bomb, 256 * 4096)


def test_a_payload_for_a_compression_that_was_not_agreed_on_is_refused():
    with GuestMemory.create(4096) as memory, pytest.raises(BenchError, match="without compression"):
        PageReceiver(Sender(b"x" * 9), memory, None).place(wire.Frame(Kind.PACKED, 1, 9, np.zeros(1, dtype=np.uint32)))


def test_json_as_deep_as_a_frame_may_be_is_one_wire_error():
    meta = b"[" * wire.MAX_META_BYTES
    raw = forged(Kind.HELLO, 0, wire.MAGIC, meta)
    with bounded(raw), pytest.raises(WireError):
        Decoder(Stream(raw), wire.TO_DESTINATION).next()


class Visiting(Arriving):
    """What a door's visitor needs of a connection."""

    def greet(self) -> int:
        return 0


def visit(door, data, sizes):
    """Let a stranger say *data* at the door. :returns: its frame once it is let in."""
    visitor = _Visitor(Visiting(data, sizes), "127.0.0.1", "127.0.0.1:1")
    while (frame := visitor.turn(door.kinds)) is None:
        pass
    door._check(frame)
    return frame


@pytest.fixture(scope="module")
def door():
    made = Door(listen("127.0.0.1", 0), TICKET, NS_PER_S, Connection)
    made.kinds = (Kind.JOIN,)
    yield made
    made.close()


@SLOW
@given(
    st.one_of(spoiled((Kind.JOIN,)), forgeries(), st.binary(max_size=200)), st.lists(st.integers(1, 99), max_size=30)
)
def test_whatever_a_stranger_says_at_the_door_is_one_error(door, data, sizes):
    """It never has the ticket, so nothing that it says lets it in."""
    with bounded(data), pytest.raises(BenchError):
        visit(door, data, sizes)


tickets = st.one_of(
    st.text(alphabet=st.characters(), max_size=8).filter(lambda text: text != TICKET),
    st.text(alphabet="\ud800\udfff\0a", min_size=1, max_size=8),
    st.sampled_from([None, True, 0, [], {}, [TICKET], TICKET + "\0", TICKET.upper(), TICKET[:-1]]),
)


@SLOW
@given(tickets, st.lists(st.integers(1, 99), max_size=30))
def test_a_join_with_another_ticket_is_one_error(door, ticket, sizes):
    with pytest.raises(BenchError):
        visit(door, wire.encode_json(Kind.JOIN, {"ticket": ticket, "role": "stream"}), sizes)


@SLOW
@given(st.text(max_size=20), st.lists(st.integers(1, 99), max_size=30), st.binary(max_size=40))
def test_a_join_with_the_ticket_gets_in_and_not_a_byte_more_is_read(door, role, sizes, rest):
    data = wire.encode_json(Kind.JOIN, {"ticket": TICKET, "role": role})
    connection = Visiting(data + rest, sizes)
    visitor = _Visitor(connection, "127.0.0.1", "127.0.0.1:1")
    while (frame := visitor.turn(door.kinds)) is None:
        pass
    door._check(frame)
    assert frame.fields["role"] == role
    assert bytes(connection.data) == rest


def test_half_a_surrogate_pair_is_one_wire_error_and_a_whole_one_is_text():
    for text in ("\ud800", "\udc00 after", {"key": ["\udfff"]}):
        with pytest.raises(WireError, match="not JSON"):
            Decoder(Stream(wire.encode_json(Kind.ERROR, {"reason": text})), wire.TO_SOURCE).next()
    told = {"reason": "\U0001f600 \\ud800 \N{LATIN SMALL LETTER E WITH ACUTE}"}
    assert Decoder(Stream(wire.encode_json(Kind.ERROR, told)), wire.TO_SOURCE).next().fields == told
