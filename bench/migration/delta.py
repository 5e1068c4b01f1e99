"""What changed in a page since it was last sent: XBZRLE's idea (Svard et al., VEE 2011), by whole words and in numpy.

The payload of a DELTA frame of n pages, integers little-endian::

    delta  = n * groups  *mask  *word
    groups = 64 bits     ; bit i (of byte i / 8, most significant first): group i of the page, 8 words, holds a change
    mask   = 8 bits      ; one for each bit set in groups, pages in order: which words of the group, first word highest
    word   = 64 bits     ; one for each bit set in a mask, in order: what the word holds now

An unchanged page costs 8 bytes, a write of 256 bytes about 270. The receiver applies a delta to the page in guest
memory, which holds what was last sent; :class:`DeltaCache` is the sender's bounded memory of that.

Pure: numpy only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bench.errors import WireError
from bench.memory.bitmap import Pages
from bench.memory.image import PAGE_BYTES, WORDS_PER_PAGE, Words

Changed = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.int64]

_WORDS_PER_GROUP: Final = 8
_GROUPS_PER_PAGE: Final = WORDS_PER_PAGE // _WORDS_PER_GROUP
HEAD_BYTES: Final = _GROUPS_PER_PAGE // 8  # what an unchanged page costs
_POPCOUNT: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1, dtype=np.int64)


def sizes(changed: Changed) -> Sizes:
    """Bytes that each page's delta takes. :param changed: which words differ, shape (pages, 512)."""
    groups = changed.reshape(len(changed), _GROUPS_PER_PAGE, _WORDS_PER_GROUP).any(axis=2)
    words = np.count_nonzero(changed, axis=1)
    taken: Sizes = (HEAD_BYTES + np.count_nonzero(groups, axis=1) + 8 * words).astype(np.int64)
    return taken


def encode(changed: Changed, new: Words) -> bytes:
    """The delta of these pages.

    :param changed: which words differ from what the receiver has, shape (pages, 512).
    :param new: the pages, same shape.
    """
    masks = np.packbits(changed, axis=1)
    groups = masks != 0
    words: Words = new[changed].astype("<u8")
    return b"".join((np.packbits(groups, axis=1).tobytes(), masks[groups].tobytes(), words.tobytes()))


def apply(payload: bytes | bytearray | memoryview, pages: Pages, memory: Words) -> None:
    """Apply a delta to pages in memory.

    :param pages: their numbers, inside of memory and different from each other.
    :param memory: shape (all pages, 512), C-contiguous.
    :raises WireError: when *payload* is no delta of so many pages; memory is unchanged then.
    """
    data = np.frombuffer(payload, dtype=np.uint8)
    head = len(pages) * HEAD_BYTES
    if len(data) < head:
        raise WireError(f"delta of {len(pages)} pages in {len(data)} bytes: it ends inside its table of groups")
    groups = np.flatnonzero(np.unpackbits(data[:head]))
    masks = data[head : head + len(groups)]
    words = int(_POPCOUNT[masks].sum())
    if len(masks) < len(groups) or len(data) != head + len(groups) + 8 * words or not bool(masks.all()):
        raise WireError(f"delta of {len(pages)} pages in {len(data)} bytes: its masks and its length disagree")
    group, word = np.nonzero(np.unpackbits(masks[:, np.newaxis], axis=1))
    page, group_of_page = np.divmod(groups[group], _GROUPS_PER_PAGE)
    places = pages[page] * WORDS_PER_PAGE + group_of_page * _WORDS_PER_GROUP + word
    memory.reshape(-1)[places] = np.frombuffer(payload, dtype="<u8", count=words, offset=head + len(groups))


class DeltaCache:
    """Copies of pages as they were last sent: direct-mapped (page modulo slots), as QEMU's page cache.

    A page that was sent in this round or the one before keeps its slot against others that map there (QEMU's
    CACHED_PAGE_LIFETIME); what round 1 put there, when nothing was known of what is hot, gives way to anything.

    :param limit_bytes: the most that copies may take; rounded down to whole pages, of which there is at least one.
    :param page_count: of the guest: never more slots than that.
    """

    KEPT_ROUNDS: Final = 2
    _NOBODY: Final = -1

    def __init__(self, limit_bytes: int, page_count: int) -> None:
        slots = max(1, min(limit_bytes // PAGE_BYTES, page_count))
        self.size_bytes = slots * PAGE_BYTES
        self._rows = np.empty((slots, WORDS_PER_PAGE), dtype=np.uint64)  # untouched slots take no memory
        self._page = np.full(slots, self._NOBODY, dtype=np.int64)
        self._sent_in = np.zeros(slots, dtype=np.int64)
        self.refused = 0

    def held(self, pages: Pages) -> Changed:
        """Which of these pages it holds; shape (pages,)."""
        held: Changed = self._page[pages % len(self._page)] == pages
        return held

    def rows(self, pages: Pages) -> Words:
        """The copies of pages that it holds."""
        return self._rows[pages % len(self._page)]

    def store(self, pages: Pages, rows: Words, round_number: int) -> None:
        """These pages were sent as *rows* in this round. Rising numbers; those without a free slot are refused."""
        slots = pages % len(self._page)
        # of pages that share a slot the first keeps it; np.unique names that
        _, first = np.unique(slots, return_index=True)
        chosen = np.zeros(len(pages), dtype=np.bool_)
        chosen[first] = True
        occupied = (self._page[slots] != self._NOBODY) & (self._page[slots] != pages)
        recent = (self._sent_in[slots] > 1) & (round_number - self._sent_in[slots] < self.KEPT_ROUNDS)
        if round_number == 1:
            recent |= True  # nothing is known yet: first come, first served
        chosen &= ~(occupied & recent)
        # A page that is held but lost its turn must not keep an old copy.
        self.forget(pages[~chosen])
        self.refused += len(pages) - int(np.count_nonzero(chosen))
        slots = slots[chosen]
        self._rows[slots] = rows[chosen]
        self._page[slots] = pages[chosen]
        self._sent_in[slots] = round_number

    def forget(self, pages: Pages) -> None:
        """These pages were sent otherwise (as zero pages, say): no copy of them is right any more."""
        slots = pages[self.held(pages)] % len(self._page)
        self._page[slots] = self._NOBODY
