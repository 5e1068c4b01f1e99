"""What travels between the source engine and the destination engine: pure encoding and decoding.

Grammar (ABNF-like; integers little-endian; ``page`` is 4096 bytes)::

    to-destination   = HELLO *round [ final HANDOVER ]                                 ; CANCEL or ERROR may replace any
                                                                                       ; frame from the first round on
    final            = FINAL *transfer ROUND-END DEVICE / FINAL DEVICE *transfer ROUND-END
    round            = *transfer ROUND-END
    transfer         = RUN / PAGES / ZERO / PACKED / DELTA
    to-source        = SKELETON [ READY [ TAKEN / REFUSED ] [ DIGEST ] ]               ; ERROR may replace any frame

    post-copy, in place of FINAL and its round: ADVISE (answered by ARMED) before the pause, *MISSING LISTEN after it;
    then DEVICE, HANDOVER and, after TAKEN, *transfer ROUND-END. COMPLETE says that every page is there.
    a further connection of the same migration begins with JOIN, which names its role. On the one for faults REQUESTs
    go to the source and transfers to the destination; on one that replaces a broken first connection (main) *MISSING
    LISTEN goes to the source; on a further stream *( *transfer ROUND-END ) go to the destination.
    ticket           = the "ticket" member of HELLO's and JOIN's JSON: the text that both engines got from the runner.
                       A first frame without it is a stranger's (:mod:`bench.migration.door`).

    frame            = header meta payload
    header           = kind:u8 version:u8 zero:u16 count:u32 value:u64 meta-bytes:u32 crc:u32      ; 24 bytes
    crc              = CRC-32 (as zlib's) of the header's first 20 bytes and of meta

    kind       count           value              meta                               payload
    HELLO      0               MAGIC              JSON: ticket, guest's configuration -
    RUN        pages           first page         -                                  count pages, next to each other
    PAGES      pages           0                  count x u32, strictly rising       count pages, in that order
    ZERO       runs            pages in all       count x (first:u32, pages:u32)     -
    PACKED     pages           payload's bytes    count x u32, strictly rising       those pages, compressed together
    DELTA      pages           payload's bytes    count x u32, strictly rising       what changed in them, see delta.py
    ROUND-END  round from 1    pages of the round, zero pages included; no meta      -
    FINAL      round from 1    0                  -                                  -
    DEVICE     0               blob's bytes       -                                  the device state
    MISSING    runs            pages in all       count x (first:u32, pages:u32)     -
    LISTEN     0               pages missing, those of all MISSING frames; no meta   -
    REQUEST    pages           0                  count x u32, strictly rising       -
    SKELETON READY TAKEN REFUSED DIGEST HANDOVER CANCEL ERROR JOIN ADVISE ARMED COMPLETE:  count 0, value 0, meta a
                                                                                     JSON object, no payload

PACKED is compressed by what HELLO named (:mod:`bench.migration.compression`) and must come out as exactly count pages.
PACKED and DELTA are only sent when they are smaller than the pages themselves: their payload is below count x 4096.

The checksum covers everything but page contents and the device state, whose integrity the memory digest and the
guest's own decoder prove. Each field is bounded before anything is allocated by it: a frame costs its reader at most
:data:`MAX_META_BYTES` beyond guest memory (and the device state, bounded by :data:`MAX_DEVICE_BYTES`). Whatever the
grammar does not allow, the end of the stream inside it included, is one :class:`bench.errors.WireError`.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from bench.errors import WireError
from bench.memory.bitmap import Pages, runs

PAGE_BYTES: Final = 4096
VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"BENCHMIG", "little")
MAX_FRAME_PAGES: Final = 256  # 1 MiB: what both sides have room for beside the guest's memory
MAX_RUN_PAGES: Final = 2048  # 8 MiB, which need no room; a frame costs as much work as 100 KiB of its payload
MAX_ZERO_RUNS: Final = 16384
MAX_META_BYTES: Final = 256 << 10
MAX_DEVICE_BYTES: Final = 1 << 30
MAX_ROUND: Final = 1 << 20

_HEADER: Final = struct.Struct("<BBHIQI")
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size

Indices = npt.NDArray[np.uint32]
_NO_INDICES: Final[Indices] = np.zeros(0, dtype=np.uint32)


class Kind(enum.IntEnum):
    """Frame kinds by their number on the wire."""

    HELLO = 1
    RUN = 2
    PAGES = 3
    ZERO = 4
    ROUND_END = 5
    FINAL = 6
    DEVICE = 7
    HANDOVER = 8
    CANCEL = 9
    ERROR = 10
    JOIN = 11
    ADVISE = 12
    MISSING = 13
    LISTEN = 14
    SKELETON = 16
    READY = 17
    TAKEN = 18
    REFUSED = 19
    DIGEST = 20
    ARMED = 21
    REQUEST = 22
    COMPLETE = 23
    PACKED = 24
    DELTA = 25


_JSON_KINDS: Final = frozenset(
    {
        Kind.HELLO,
        Kind.HANDOVER,
        Kind.CANCEL,
        Kind.ERROR,
        Kind.SKELETON,
        Kind.READY,
        Kind.TAKEN,
        Kind.REFUSED,
        Kind.DIGEST,
        Kind.JOIN,
        Kind.ADVISE,
        Kind.ARMED,
        Kind.COMPLETE,
    }
)
_SQUEEZED: Final = (Kind.PACKED, Kind.DELTA)
TRANSFERS: Final = (Kind.RUN, Kind.PAGES, Kind.ZERO, *_SQUEEZED)
_RUN_LISTS: Final = frozenset({Kind.ZERO, Kind.MISSING})
_MOST: Final[Mapping[Kind, int]] = {Kind.RUN: MAX_RUN_PAGES, **dict.fromkeys(_RUN_LISTS, MAX_ZERO_RUNS)}
_META_ITEM_BYTES: Final[Mapping[Kind, int]] = {
    Kind.PAGES: 4,
    Kind.REQUEST: 4,
    Kind.PACKED: 4,
    Kind.DELTA: 4,
    Kind.ZERO: 8,
    Kind.MISSING: 8,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame, its payload still in the stream.

    :param count, value: as in the table of this module.
    :param indices: PAGES, REQUEST, PACKED, DELTA: page numbers, shape (count,).
    :param runs: ZERO, MISSING: first page and length of each run, shape (count, 2).
    :param fields: the object of a JSON frame.
    """

    kind: Kind
    count: int = 0
    value: int = 0
    indices: Indices = field(default_factory=lambda: _NO_INDICES)
    runs: Indices = field(default_factory=lambda: _NO_INDICES.reshape(0, 2))
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the frame's meta data in the stream."""
        if self.kind in (Kind.RUN, Kind.PAGES):
            return self.count * PAGE_BYTES
        return self.value if self.kind is Kind.DEVICE or self.kind in _SQUEEZED else 0

    @property
    def pages(self) -> int:
        """Guest pages that this frame sets."""
        if self.kind is Kind.ZERO:
            return self.value
        return self.count if self.kind in TRANSFERS else 0


