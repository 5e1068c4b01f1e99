from __future__ import annotations

import mmap
import os
import resource

import pytest

from bench.memory.own import own_memory

PAGES = 2048


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("owns", [False, True])
def test_after_a_fork_both_write_without_faults(owns: bool) -> None:
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(PAGES):
        memory[page * mmap.PAGESIZE] = 1 + page % 255
    untouched = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def written() -> bool:
        """Whether writing every page did what it should: fault for each, or hardly ever."""
        count = own_memory() if owns else PAGES
        before = faults()
        same = all(memory[page * mmap.PAGESIZE] == 1 + page % 255 for page in range(PAGES))
        for page in range(PAGES):
            memory[page * mmap.PAGESIZE] = 0
        came = faults() - before
        return same and count >= PAGES and (came < PAGES // 8 if owns else came >= PAGES)

    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)  # both have the pages when the parent writes
        os._exit(0 if written() else 1)
    good = written()
    os.write(go, b"!")
    _pid, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(go)
    assert good
    # The child is the only one who has them when the parent has copied all: it is spared the copying, not the faults.
    assert os.waitstatus_to_exitcode(status) == 0
    before = faults()
    untouched[0] = 1
    assert faults() > before  # what was not there has not been allocated
