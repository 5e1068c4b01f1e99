"""Memory that is populated beside."""

from __future__ import annotations

import os

import pytest

from bench.errors import GuestError
from bench.memory.image import PAGE_BYTES, GuestMemory
from bench.memory.populate import STEP_PAGES, Populating, populate_step

PAGES = 2 * STEP_PAGES + 3


def allocated_pages(memory: GuestMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512 // PAGE_BYTES


def test_all_pages_are_allocated_and_contents_stay() -> None:
    with GuestMemory.create(PAGES * PAGE_BYTES) as memory:
        memory.words[7] = 7
        populating = Populating(memory)
        memory.words[PAGES - 1] = 9
        populating.wait()
        assert allocated_pages(memory) == PAGES
        assert (memory.words[7] == 7).all()
        assert (memory.words[PAGES - 1] == 9).all()
        assert not memory.words[8].any()
        populating.stop()
        populating.stop()


def test_steps_reach_the_end() -> None:
    with GuestMemory.create(PAGES * PAGE_BYTES) as memory:
        first, steps = 0, 0
        while first < PAGES:
            first = populate_step(memory, first)
            steps += 1
        assert (first, steps) == (PAGES, 3)
        assert allocated_pages(memory) == PAGES


def test_nothing_is_populated_after_stop() -> None:
    with GuestMemory.create(64 * STEP_PAGES * PAGE_BYTES) as memory:
        populating = Populating(memory)
        populating.stop()
        there = allocated_pages(memory)
        assert there % STEP_PAGES == 0
        memory.discard(0, memory.page_count)
        assert allocated_pages(memory) == 0


def test_a_machine_without_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with GuestMemory.create(PAGES * PAGE_BYTES) as memory:

        def refuse(_first: int, _count: int) -> None:
            raise GuestError("no memory")

        monkeypatch.setattr(memory, "populate", refuse)
        populating = Populating(memory)
        with pytest.raises(GuestError, match="no memory"):
            populating.wait()
        with pytest.raises(GuestError, match="no memory"):
            populating.check()