# encoding


def _encode(kind: Kind, count: int, value: int, meta: bytes = b"") -> bytes:
    head = _HEADER.pack(kind, VERSION, 0, count, value, len(meta))
    return head + _CRC.pack(zlib.crc32(meta, zlib.crc32(head))) + meta


def encode_json(kind: Kind, fields: Mapping[str, Any]) -> bytes:
    """One of the frames whose meta data is a JSON object.

    :raises WireError: when the object is larger than :data:`MAX_META_BYTES`.
    """
    if kind not in _JSON_KINDS:
        raise ValueError(f"{kind.name} carries no JSON")
    meta = json.dumps(fields, separators=(",", ":")).encode()
    if len(meta) > MAX_META_BYTES:
        raise WireError(f"{kind.name} frame of {len(meta)} bytes is over the limit of {MAX_META_BYTES}")
    return _encode(kind, 0, MAGIC if kind is Kind.HELLO else 0, meta)


def encode_run(first: int, pages: int) -> bytes:
    """Header of RUN; *pages* pages of payload follow."""
    return _encode(Kind.RUN, pages, first)


def encode_pages(indices: Indices) -> bytes:
    """Header and meta data of PAGES; the pages follow in the order of *indices* (strictly rising)."""
    return _encode(Kind.PAGES, len(indices), 0, indices.astype("<u4", copy=False).tobytes())


