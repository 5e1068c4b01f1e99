"""The wire format: what is encoded comes back, and whatever else arrives is one WireError in bounded memory."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import WireError
from bench.migration import wire
from bench.migration.wire import Decoder, Frame, Kind

MEMORY_PAGES = 1 << 16
ALL_KINDS = tuple(Kind)


class Stream:
    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)
        self.largest = 0

    def read_exactly(self, count: int) -> bytes:
        self.largest = max(self.largest, count)
        data = self.file.read(count)
        if len(data) < count:
            raise WireError("the stream ended")
        return data


def decoder(data: bytes, pages: int = MEMORY_PAGES) -> tuple[Decoder, Stream]:
    stream = Stream(data)
    return Decoder(stream, ALL_KINDS, pages), stream


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
page_sets = st.sets(st.integers(0, MEMORY_PAGES - 1), min_size=1, max_size=60).map(
    lambda pages: np.array(sorted(pages), dtype=np.int64)
)


@st.composite
def encoded(draw, kinds=ALL_KINDS):
    """(bytes on the wire, the Frame they must decode to)."""
    kind = draw(st.sampled_from(kinds))
    if kind in wire._JSON_KINDS:
        fields = draw(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
        value = wire.MAGIC if kind is Kind.HELLO else 0
        return wire.encode_json(kind, fields), Frame(kind, 0, value, fields=fields)
    if kind is Kind.RUN:
        first = draw(st.integers(0, MEMORY_PAGES - 4))
        pages = draw(st.integers(1, 3))
        return wire.encode_run(first, pages) + bytes(pages * 4096), Frame(kind, pages, first)
    if kind is Kind.PAGES:
        indices = draw(page_sets)
        return wire.encode_pages(indices.astype(np.uint32)) + bytes(len(indices) * 4096), Frame(
            kind, len(indices), 0, indices.astype(np.uint32)
        )
    if kind is Kind.REQUEST:
        indices = draw(page_sets).astype(np.uint32)
        return wire.encode_request(indices), Frame(kind, len(indices), 0, indices)
    if kind in (Kind.ZERO, Kind.MISSING):
        indices = draw(page_sets)
        runs = wire.runs_of(indices)
        encode = wire.encode_zero if kind is Kind.ZERO else wire.encode_missing
        return encode(runs), Frame(kind, len(runs), len(indices), runs=runs)
    if kind in (Kind.PACKED, Kind.DELTA):
        indices = draw(page_sets).astype(np.uint32)
        length = draw(st.integers(1, min(5000, len(indices) * 4096 - 1)))
        return wire.encode_squeezed(kind, indices, length) + bytes(length), Frame(kind, len(indices), length, indices)
    if kind is Kind.DEVICE:
        length = draw(st.integers(0, 5000))
        return wire.encode_device(length) + bytes(length), Frame(kind, 0, length)
    number = draw(st.integers(1, 1000))
    if kind is Kind.FINAL:
        return wire.encode_final(number), Frame(kind, number)
    pages = draw(st.integers(0, MEMORY_PAGES))
    if kind is Kind.LISTEN:
        return wire.encode_listen(pages), Frame(kind, 0, pages)
    return wire.encode_round_end(number, pages), Frame(kind, number, pages)


def same(left: Frame, right: Frame) -> bool:
    return (
        (left.kind, left.count, left.value, dict(left.fields))
        == (right.kind, right.count, right.value, dict(right.fields))
        and np.array_equal(left.indices, right.indices)
        and np.array_equal(left.runs, right.runs)
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(encoded(), max_size=8))
def test_any_sequence_of_frames_round_trips(items):
    frames, stream = decoder(b"".join(data for data, _ in items))
    for _, expected in items:
        frame = frames.next()
        assert same(frame, expected)
        assert len(stream.read_exactly(frame.payload_bytes)) == expected.payload_bytes
    assert stream.file.read() == b""


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(encoded(), st.data())
def test_a_truncated_frame_is_one_wire_error(item, data):
    raw, expected = item
    head_bytes = len(raw) - expected.payload_bytes
    frames, _ = decoder(raw[: data.draw(st.integers(0, head_bytes - 1))])
    with pytest.raises(WireError):
        frames.next()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(encoded(), st.data())
def test_an_altered_bit_outside_of_page_contents_is_one_wire_error(item, data):
    raw, expected = item
    head_bytes = len(raw) - expected.payload_bytes
    bit = data.draw(st.integers(0, head_bytes * 8 - 1))
    altered = bytearray(raw)
    altered[bit // 8] ^= 1 << bit % 8
    frames, _ = decoder(bytes(altered))
    with pytest.raises(WireError):
        frames.next()


@given(st.binary(max_size=200))
def test_noise_is_one_wire_error(noise):
    frames, stream = decoder(noise)
    with pytest.raises(WireError):
        frames.next()
    assert stream.largest <= wire.MAX_META_BYTES


def forged(kind: int, count: int, value: int, meta: bytes, meta_bytes: int | None = None, *, zero: int = 0) -> bytes:
    """A frame with a right checksum and any fields."""
    head = wire._HEADER.pack(kind, wire.VERSION, zero, count, value, len(meta) if meta_bytes is None else meta_bytes)
    return head + wire._CRC.pack(zlib.crc32(meta, zlib.crc32(head))) + meta


def u32(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


@pytest.mark.parametrize(
    "raw",
    [
        forged(99, 0, 0, b""),
        forged(Kind.HELLO, 0, 0, b"{}"),
        forged(Kind.HELLO, 0, wire.MAGIC, b"[]"),
        forged(Kind.HELLO, 0, wire.MAGIC, b"{]"),
        forged(Kind.HELLO, 0, wire.MAGIC, b"[" * 60000),
        forged(Kind.HELLO, 0, wire.MAGIC, b"", 0xFFFFFFFF),
        forged(Kind.RUN, 0, 0, b""),
        forged(Kind.RUN, 1, MEMORY_PAGES, b""),
        forged(Kind.RUN, 1, 2**64 - 1, b""),
        forged(Kind.RUN, wire.MAX_RUN_PAGES + 1, 0, b""),
        forged(Kind.PAGES, 2, 0, u32(5, 5)),
        forged(Kind.PAGES, 2, 0, u32(6, 5)),
        forged(Kind.PAGES, 1, 0, u32(MEMORY_PAGES)),
        forged(Kind.PAGES, 2, 0, u32(1)),
        forged(Kind.ZERO, 1, 2, u32(0, 1)),
        forged(Kind.ZERO, 2, 4, u32(0, 2, 1, 2)),
        forged(Kind.ZERO, 2, 2, u32(0, 2, 4, 0)),
        forged(Kind.ZERO, 1, 2, u32(0xFFFFFFFF, 2)),
        forged(Kind.ZERO, 1, 0xFFFFFFFF, u32(1, 0xFFFFFFFF)),
        forged(Kind.PACKED, 1, 0, u32(5)),
        forged(Kind.PACKED, 1, 4096, u32(5)),
        forged(Kind.PACKED, 2, 100, u32(5, 5)),
        forged(Kind.PACKED, 1, 100, u32(MEMORY_PAGES)),
        forged(Kind.PACKED, wire.MAX_FRAME_PAGES + 1, 100, u32(*range(wire.MAX_FRAME_PAGES + 1))),
        forged(Kind.DELTA, 1, 2**63, u32(5)),
        forged(Kind.DELTA, 2, 100, u32(5)),
        forged(Kind.DEVICE, 0, wire.MAX_DEVICE_BYTES + 1, b""),
        forged(Kind.ROUND_END, 0, 0, b""),
        forged(Kind.ROUND_END, 1, MEMORY_PAGES + 1, b""),
        forged(Kind.FINAL, 1, 1, b""),
        forged(Kind.FINAL, 1, 0, b"", zero=1),
    ],
)
def test_hostile_fields_are_refused_before_anything_is_allocated(raw):
    tracemalloc.start()
    try:
        frames, stream = decoder(raw)
        with pytest.raises(WireError):
            frames.next()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert stream.largest <= wire.MAX_META_BYTES


def test_another_version_is_named():
    raw = bytearray(wire.encode_final(1))
    raw[1] = 9
    with pytest.raises(WireError, match="version 9"):
        decoder(bytes(raw))[0].next()


def test_a_frame_of_the_other_direction_is_refused():
    stream = Stream(wire.encode_json(Kind.TAKEN, {}))
    with pytest.raises(WireError, match="wrong direction"):
        Decoder(stream, wire.TO_DESTINATION, MEMORY_PAGES).next()


def test_no_page_is_accepted_before_memory_is_known():
    with pytest.raises(WireError):
        Decoder(Stream(wire.encode_run(0, 1)), wire.TO_DESTINATION).next()


@given(st.sets(st.integers(0, 300), max_size=120))
def test_runs_cover_exactly_the_pages(pages):
    indices = np.array(sorted(pages), dtype=np.int64)
    runs = wire.runs_of(indices)
    covered = [page for first, length in runs.tolist() for page in range(first, first + length)]
    assert covered == indices.tolist()
    assert all(
        after[0] > before[0] + before[1] for before, after in zip(runs.tolist(), runs.tolist()[1:], strict=False)
    )


def test_too_much_json_is_refused_at_the_sender():
    with pytest.raises(WireError):
        wire.encode_json(Kind.HELLO, {"x": "y" * wire.MAX_META_BYTES})
    with pytest.raises(ValueError, match="RUN"):
        wire.encode_json(Kind.RUN, {})
    with pytest.raises(WireError):
        wire.encode_device(wire.MAX_DEVICE_BYTES + 1)
