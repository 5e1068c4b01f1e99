"""What guest memory holds at the start: a seeded mix of zero, text and random pages, or an image file.

The kinds matter to a migration: zero pages are not sent as pages, text compresses about 3:1 (zstd, levels 1 to 3, over
a stream; about 2:1 for one page alone), random pages not at all.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.errors import GuestError, ScenarioError

PAGE_BYTES = 4096
WORDS_PER_PAGE = PAGE_BYTES // 8

ZERO, TEXT, RANDOM = 0, 1, 2
KINDS = ("zero", "text", "random")

_BLOCK_PAGES = 256  # 1 MiB at a time: what is generated is still in the cache when it is copied
_READ_BYTES = 4 << 20

# Text is made of cells of 16 bytes, each holding whole words. Fewer cells would compress better than real text does.
_CELL_BYTES = 16
_CELLS = 16384
_WORDS = """
a i in of to is on it as at be we by an or no if so up the and for are but not you all any can had her was one our
out day get has him his how man new now old see two way who did its let say she too use that with have this will
your from they know want been good much some time very when come here just like long make many more only over such
take than them well were what call page send wait work lost link host copy moved state where which their there would
about could other after first never these think water right small sound still three under write bytes round guest
cable network machine switch memory through between another because without address traffic station evening morning
letters question several
"""
_VOCABULARY = tuple(_WORDS.split())


def page_kinds(page_count: int, shares: Mapping[str, float], seed: int) -> npt.NDArray[np.uint8]:
    """The kind of every page (``ZERO``, ``TEXT``, ``RANDOM``), in the stated shares to within one page, interleaved.

    :raises GuestError: when a share is unknown or negative, or they do not sum to 1.
    """
    values = [float(shares.get(kind, 0.0)) for kind in KINDS]
    if set(shares) - set(KINDS) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise GuestError(f"content {dict(shares)}: shares of zero, text and random must sum to 1")
    ends = [round(page_count * sum(values[: index + 1])) for index in range(len(KINDS))]
    kinds = np.empty(page_count, dtype=np.uint8)
    begin = 0
    for kind, end in enumerate(ends):
        kinds[begin:end] = kind
        begin = end
    np.random.Generator(np.random.SFC64(seed)).shuffle(kinds)
    return kinds


def fill_pages(words: npt.NDArray[np.uint64], shares: Mapping[str, float], seed: int) -> npt.NDArray[np.uint8]:
    """Fill memory with the stated mix; the same arguments give the same bytes.

    :param words: shape (pages, 512).
    :param shares: of "zero", "text" and "random"; they sum to 1.
    :returns: the kind of every page.
    :raises GuestError: when the shares are wrong.
    """
    count = len(words)
    kinds = page_kinds(count, shares, seed)
    bits = np.random.SFC64([seed, 1])
    cells = _cells()
    cells_per_page = PAGE_BYTES // _CELL_BYTES
    text = np.empty(_BLOCK_PAGES * cells_per_page, dtype=cells.dtype)
    for begin in range(0, count, _BLOCK_PAGES):
        block = words[begin : begin + _BLOCK_PAGES]
        block_kinds = kinds[begin : begin + _BLOCK_PAGES]
        block[block_kinds == ZERO] = 0
        chosen = np.flatnonzero(block_kinds == TEXT)
        if len(chosen):
            picks = bits.random_raw(len(chosen) * cells_per_page // 4).view(np.uint16) % _CELLS
            made = text[: len(picks)]
            np.take(cells, picks, out=made, mode="clip")
            block[chosen] = made.view(np.uint64).reshape(len(chosen), WORDS_PER_PAGE)
        chosen = np.flatnonzero(block_kinds == RANDOM)
        if len(chosen):
            block[chosen] = bits.random_raw(len(chosen) * WORDS_PER_PAGE).reshape(len(chosen), WORDS_PER_PAGE)
    return kinds


@functools.lru_cache(maxsize=1)
def _cells() -> npt.NDArray[np.void]:
    """The table of 16-byte cells of text, each of whole words and the blanks after them."""
    picker = random.Random(1)
    by_length: dict[int, list[str]] = {}
    for word in _VOCABULARY:
        by_length.setdefault(len(word), []).append(word)
    cells = []
    for _ in range(_CELLS):
        cell = ""
        while (room := _CELL_BYTES - len(cell)) > 0:
            word = picker.choice(_VOCABULARY)
            if len(word) + 1 != room and len(word) + 3 > room:  # does not fit, or would leave no room for a word
                word = picker.choice(by_length.get(room - 1, ["a"]))
            cell += word + " "
        cells.append(cell if picker.random() > 0.12 else cell[:-1] + "\n")
    return np.frombuffer("".join(cells).encode("ascii"), dtype=f"V{_CELL_BYTES}")


def check_image(path: Path, memory_bytes: int, where: str = "scenario", key: str = "guest.image") -> int:
    """Whether a file can be a guest's memory image; for the runner, before anything is started.

    Rule: a readable regular file of 1 byte up to *memory_bytes*, of any length between. It is placed at address 0;
    memory after its end is zero. (The guest's key-value store is formatted over the end of memory afterwards.)

    :returns: its size in bytes.
    :raises ScenarioError: naming *where* and *key* when it cannot.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ScenarioError(where, key, str(path), "a regular file")
            file.read(1)  # a file may open and still not be readable
    except OSError as error:
        raise ScenarioError(where, key, str(path), f"a readable file ({error.strerror})") from error
    if not 1 <= info.st_size <= memory_bytes:
        allowed = f"a file of 1 to {memory_bytes} bytes (guest.memory); this one has {info.st_size}"
        raise ScenarioError(where, key, str(path), allowed)
    return info.st_size


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO without a writer would block the open for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def load_image(memory: memoryview, path: Path) -> int:
    """Place an image file at the start of memory and zero the rest; the rule is :func:`check_image`'s.

    :returns: the bytes loaded.
    :raises GuestError: when the file breaks the rule or changes while it is read.
    """
    try:
        size = check_image(path, len(memory))
    except ScenarioError as error:
        raise GuestError(f"guest image {path}: {error.allowed} is needed") from error
    done = 0
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            while done < size:
                count = file.readinto(memory[done : min(size, done + _READ_BYTES)])
                if not count:
                    raise OSError(errno.EIO, f"it became shorter than {size} bytes while it was read")
                done += count
    except OSError as error:
        raise GuestError(f"guest image {path}: reading stopped at byte {done}: {error.strerror}") from error
    np.frombuffer(memory, dtype=np.uint8)[size:] = 0
    return size
