"""Finding zero pages in a batch.

A few words of each page rule out most pages at once, usually the first of them; only the candidates left are read
whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SAMPLED_WORDS = (0, 511, 256, 131)
_BATCH = 64  # candidates gathered at once: 256 KiB, which stays in the cache


def zero_pages(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which pages are all zero.

    :param words: shape (pages, 512), for example a slice of :attr:`GuestMemory.words` or a gathered copy.
    :returns: shape (pages,).
    """
    maybe: npt.NDArray[np.bool_] = words[:, _SAMPLED_WORDS[0]] == 0
    for word in _SAMPLED_WORDS[1:]:
        if not maybe.any():
            return maybe
        maybe &= words[:, word] == 0
    candidates = np.flatnonzero(maybe)
    for begin in range(0, len(candidates), _BATCH):
        batch = candidates[begin : begin + _BATCH]
        first, last = int(batch[0]), int(batch[-1])
        rows = words[first : last + 1] if last - first + 1 == len(batch) else words[batch]
        maybe[batch] = rows.max(axis=1) == 0
    return maybe
