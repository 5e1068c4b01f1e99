"""What a storage server acknowledged and could still lose: kept until a flush has put it on the server's disk. Pure.

A server that is killed takes with it what only it knew: of a qcow2 image the tables that say where new data lies. NFS
has the same problem and this answer to it: the client keeps what was written until a COMMIT, and sends it again to a
server that is not the one it was written to, which the server's write verifier tells (RFC 1813, 3.3.7 and 3.3.21).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

HIGH_BYTES: Final = 16 << 20  # from here on a flush is worth its while
FULL_BYTES: Final = 32 << 20  # from here on nothing more is written before it is over
HIGH_COUNT: Final = 1024


class Change(NamedTuple):
    """A write that was done, or with *data* None a range of zeroes."""

    offset: int
    length: int
    data: bytes | None


class Unflushed:
    """The changes of one disk, in the order in which they were done.

    One that covers exactly the range of an earlier one takes its place. All others stay, however they overlap: doing
    them again one after the other gives what is on the disk.
    """

    def __init__(self) -> None:
        self._changes: dict[tuple[int, int], tuple[int, Change]] = {}
        self._number = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[Change]:
        return iter([change for _number, change in self._changes.values()])

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, offset: int, length: int, data: memoryview | None) -> None:
        """A change is done. *data* is copied."""
        key = (offset, length)
        former = self._changes.pop(key, None)
        if former is not None:
            self._forget(former[1])
        self._number += 1
        self._changes[key] = (self._number, Change(offset, length, None if data is None else bytes(data)))
        self.bytes += 0 if data is None else length

    def mark(self) -> int:
        """To be taken when a flush is sent: it covers what was done by then, and nothing that is done later."""
        return self._number

    def flushed(self, mark: int) -> None:
        """The flush of that mark is done."""
        for key, (number, change) in list(self._changes.items()):
            if number > mark:
                break
            del self._changes[key]
            self._forget(change)

    def _forget(self, change: Change) -> None:
        self.bytes -= 0 if change.data is None else change.length

    @property
    def high(self) -> bool:
        """It is time for a flush."""
        return self.bytes >= HIGH_BYTES or len(self._changes) >= HIGH_COUNT

    @property
    def full(self) -> bool:
        """It is time to wait for it."""
        return self.bytes >= FULL_BYTES or len(self._changes) >= 4 * HIGH_COUNT
