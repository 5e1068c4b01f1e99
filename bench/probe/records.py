"""Request and progress records: a buffer that is cheap to append to, and its file.

The layout is :data:`bench.records.RECORD`. A file is a plain ``.npy`` (no pickle) that any numpy reads.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np

from bench.errors import ProbeError
from bench.records import DUPLICATES_SHIFT, MAX_RECORDS, RECORD, StructuredArray, load_records

__all__ = ["MAX_RECORDS", "RecordBuffer", "load_records"]

_CHUNK_RECORDS: Final = 1 << 16
_SHIFT: Final = 16
_MASK: Final = _CHUNK_RECORDS - 1
_SIZE: Final = RECORD.itemsize
_RECORD_STRUCT: Final = struct.Struct("<QqqII")
_RECEIVED: Final = struct.Struct("<q")
_RECEIVED_AT: Final = 16
_STATUS: Final = struct.Struct("<I")
_STATUS_AT: Final = 28


class RecordBuffer:
    """Records in fixed chunks, so that growing never moves what is there and costs one chunk's allocation.

    Appending and answering are one ``struct`` call each (well below 1 us), unlike assignments to numpy scalars.
    A record's number is its ``seq``.

    :param limit: the most records, rounded up to whole chunks of 65536.
    """

    def __init__(self, limit: int = MAX_RECORDS) -> None:
        self._limit = limit
        self._chunks: list[bytearray] = [bytearray(_CHUNK_RECORDS * _SIZE)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, sent_ns: int, received_ns: int, size: int, status: int) -> int:
        """Add a record and return its number. :raises ProbeError: when the limit is reached."""
        number = self._count
        position = number & _MASK
        if not position and number:
            if number >= self._limit:
                raise ProbeError(
                    f"more than {self._limit} records of one flow", "use a longer interval or a lower rate"
                )
            self._chunks.append(bytearray(_CHUNK_RECORDS * _SIZE))
        _RECORD_STRUCT.pack_into(self._chunks[-1], position * _SIZE, number, sent_ns, received_ns, size, status)
        self._count = number + 1
        return number

    def answer(self, number: int, received_ns: int) -> None:
        """Note the first answer of record *number*."""
        _RECEIVED.pack_into(self._chunks[number >> _SHIFT], (number & _MASK) * _SIZE + _RECEIVED_AT, received_ns)

    def received_ns(self, number: int) -> int:
        """When record *number* was answered; 0 when it was not."""
        value: int = _RECEIVED.unpack_from(self._chunks[number >> _SHIFT], (number & _MASK) * _SIZE + _RECEIVED_AT)[0]
        return value

    def sent_ns(self, number: int) -> int:
        """When record *number* was sent."""
        value: int = _RECEIVED.unpack_from(self._chunks[number >> _SHIFT], (number & _MASK) * _SIZE + 8)[0]
        return value

    def flag(self, number: int, status: int) -> None:
        """Set the flags *status* of record *number*."""
        chunk, at = self._chunks[number >> _SHIFT], (number & _MASK) * _SIZE + _STATUS_AT
        _STATUS.pack_into(chunk, at, _STATUS.unpack_from(chunk, at)[0] | status)

    def duplicate(self, number: int) -> None:
        """Count one more copy of the answer of record *number*."""
        chunk, at = self._chunks[number >> _SHIFT], (number & _MASK) * _SIZE + _STATUS_AT
        status = _STATUS.unpack_from(chunk, at)[0]
        if status >> DUPLICATES_SHIFT < 0xFFFF:
            _STATUS.pack_into(chunk, at, status + (1 << DUPLICATES_SHIFT))

    def array(self) -> StructuredArray:
        """All records as one array of :data:`~bench.records.RECORD` (a copy)."""
        if self._count == 0:
            return np.zeros(0, RECORD)
        whole = [np.frombuffer(chunk, RECORD) for chunk in self._chunks]
        last = self._count - (len(whole) - 1) * _CHUNK_RECORDS
        whole[-1] = whole[-1][:last]
        return np.concatenate(whole)

    def save(self, path: Path) -> None:
        """Write the records to *path* (``.npy``)."""
        with path.open("wb") as file:
            np.save(file, self.array(), allow_pickle=False)
