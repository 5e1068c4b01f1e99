"""How well a guest's memory compresses, and how fast: a small sample of it, squeezed as a migration would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.clock import NS_PER_S, now_ns
from bench.memory.image import Words
from bench.memory.zero import zero_pages
from bench.migration.compression import Codec
from bench.migration.packing import looks_random

STRETCHES: Final = 16  # spread evenly over the memory
STRETCH_PAGES: Final = 64


@dataclass(frozen=True, slots=True)
class Compressibility:
    """What a sample showed.

    :param wire_share: bytes that would cross, of those of the pages; what does not become smaller crosses plain.
    :param bytes_per_s: of pages, by this processor at this time; 0 when there was nothing to compress.
    """

    wire_share: float
    bytes_per_s: int


def sample_compression(words: Words, codec: Codec, *, find_zeros: bool = True) -> Compressibility:
    """Compress up to 4 MiB of a memory that may be written meanwhile.

    :param words: of the whole memory, shape (pages, 512).
    :param find_zeros: whether zero pages cross otherwise and are no part of it.
    """
    plain = packed = 0
    begin_ns = now_ns()
    for first in _firsts(len(words)):
        rows = words[first : first + STRETCH_PAGES].copy()  # a compressor must not see two pages in one
        if find_zeros:
            rows = rows[~zero_pages(rows)]
        random = looks_random(rows)
        for group in (rows[random], rows[~random]):
            if len(group):
                plain += group.nbytes
                packed += min(group.nbytes, len(codec.compress(np.ascontiguousarray(group).data.cast("B"))))
    elapsed_ns = max(1, now_ns() - begin_ns)
    if not plain:
        return Compressibility(1.0, 0)
    return Compressibility(packed / plain, plain * NS_PER_S // elapsed_ns)


def _firsts(pages: int) -> list[int]:
    """Where the stretches begin: evenly spread, the last one at the end."""
    count = min(STRETCHES, -(-pages // STRETCH_PAGES))
    last = max(0, pages - STRETCH_PAGES)
    return sorted({number * last // max(1, count - 1) for number in range(count)}) if pages else []
