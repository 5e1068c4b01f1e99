"""A local disk's way to another hypervisor: copied while the guest writes, in rounds, as memory is.

A bitmap knows the blocks that the copy does not have. A round takes what is marked at its beginning and copies it; a
guest's write marks its blocks when it completes, which is late enough for a copy that read them before to be made
again, and never too early. When a round leaves no more than :data:`CLOSE_BYTES` the mirror is *close*: it goes on
copying what is written, and the rest crosses while the guest is paused (:meth:`Mirror.finish`).

Blocks are small, as a write of a few KiB makes a whole one cross again: with 512 KiB each, 1.4 MiB/s of random writes
kept a link of 50 Mbit/s full for ever. Neighbours that are marked cross together, up to :data:`REQUEST_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bench.storage.export import FLUSH, READ, WRITE, ZERO, Export, Request

LEAST_BLOCK_BYTES: Final = 64 << 10  # as QEMU's mirror
MOST_BLOCKS: Final = 1 << 17  # of a disk: what the bitmap takes, and the look through it at the end of a round
REQUEST_BYTES: Final = 512 << 10
PARALLEL: Final = 12
CLOSE_BYTES: Final = 4 << 20


def block_bytes(size_bytes: int) -> int:
    """How large the blocks of a disk are."""
    block = LEAST_BLOCK_BYTES
    while block < REQUEST_BYTES and size_bytes > block * MOST_BLOCKS:
        block *= 2
    return block


class Mirror:
    """:param source, target: the disk and its copy-to-be, both open.

    :ivar error: an errno once copying has failed; the mirror is of no use then.
    """

    def __init__(self, source: Export, target: Export, size_bytes: int) -> None:
        self._source = source
        self._target = target
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes(size_bytes)
        self._blocks = -(-size_bytes // self._block_bytes)
        self._dirty = bytearray(b"\1" * self._blocks)
        self._dirty_count = self._blocks
        self._round: list[int] = list(range(self._blocks - 1, -1, -1))
        self._busy: set[int] = set()
        self._free = [memoryview(bytearray(REQUEST_BYTES)) for _ in range(PARALLEL)]
        self._zero = bytes(REQUEST_BYTES)
        self._finish: Callable[[int], None] | None = None
        self._flushing = False
        self.rounds: list[dict[str, int]] = []
        self.copied_bytes = 0
        self.zero_bytes = 0
        self.arrived_bytes = 0
        self.error = 0
        self.close = False
        self._sent_in_round = 0

    def begin(self) -> None:
        self._pump()

    def wrote(self, offset: int, length: int) -> None:
        """A write of the guest has completed."""
        size = self._block_bytes
        for block in range(offset // size, -(-(offset + length) // size)):
            if not self._dirty[block]:
                self._dirty[block] = 1
                self._dirty_count += 1
        self._pump()

    def finish(self, done: Callable[[int], None]) -> None:
        """The guest is paused and has no request under way: copy the rest, put it on the target's disk, then *done*
        with 0 or an errno.
        """
        self._finish = done
        self._pump()

    def status(self) -> dict[str, Any]:
        return {
            "rounds": list(self.rounds),
            "dirty_bytes": self._dirty_bytes,
            "copied_bytes": self.copied_bytes,
            "zero_bytes": self.zero_bytes,
            "arrived_bytes": self.arrived_bytes,
            "close": self.close,
            "error": self.error,
        }

    @property
    def _dirty_bytes(self) -> int:
        return self._dirty_count * self._block_bytes

    # copying

    def _pump(self) -> None:
        while self._free and not self.error:
            block = self._next()
            if block is None:
                break
            self._copy(block, self._neighbours(block))
        if self._finish is not None and not self._busy and (self.error or not self._dirty_count):
            self._end()

    def _next(self) -> int | None:
        """The next block to copy. One that is under way is not begun again: two copies could cross."""
        postponed = []
        found = None
        while found is None:
            while self._round:
                block = self._round.pop()
                if block in self._busy:
                    postponed.append(block)
                elif self._dirty[block]:
                    found = block
                    break
            if found is not None or postponed or self._busy:
                break
            self._end_round()
            if not self._round:
                break
        self._round += postponed
        return found

    def _neighbours(self, first: int) -> int:
        """How many blocks of the round from *first* on can cross in one request; those after it are taken off."""
        count = 1
        while (
            self._round
            and self._round[-1] == first + count
            and (count + 1) * self._block_bytes <= REQUEST_BYTES
            and self._dirty[first + count]
            and first + count not in self._busy
        ):
            self._round.pop()
            count += 1
        return count

    def _end_round(self) -> None:
        """Everything of the round has arrived: what was written meanwhile is the next one."""
        if self._sent_in_round:
            self.rounds.append({"bytes": self._sent_in_round, "dirty_bytes_after": self._dirty_bytes})
            del self.rounds[:-1000]
            self._sent_in_round = 0
        self.close = self.close or self._dirty_bytes <= CLOSE_BYTES
        self._round = [block for block in range(self._blocks - 1, -1, -1) if self._dirty[block]]

    def _copy(self, first: int, count: int) -> None:
        blocks = range(first, first + count)
        self._busy.update(blocks)
        for block in blocks:
            self._dirty[block] = 0
        self._dirty_count -= count
        offset = first * self._block_bytes
        length = min(count * self._block_bytes, self._size_bytes - offset)
        self._sent_in_round += length
        room = self._free.pop()
        data = room[:length]

        def written(error: int) -> None:
            self._free.append(room)
            self._busy.difference_update(blocks)
            self.arrived_bytes += length
            self.error = self.error or error
            if not self._busy and not self._dirty_count:
                self.close = True
            self._pump()

        def read(error: int) -> None:
            if error:
                written(error)
            elif data == self._zero[:length]:
                self.zero_bytes += length
                self._target.submit(Request(ZERO, offset, length, None, False, written))
            else:
                self.copied_bytes += length
                self._target.submit(Request(WRITE, offset, length, data, False, written))

        self._source.submit(Request(READ, offset, length, data, False, read))

    def _end(self) -> None:
        if self._flushing:
            return
        self._flushing = True
        done = self._finish
        assert done is not None
        if self.error:
            done(self.error)
        else:
            self._target.submit(Request(FLUSH, 0, 0, None, False, done))
