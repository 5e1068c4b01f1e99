"""Guest memory: one memfd seen by every mapping alike."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bench.errors import GuestError
from bench.memory.image import PAGE_BYTES, GuestMemory


def test_two_mappings_are_one_memory() -> None:
    size = 8 * PAGE_BYTES
    with GuestMemory.create(size) as memory, GuestMemory.from_fd(os.dup(memory.fd), size) as other:
        memory.populate()
        memory.words[3, 5] = 77
        assert other.words[3, 5] == 77
        other.pages[7, PAGE_BYTES - 1] = 1
        assert memory.view[-1] == 1
        assert memory.page_count == other.page_count == 8


def test_populate_keeps_contents() -> None:
    with GuestMemory.create(4 * PAGE_BYTES) as memory:
        memory.words[1] = 5
        memory.populate()
        assert memory.words.sum() == 5 * 512


def test_a_reader_cannot_write() -> None:
    with GuestMemory.create(PAGE_BYTES) as memory:
        reader = GuestMemory.from_fd(os.dup(memory.fd), writable=False)
        with reader, pytest.raises(ValueError, match="read-only"):
            reader.words[0, 0] = 1


def test_the_size_is_sealed() -> None:
    with GuestMemory.create(2 * PAGE_BYTES) as memory, pytest.raises(PermissionError):
        os.ftruncate(memory.fd, PAGE_BYTES)


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(GuestError, match="multiple"):
        GuestMemory.create(size)


def test_a_descriptor_of_another_size_is_refused_and_closed() -> None:
    with GuestMemory.create(2 * PAGE_BYTES) as memory:
        duplicate = os.dup(memory.fd)
        with pytest.raises(GuestError, match="expected"):
            GuestMemory.from_fd(duplicate, PAGE_BYTES)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(duplicate)


def test_closing_twice_and_with_views_left() -> None:
    memory = GuestMemory.create(PAGE_BYTES)
    kept = memory.words
    kept[0, 0] = 3
    memory.close()
    memory.close()
    assert kept[0, 0] == 3
    assert isinstance(kept, np.ndarray)
