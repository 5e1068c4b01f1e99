"""Memory that is populated beside."""

from __future__ import annotations

import os
import threading

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


def test_steps_down_reach_the_beginning() -> None:
    with GuestMemory.create(PAGES * PAGE_BYTES) as memory:
        at = populate_step(memory, PAGES, down=True)
        assert at == PAGES - STEP_PAGES
        assert allocated_pages(memory) == STEP_PAGES
        while at:
            at = populate_step(memory, at, down=True)
        assert allocated_pages(memory) == PAGES


def test_one_waits_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with GuestMemory.create(PAGES * PAGE_BYTES) as memory:
        goes_on = threading.Event()
        monkeypatch.setattr(memory, "populate", lambda _first, _count: goes_on.wait(60))
        populating = Populating(memory)
        populating.wait(1)  # returns, though nothing is populated
        goes_on.set()
        populating.wait()


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
