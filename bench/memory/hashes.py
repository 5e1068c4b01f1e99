"""Hashes of guest memory, and one digest of them all: how a migration proves memory identical.

Each block of pages has its xxh3_64 in a table (8 bytes per page, 0.2 % of memory, or less), updated as pages arrive;
the digest is BLAKE2b over the table (little-endian, in page order), so two sides that hash in equal blocks can compare
32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

PAGE_BYTES = 4096
ZERO_PAGE_HASH = xxhash.xxh3_64_intdigest(bytes(PAGE_BYTES))
DIGEST_BYTES = 32
_BATCH = 1024  # blocks whose places are listed at once
_SLICES = 64  # of neighbours, listed once and for all
BLOCK_PAGES: Final = 4
"""16 KiB: a third less time than page by page, and a page that changed alone costs a downtime 1 us more."""


class PageHashes:
    """Hashes of the pages of one memory; all pages are zero pages at first, as those of fresh memory are.

    :param page_count: pages in the memory.
    :param block_pages: so many have a hash in common; the last block may be shorter.
    :ivar table: shape (blocks,), uint64.
    """

    def __init__(self, page_count: int, block_pages: int = 1) -> None:
        self.page_count = page_count
        self.block_pages = block_pages
        self._block_bytes = block_pages * PAGE_BYTES
        self._slices = [slice(at * self._block_bytes, (at + 1) * self._block_bytes) for at in range(_SLICES)]
        blocks, rest = divmod(page_count, block_pages)
        self.table = np.full(blocks + (rest > 0), _zero_hash(block_pages), dtype=np.uint64)
        if rest:
            self.table[-1] = _zero_hash(rest)

    def update(self, memory: npt.NDArray[np.uint64] | npt.NDArray[np.uint8], pages: npt.NDArray[np.integer]) -> None:
        """Hash these pages again, and those of their blocks, from memory.

        :param memory: the whole memory, one row per page (:attr:`GuestMemory.words` or ``.pages``).
        :param pages: page numbers, any order.
        """
        self._hash(memory, np.unique(pages // self.block_pages))

    def update_range(
        self, memory: npt.NDArray[np.uint64] | npt.NDArray[np.uint8], first: int = 0, count: int | None = None
    ) -> None:
        """Hash *count* pages from page *first* again (by default all), from memory; arguments as for :meth:`update`."""
        end = self.page_count if count is None else first + count
        view = memory.data.cast("B")
        end_block = -(-end // self.block_pages)
        for block in range(first // self.block_pages, end_block, len(self._slices)):
            number = min(len(self._slices), end_block - block)
            part = view[block * self._block_bytes : (block + number) * self._block_bytes]
            self._note(slice(block, block + number), map(part.__getitem__, self._slices[:number]), number)

    def _hash(self, memory: npt.NDArray[np.uint64] | npt.NDArray[np.uint8], blocks: npt.NDArray[np.integer]) -> None:
        view = memory.data.cast("B")
        for first in range(0, len(blocks), _BATCH):
            batch = blocks[first : first + _BATCH]
            begins = batch.astype(np.int64) * self._block_bytes
            # no object of numpy's for each block, and no loop of Python's: either would cost as much as a page's hash
            slices = map(slice, begins.tolist(), (begins + self._block_bytes).tolist())
            self._note(batch, map(view.__getitem__, slices), len(batch))

    def _note(self, blocks: npt.NDArray[np.integer] | slice, contents: Iterable[Any], count: int) -> None:
        """These *count* blocks hold *contents*, buffers."""
        self.table[blocks] = np.fromiter(map(xxhash.xxh3_64_intdigest, contents), dtype=np.uint64, count=count)

    def put(self, pages: npt.NDArray[np.integer], rows: npt.NDArray[np.uint64]) -> None:
        """Note what these pages hold: *rows*, shape (pages, 512). Only where each page has its hash."""
        self._require_single()
        self._note(pages, rows, len(rows))

    def mark_zero(self, pages: npt.NDArray[np.integer]) -> None:
        """Note that these pages are zero, without reading them. Only where each page has its hash."""
        self._require_single()
        self.table[pages] = ZERO_PAGE_HASH

    def _require_single(self) -> None:
        if self.block_pages != 1:
            raise ValueError(f"pages are hashed in blocks of {self.block_pages}: they can be read from memory only")

    def digest(self) -> str:
        """BLAKE2b-256 of the table in hexadecimal."""
        return hashlib.blake2b(self.table.astype("<u8", copy=False).data, digest_size=DIGEST_BYTES).hexdigest()

    def difference(self, other: PageHashes) -> npt.NDArray[np.intp]:
        """The numbers of the blocks, those of the pages where each has its hash, whose hashes differ."""
        return np.flatnonzero(self.table != other.table)


def _zero_hash(pages: int) -> int:
    return int(xxhash.xxh3_64_intdigest(bytes(pages * PAGE_BYTES)))