def encode_squeezed(kind: Kind, indices: Indices, payload_bytes: int) -> bytes:
    """Header and meta data of PACKED or DELTA for these pages (strictly rising); the payload follows.

    :raises ValueError: for another kind, or a payload that is no smaller than the pages.
    """
    if kind not in _SQUEEZED or not 0 < payload_bytes < len(indices) * PAGE_BYTES:
        raise ValueError(f"{kind.name} of {len(indices)} pages in {payload_bytes} bytes")
    return _encode(kind, len(indices), payload_bytes, indices.astype("<u4", copy=False).tobytes())


def encode_zero(zero_runs: Indices) -> bytes:
    """ZERO: *zero_runs* of shape (n, 2), first page and length, rising and apart, n up to :data:`MAX_ZERO_RUNS`."""
    pages = int(zero_runs[:, 1].sum(dtype=np.uint64))
    return _encode(Kind.ZERO, len(zero_runs), pages, zero_runs.astype("<u4", copy=False).tobytes())


def encode_missing(missing_runs: Indices) -> bytes:
    """MISSING: as :func:`encode_zero`, of pages that the destination does not have."""
    pages = int(missing_runs[:, 1].sum(dtype=np.uint64))
    return _encode(Kind.MISSING, len(missing_runs), pages, missing_runs.astype("<u4", copy=False).tobytes())


def encode_listen(pages: int) -> bytes:
    """LISTEN: *pages* are missing in all."""
    return _encode(Kind.LISTEN, 0, pages)


def encode_request(indices: Indices) -> bytes:
    """REQUEST: the destination's guest waits for these pages (strictly rising)."""
    return _encode(Kind.REQUEST, len(indices), 0, indices.astype("<u4", copy=False).tobytes())


def encode_round_end(round_number: int, pages: int) -> bytes:
    """ROUND-END: *pages* were set in this round, by which the receiver checks that it saw all of it."""
    return _encode(Kind.ROUND_END, round_number, pages)


def encode_final(round_number: int) -> bytes:
    """FINAL: the guest is paused; the round that follows is the last."""
    return _encode(Kind.FINAL, round_number, 0)


def encode_device(length_bytes: int) -> bytes:
    """Header of DEVICE; the blob follows. :raises WireError: when it is over :data:`MAX_DEVICE_BYTES`."""
    if length_bytes > MAX_DEVICE_BYTES:
        raise WireError(f"device state of {length_bytes} bytes is over the limit of {MAX_DEVICE_BYTES}")
    return _encode(Kind.DEVICE, 0, length_bytes)


def runs_of(pages: Pages) -> Indices:
    """Rising page numbers to maximal runs of neighbours: shape (n, 2), first page and length."""
    return np.stack(runs(pages), axis=1).astype(np.uint32)


# decoding


class ByteSource(Protocol):
    """Where frames are read from."""

    def read_exactly(self, count: int) -> bytes | bytearray:
        """*count* bytes. :raises WireError: when the stream ends first."""
        ...


