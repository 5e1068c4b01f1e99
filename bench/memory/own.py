"""Making a forked process's memory its own before it matters (``bench.host.forking``).

After a fork each first write to a page faults, in parent and child: to copy it, or to find that nobody else has it any
more. During a migration's pause such faults would be its clients' time: 2 ms of some 18.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Final

import numpy as np

_MADV_POPULATE_WRITE: Final = 23
# Documentation/admin-guide/mm/pagemap.rst: bit 63 says that a page is present, bit 61 that it is a file's or shared
_PRESENT: Final = np.uint64(1 << 63)
_ANONYMOUS: Final = np.uint64(1 << 63 | 1 << 61)
_ENTRY_BYTES: Final = 8
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def own_memory() -> int:
    """Write to every page of this process that is private and there, without changing it: later writes do not fault.
    Takes 4 to 16 ms for 20 MiB.

    :returns: the number of pages. Does nothing before Linux 5.14, which lacks MADV_POPULATE_WRITE.
    """
    page_bytes = mmap.PAGESIZE
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, permissions = line.split(maxsplit=2)[:2]
        if permissions == "rw-p":
            first, _, last = place.partition("-")
            ranges.append((int(first, 16), int(last, 16)))
    done = 0
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for begin, end in ranges:
            pagemap.seek(begin // page_bytes * _ENTRY_BYTES)
            entries = np.frombuffer(pagemap.read((end - begin) // page_bytes * _ENTRY_BYTES), dtype=np.uint64)
            there = np.zeros(len(entries) + 2, dtype=np.int8)
            there[1:-1] = entries & _ANONYMOUS == _PRESENT
            edges = np.flatnonzero(np.diff(there)).reshape(-1, 2) * page_bytes + begin
            for start, stop in edges.tolist():
                if _libc.madvise(start, stop - start, _MADV_POPULATE_WRITE) == 0:
                    done += (stop - start) // page_bytes
    return done
