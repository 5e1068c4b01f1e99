"""A hash of every page of guest memory, and one digest of them all: how a migration proves memory identical.

Each page has its xxh3_64 in a table of 8 bytes per page (0.2 % of memory), updated as pages arrive; the digest is
BLAKE2b over the table (little-endian, in page order), so two sides can compare 32 bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import xxhash

PAGE_BYTES = 4096
ZERO_PAGE_HASH = xxhash.xxh3_64_intdigest(bytes(PAGE_BYTES))
DIGEST_BYTES = 32

_BATCH = 64  # pages gathered at once: 256 KiB, which stays in the cache
_SLICES = [slice(begin, begin + PAGE_BYTES) for begin in range(0, _BATCH * PAGE_BYTES, PAGE_BYTES)]


class PageHashes:
    """Hashes of the pages of one memory; all pages are zero pages at first, as those of fresh memory are.

    :param page_count: pages in the memory.
    :ivar table: shape (page_count,), uint64.
    """

    def __init__(self, page_count: int) -> None:
        self.table = np.full(page_count, ZERO_PAGE_HASH, dtype=np.uint64)

    def update(self, memory: npt.NDArray[np.uint64] | npt.NDArray[np.uint8], pages: npt.NDArray[np.integer]) -> None:
        """Hash these pages again, from memory.

        :param memory: the whole memory, one row per page (:attr:`GuestMemory.words` or ``.pages``).
        :param pages: page numbers, any order.
        """
        words = memory.view(np.uint64)
        for begin in range(0, len(pages), _BATCH):
            batch = pages[begin : begin + _BATCH]
            self.table[batch] = _hash_rows(words[batch])

    def update_range(
        self, memory: npt.NDArray[np.uint64] | npt.NDArray[np.uint8], first: int = 0, count: int | None = None
    ) -> None:
        """Hash *count* pages from page *first* again (by default all), from memory; arguments as for :meth:`update`."""
        end = len(self.table) if count is None else first + count
        self.table[first:end] = _hash_rows(memory.view(np.uint64)[first:end])

    def put(self, pages: npt.NDArray[np.integer], rows: npt.NDArray[np.uint64]) -> None:
        """Note what these pages hold: *rows*, shape (pages, 512)."""
        self.table[pages] = _hash_rows(rows)

    def mark_zero(self, pages: npt.NDArray[np.integer]) -> None:
        """Note that these pages were just found or made zero, without reading them again."""
        self.table[pages] = ZERO_PAGE_HASH

    def digest(self) -> str:
        """BLAKE2b-256 of the table in hexadecimal."""
        return hashlib.blake2b(self.table.astype("<u8", copy=False).data, digest_size=DIGEST_BYTES).hexdigest()

    def difference(self, other: PageHashes) -> npt.NDArray[np.intp]:
        """The numbers of the pages whose hashes differ."""
        return np.flatnonzero(self.table != other.table)


def _hash_rows(rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One hash for each of these pages, which lie next to each other."""
    found = np.empty(len(rows), dtype=np.uint64)
    for begin in range(0, len(rows), _BATCH):
        batch = rows[begin : begin + _BATCH]
        slices = _SLICES[: len(batch)]
        # slices of a view: an array for each page would cost more than its hash
        hashes = map(xxhash.xxh3_64_intdigest, map(batch.data.cast("B").__getitem__, slices))
        found[begin : begin + len(batch)] = np.fromiter(hashes, dtype=np.uint64, count=len(batch))
    return found