class Decoder:
    """Reads frames from a stream and checks each against the grammar's bounds.

    :param memory_pages: size of the guest's memory; 0 until HELLO told it, so that no page is accepted before.
    :param expected: the kinds that this side may receive at all.
    """

    def __init__(self, stream: ByteSource, expected: Sequence[Kind], memory_pages: int = 0) -> None:
        self._stream = stream
        self._expected = frozenset(expected)
        self.memory_pages = memory_pages

    def next(self) -> Frame:
        """The next frame; the caller reads its :attr:`Frame.payload_bytes` from the stream before calling again.

        :raises WireError: for everything that the grammar does not allow.
        """
        head = bytes(self._stream.read_exactly(HEADER_BYTES))
        number, version, zero, count, value, meta_bytes = _HEADER.unpack_from(head)
        try:
            kind = Kind(number)
        except ValueError:
            raise WireError(f"unknown frame kind {number}") from None
        if version != VERSION:
            raise WireError(f"peer speaks version {version} of the migration protocol, this side {VERSION}")
        if zero:
            raise WireError(f"{kind.name} frame with reserved bits set")
        if kind not in self._expected:
            raise WireError(f"{kind.name} frame in the wrong direction or state")
        self._check(kind, count, value, meta_bytes)
        meta = bytes(self._stream.read_exactly(meta_bytes)) if meta_bytes else b""
        if _CRC.unpack_from(head, _HEADER.size)[0] != zlib.crc32(meta, zlib.crc32(head[: _HEADER.size])):
            raise WireError(f"{kind.name} frame with a wrong checksum")
        if kind in _JSON_KINDS:
            return Frame(kind, count, value, fields=_decode_json(kind, meta))
        if kind in (Kind.PAGES, Kind.REQUEST, *_SQUEEZED):
            return Frame(kind, count, value, indices=self._decode_indices(kind, meta))
        if kind in _RUN_LISTS:
            return Frame(kind, count, value, runs=self._decode_runs(kind, meta, value))
        return Frame(kind, count, value)

    def _check(self, kind: Kind, count: int, value: int, meta_bytes: int) -> None:
        """Bounds on the fixed fields, before anything is read by them."""
        if kind in _JSON_KINDS:
            good = count == 0 and value == (MAGIC if kind is Kind.HELLO else 0) and 2 <= meta_bytes <= MAX_META_BYTES
        elif kind in TRANSFERS or kind in _META_ITEM_BYTES:
            limit = _MOST.get(kind, MAX_FRAME_PAGES)
            good = 1 <= count <= limit and meta_bytes == count * _META_ITEM_BYTES.get(kind, 0)
            if kind is Kind.RUN:
                good = good and value + count <= self.memory_pages
            elif kind in _SQUEEZED:
                good = good and 0 < value < count * PAGE_BYTES
            elif kind not in _RUN_LISTS:
                good = good and value == 0
            else:
                good = good and count <= value <= self.memory_pages
        elif kind is Kind.DEVICE:
            good = count == 0 and meta_bytes == 0 and value <= MAX_DEVICE_BYTES
        elif kind is Kind.LISTEN:
            good = count == 0 and meta_bytes == 0 and value <= self.memory_pages
        elif kind is Kind.ROUND_END:
            good = 1 <= count <= MAX_ROUND and meta_bytes == 0 and value <= self.memory_pages
        else:
            good = 1 <= count <= MAX_ROUND and meta_bytes == 0 and value == 0
        if not good:
            raise WireError(f"{kind.name} frame out of bounds: count {count}, value {value}, meta {meta_bytes} bytes")

    def _decode_indices(self, kind: Kind, meta: bytes) -> Indices:
        indices = np.frombuffer(meta, dtype="<u4").astype(np.uint32, copy=False)
        if int(indices[-1]) >= self.memory_pages or not bool((indices[1:] > indices[:-1]).all()):
            raise WireError(f"{kind.name} frame whose page numbers do not rise or lie beyond the guest's memory")
        return indices

    def _decode_runs(self, kind: Kind, meta: bytes, pages: int) -> Indices:
        zero_runs = np.frombuffer(meta, dtype="<u4").reshape(-1, 2)
        first = zero_runs[:, 0].astype(np.uint64)
        length = zero_runs[:, 1].astype(np.uint64)
        end = first + length
        good = bool((length > 0).all()) and bool((first[1:] >= end[:-1]).all()) and int(end[-1]) <= self.memory_pages
        if not good or int(length.sum()) != pages:
            raise WireError(f"{kind.name} frame whose runs overlap, are empty or lie beyond the guest's memory")
        return zero_runs.astype(np.uint32, copy=False)


def _decode_json(kind: Kind, meta: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(meta)
        if b"\\u" in meta:  # half a surrogate pair is no text: whoever printed or compared it would fail
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind.name} frame that is not JSON") from error
    if not isinstance(fields, dict):
        raise WireError(f"{kind.name} frame that is no object")
    return fields


TO_DESTINATION: Final = (
    Kind.HELLO,
    Kind.RUN,
    Kind.PAGES,
    Kind.ZERO,
    Kind.PACKED,
    Kind.DELTA,
    Kind.ROUND_END,
    Kind.FINAL,
    Kind.DEVICE,
    Kind.HANDOVER,
    Kind.CANCEL,
    Kind.ERROR,
    Kind.JOIN,
    Kind.ADVISE,
    Kind.MISSING,
    Kind.LISTEN,
)
TO_SOURCE: Final = (
    Kind.SKELETON,
    Kind.READY,
    Kind.TAKEN,
    Kind.REFUSED,
    Kind.DIGEST,
    Kind.ERROR,
    Kind.ARMED,
    Kind.COMPLETE,
    Kind.MISSING,
    Kind.LISTEN,
)
