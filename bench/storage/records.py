"""What the guest writes to its disks, so that a reader of the image alone can prove what is there: pure.

**Log**, at the start of a disk: block 0 names it, records follow byte by byte from block 1 on::

    block 0   "MBJOURN1" area:u64                                  area: bytes of the whole log, block 0 included
    record    "REC1" crc:u32 sequence:u64 generation:u64 length:u32 payload       crc: of all that follows it

Sequence numbers count from 1 without a gap. The first bytes that are no valid record end the log.

**Workload**, on the rest: write number *n* (0, 1, ...) goes to block :meth:`Blocks.block_of` and fills it with one
stamp, repeated, that holds *n* and the generation it was written in. Each pass over all blocks touches every block
once, so which write a block must hold after *n* writes has a closed form.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 4096
LOG_HEADER: Final = struct.Struct("<8sQ")
LOG_MAGIC: Final = b"MBJOURN1"
_RECORD: Final = struct.Struct("<4sIQQI")
_RECORD_MAGIC: Final = b"REC1"
RECORD_BYTES: Final = _RECORD.size
_STAMP: Final = struct.Struct("<8sQQQ")
_STAMP_MAGIC: Final = b"MBDISKWR"
STAMP_BYTES: Final = _STAMP.size


class Record(NamedTuple):
    """One record of the log."""

    sequence: int
    generation: int
    payload: bytes


def encode_record(sequence: int, generation: int, payload: bytes) -> bytes:
    """A record's bytes."""
    head = _RECORD.pack(_RECORD_MAGIC, 0, sequence, generation, len(payload))
    crc = zlib.crc32(payload, zlib.crc32(head[8:]))
    return head[:4] + struct.pack("<I", crc) + head[8:] + payload


def decode_records(area: bytes | memoryview) -> Iterator[tuple[Record, int]]:
    """Each valid record from the start of *area* (block 1 of a log on), and where it ends."""
    at = 0
    while at + RECORD_BYTES <= len(area):
        magic, crc, sequence, generation, length = _RECORD.unpack_from(area, at)
        end = at + RECORD_BYTES + length
        if magic != _RECORD_MAGIC or end > len(area) or zlib.crc32(area[at + 8 : end]) != crc:
            return
        yield Record(sequence, generation, bytes(area[at + RECORD_BYTES : end])), end
        at = end


def log_header(area_bytes: int) -> bytes:
    """Block 0 of a log."""
    return LOG_HEADER.pack(LOG_MAGIC, area_bytes).ljust(BLOCK_BYTES, b"\0")


def log_area_bytes(block: bytes | memoryview) -> int:
    """What block 0 says; 0 when it begins no log."""
    magic, area_bytes = LOG_HEADER.unpack_from(block)
    return int(area_bytes) if magic == LOG_MAGIC else 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the workload writes.

    :param first_byte: of its part of the disk, and *count* blocks of *block_bytes* from there.
    :param stride: 1 is sequential; :func:`scattered` gives one for any order.
    """

    first_byte: int
    block_bytes: int
    count: int
    stride: int = 1

    def block_of(self, number: int) -> int:
        """The block that write *number* goes to."""
        return number * self.stride % self.count

    def offset_of(self, block: int) -> int:
        return self.first_byte + block * self.block_bytes

    def last_write_of(self, block: int, writes: int) -> int | None:
        """Which write a block must hold after the first *writes*; None when none has touched it."""
        first = block * pow(self.stride, -1, self.count) % self.count if self.count > 1 else 0
        if first >= writes:
            return None
        return first + (writes - 1 - first) // self.count * self.count


def scattered(count: int) -> int:
    """A stride that visits all of *count* blocks in an order without a pattern to the eye."""
    if count < 3:
        return 1
    stride = int(count * 0.6180339887) | 1
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride % count


def stamp(number: int, generation: int, block_bytes: int) -> bytes:
    """What write *number* fills its block with."""
    return _STAMP.pack(_STAMP_MAGIC, number, generation, number ^ generation) * (block_bytes // STAMP_BYTES)


class Stamped(NamedTuple):
    """What a block holds."""

    number: int
    generation: int


def read_stamp(block: bytes | memoryview) -> Stamped | None:
    """The stamp that fills *block*; None when it holds no stamp, or parts of several."""
    magic, number, generation, check = _STAMP.unpack_from(block)
    if magic != _STAMP_MAGIC or check != number ^ generation:
        return None
    first = bytes(block[:STAMP_BYTES])
    if bytes(block) != first * (len(block) // STAMP_BYTES):
        return None
    return Stamped(number, generation)
