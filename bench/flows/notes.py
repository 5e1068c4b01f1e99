"""What the ends of a flow note where no client agent keeps its records: in a guest, and in a server outside.

A guest moves and its notes do not: each process writes a file of its own (``*.flows`` in the run's events), and
:func:`read_notes` puts the parts together, by the flow and the number of what was sent. One note is one record of
:data:`NOTE`, in this order:

- a request that was answered, once: when it was sent and when the answer was whole;
- a datagram that was sent, with ``received_ns`` 0, and one that arrived, with the time that it says it was sent;
- a progress of a bulk flow, with equal times.

Stamps are CLOCK_MONOTONIC, which all processes of a run share.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import numpy as np

from bench.errors import ResultError
from bench.records import DUPLICATES_SHIFT, RECORD, STATUS_REORDERED, StructuredArray

SUFFIX: Final = ".flows"
MAX_NOTES_BYTES: Final = 2 << 30
NOTE: Final = np.dtype(
    [
        ("flow", "<u4"),
        ("status", "<u4"),
        ("seq", "<u8"),
        ("sent_ns", "<i8"),
        ("received_ns", "<i8"),
        ("bytes", "<u4"),
        ("zero", "<u4"),
    ]
)
_NOTE: Final = struct.Struct("<IIQqqII")


def flow_number(name: str) -> int:
    """By which notes and datagrams name a flow."""
    return zlib.crc32(name.encode())


class NoteFile:
    """Notes are kept until :meth:`flush`, which whoever owns the file calls when time does not matter.

    :param path: made when there is something to write; None: notes are forgotten.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._kept = bytearray()
        self._file: IO[bytes] | None = None

    def note(self, flow: int, seq: int, sent_ns: int, received_ns: int, size: int, status: int = 0) -> None:
        """Keep one; see the module."""
        if self.path is not None:
            self._kept += _NOTE.pack(flow, status, seq, sent_ns, received_ns, size, 0)

    def flush(self) -> None:
        """:raises OSError: when they cannot be written."""
        if not self._kept or self.path is None:
            return
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        self._file.write(self._kept)
        self._kept.clear()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self.flush()
        file, self._file = self._file, None
        if file is not None:
            file.close()


def load_notes(paths: Iterable[Path]) -> StructuredArray:
    """All notes of a run. :raises ResultError: a file cannot be read, or is too large."""
    parts: list[StructuredArray] = [np.zeros(0, NOTE), *map(_load, paths)]
    return np.concatenate(parts)


def _load(path: Path) -> StructuredArray:
    try:
        size = path.stat().st_size
        if size > MAX_NOTES_BYTES:
            raise ResultError(f"{path}: {size} bytes of notes are more than {MAX_NOTES_BYTES}")
        return np.fromfile(path, NOTE, count=size // NOTE.itemsize)  # the last may be cut by a kill
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from None


def records_of(notes: StructuredArray, name: str) -> StructuredArray:
    """The records of one flow, by number: what was sent with when it first arrived, further copies counted, and whether
    it came after a later one.
    """
    mine = notes[notes["flow"] == flow_number(name)]
    numbers, where = np.unique(mine["seq"], return_inverse=True)
    records = np.zeros(len(numbers), RECORD)
    records["seq"] = numbers
    if not len(numbers):
        return records
    np.maximum.at(records["sent_ns"], where, mine["sent_ns"])
    np.maximum.at(records["bytes"], where, mine["bytes"])
    np.bitwise_or.at(records["status"], where, mine["status"])
    arrived = mine["received_ns"] > 0
    first = np.full(len(numbers), np.iinfo(np.int64).max)
    np.minimum.at(first, where[arrived], mine["received_ns"][arrived])
    copies = np.bincount(where[arrived], minlength=len(numbers))
    records["received_ns"] = np.where(copies > 0, first, 0)
    records["status"] |= (np.clip(copies - 1, 0, 0xFFFF).astype(np.uint32)) << np.uint32(DUPLICATES_SHIFT)
    order = np.argsort(np.where(copies > 0, first, np.iinfo(np.int64).max), kind="stable")[: int((copies > 0).sum())]
    late = order < np.maximum.accumulate(order)
    records["status"][order[late]] |= STATUS_REORDERED
    return records


def arrived(sent: StructuredArray, received: StructuredArray) -> StructuredArray:
    """The records of a one-way flow: what its sender *sent* (numbers from 0 on), with what its receiver noted of it."""
    records = sent.copy()
    known = received[received["seq"] < len(records)]
    where = known["seq"].astype(np.int64)
    records["received_ns"][where] = known["received_ns"]
    records["status"][where] |= known["status"]
    return records
