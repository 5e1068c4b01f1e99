"""Dirty trackers: which pages did the guest's processes write since the last look?

The engine looks from outside, through /proc/PID/pagemap of every process that writes guest memory (its *writers*: pid
and address of the mapping). Two methods, chosen by :func:`probe`:

``pagemap-scan``
    ioctl PAGEMAP_SCAN (Linux 6.7) over memory armed by :mod:`bench.memory.uffd`: finds the written pages and protects
    them again in one step, so that no write is lost between the two while the writers run.
``soft-dirty``
    pagemap bit 55 and clear_refs (CONFIG_MEM_SOFT_DIRTY). Reading and clearing are two steps, so a writer is held
    still for the few milliseconds between them (:mod:`bench.memory.hold`).

Order for a copier: ``collect`` first, copy afterwards. A page written during the copy is then dirty for the next round.
Only writes through a writer's own mapping count.

Source: Documentation/admin-guide/mm/pagemap.rst, soft-dirty.rst; linux/fs.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.errors import MemoryTrackingError
from bench.memory.bitmap import DirtyBitmap
from bench.memory.hold import held
from bench.memory.image import PAGE_BYTES, GuestMemory
from bench.memory.uffd import arm_write_tracking, iowr

Writer = tuple[int, int] | tuple[int, int, int]
"""pid, the address of its mapping of guest memory, and the first page that it may write (without one: any)."""

# linux/fs.h
_PAGEMAP_SCAN = iowr(ord("f"), 16, 96)
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1
_PAGE_IS_WPALLOWED = 1 << 0
_PAGE_IS_WRITTEN = 1 << 1
# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
# category_anyof_mask, return_mask
_SCAN_ARG = struct.Struct("=12Q")
_WALK_END = struct.Struct("=Q")
_WALK_END_OFFSET = 32
_REGIONS = 16384  # struct page_region: start, end, categories; 384 KiB per tracker

_SOFT_DIRTY_BIT = np.uint64(1 << 55)
_PAGEMAP_ENTRY_BYTES = 8
_PAGEMAP_BATCH = 65536  # 512 KiB at a time
_CLEAR_SOFT_DIRTY = b"4"

_REMEDY = "use Linux 6.7 or later, or one with CONFIG_MEM_SOFT_DIRTY, and run as root"


class DirtyTracker(Protocol):
    """What the engine needs of a tracker."""

    method: str

    def collect(self, bitmap: DirtyBitmap) -> int:
        """Add to *bitmap* what all writers wrote since the last collect, and begin anew.

        :returns: the number of different pages found, whether or not *bitmap* held them already.
        :raises MemoryTrackingError: when a writer is gone or does not track; the bitmap then misses writes.
        """
        ...

    def peek(self) -> int:
        """The number of different pages that ``collect`` would find now, without beginning anew."""
        ...

    def close(self) -> None: ...


class _WriterProcess:
    """The pagemap of one writer. Knows whether that very process still lives, by a pidfd."""

    def __init__(self, length: int, pid: int, base: int, first_page: int = 0) -> None:
        self.pid = pid
        self.base = base
        self.begin = base + first_page * PAGE_BYTES
        self.end = base + length
        self.pidfd = self.pagemap = -1
        try:
            self.pidfd = os.pidfd_open(pid)
            self.pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise MemoryTrackingError(
                f"writing process {pid} of the guest cannot be tracked: {error.strerror}", _REMEDY
            ) from error
        self.check_alive()

    def check_alive(self) -> None:
        """Needed after every look, because a dead process's pagemap reads as clean.

        :raises MemoryTrackingError: when it is dead.
        """
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(0):
            raise MemoryTrackingError(f"writing process {self.pid} of the guest died while its writes were tracked")

    def close(self) -> None:
        for fd in (self.pidfd, self.pagemap):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.pagemap = -1


class _Tracker:
    """What both methods share: their writers, and counting over all of them."""

    method = ""

    def __init__(self, writers: Sequence[Writer], length: int) -> None:
        """:param length: bytes of guest memory that each writer maps."""
        if length <= 0 or length % PAGE_BYTES:
            raise MemoryTrackingError(f"{length} bytes of memory to track: not a positive multiple of {PAGE_BYTES}")
        self._found = DirtyBitmap(length // PAGE_BYTES)
        self._writers: list[_WriterProcess] = []
        try:
            for writer in writers:
                self._writers.append(_WriterProcess(length, *writer))
        except MemoryTrackingError:
            self.close()
            raise

    def collect(self, bitmap: DirtyBitmap) -> int:
        self._found.clear()
        try:
            for writer in self._writers:
                self._look(writer, again=True)
        finally:
            bitmap.merge(self._found)  # what was found and protected again must not get lost, whatever failed
        return len(self._found)

    def peek(self) -> int:
        self._found.clear()
        for writer in self._writers:
            self._look(writer, again=False)
        return len(self._found)

    def _look(self, writer: _WriterProcess, again: bool) -> None:
        """Add to ``_found`` what one writer wrote; protect it again if *again*."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()


class PagemapScanTracker(_Tracker):
    """Tracks writers that called :func:`bench.memory.uffd.arm_write_tracking` before."""

    method = "pagemap-scan"

    def __init__(self, writers: Sequence[Writer], length: int) -> None:
        self._regions = np.empty((_REGIONS, 3), dtype=np.uint64)
        self._regions_address = int(self._regions.__array_interface__["data"][0])
        super().__init__(writers, length)
        try:
            for writer in self._writers:
                self._check_armed(writer)
        except MemoryTrackingError:
            self.close()
            raise

    def _look(self, writer: _WriterProcess, again: bool) -> None:
        flags = _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC if again else _PM_SCAN_CHECK_WPASYNC
        start = writer.begin
        while start < writer.end:
            count, start = self._scan(writer, flags, start, _PAGE_IS_WRITTEN)
            if count:
                addresses = self._regions[:count, :2].astype(np.int64)
                first = (addresses[:, 0] - writer.base) // PAGE_BYTES
                self._found.set_runs(first, (addresses[:, 1] - addresses[:, 0]) // PAGE_BYTES)
        self._check_armed(writer)

    def _check_armed(self, writer: _WriterProcess) -> None:
        """The mapping is there and armed; a dying process loses it before it counts as dead."""
        writer.check_alive()
        count, _ = self._scan(writer, 0, writer.begin, _PAGE_IS_WPALLOWED, max_pages=1)
        if count != 1:
            raise MemoryTrackingError(f"writing process {writer.pid} of the guest does not track its writes (any more)")

    def _scan(
        self, writer: _WriterProcess, flags: int, start: int, category: int, max_pages: int = 0
    ) -> tuple[int, int]:
        """One PAGEMAP_SCAN from *start*; *max_pages* 0 is no limit. :returns: (regions found, where the walk ended)."""
        argument = bytearray(
            _SCAN_ARG.pack(
                *(_SCAN_ARG.size, flags, start, writer.end, 0),
                *(self._regions_address, _REGIONS, max_pages),
                *(0, category, 0, category),
            )
        )
        try:
            count = fcntl.ioctl(writer.pagemap, _PAGEMAP_SCAN, argument)
        except OSError as error:
            writer.check_alive()
            what = "it does not track its writes" if error.errno == errno.EPERM else error.strerror
            raise MemoryTrackingError(f"scanning writing process {writer.pid} of the guest: {what}", _REMEDY) from error
        (walked,) = _WALK_END.unpack_from(argument, _WALK_END_OFFSET)
        return count, walked


class SoftDirtyTracker(_Tracker):
    """Tracks through soft-dirty bits; constructing it clears them, so tracking begins there.

    Clearing concerns the whole writer process, so no other program may use its soft-dirty bits meanwhile.

    :param hold: makes a context in which the process with a pid does not run.
    """

    method = "soft-dirty"

    def __init__(
        self,
        writers: Sequence[Writer],
        length: int,
        hold: Callable[[int], AbstractContextManager[None]] = held,
    ) -> None:
        self._hold = hold
        super().__init__(writers, length)
        try:
            for writer in self._writers:
                _clear_soft_dirty(writer)
        except MemoryTrackingError:
            self.close()
            raise

    def _look(self, writer: _WriterProcess, again: bool) -> None:
        with self._hold(writer.pid) if again else contextlib.nullcontext():
            for first, entries in _pagemap_entries(writer):
                self._found.flags[first : first + len(entries)] |= (entries & _SOFT_DIRTY_BIT) != 0
            if again:
                _clear_soft_dirty(writer)
        writer.check_alive()


def _clear_soft_dirty(writer: _WriterProcess) -> None:
    try:
        Path(f"/proc/{writer.pid}/clear_refs").write_bytes(_CLEAR_SOFT_DIRTY)
    except OSError as error:
        writer.check_alive()
        raise MemoryTrackingError(
            f"soft-dirty bits of writing process {writer.pid} of the guest: {error.strerror}", _REMEDY
        ) from error
    writer.check_alive()


def _pagemap_entries(writer: _WriterProcess) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """Batches of (first page, entries) of what one writer may write."""
    page_count = (writer.end - writer.base) // PAGE_BYTES
    base_page = writer.base // PAGE_BYTES
    first = (writer.begin - writer.base) // PAGE_BYTES
    while first < page_count:
        wanted = min(_PAGEMAP_BATCH, page_count - first)
        data = os.pread(writer.pagemap, wanted * _PAGEMAP_ENTRY_BYTES, (base_page + first) * _PAGEMAP_ENTRY_BYTES)
        entries = np.frombuffer(data, dtype=np.uint64, count=len(data) // _PAGEMAP_ENTRY_BYTES)
        if not len(entries):
            writer.check_alive()
            raise MemoryTrackingError(f"the pagemap of writing process {writer.pid} of the guest ended early")
        yield first, entries
        first += len(entries)


TRACKERS: dict[str, Callable[[Sequence[Writer], int], DirtyTracker]] = {
    PagemapScanTracker.method: PagemapScanTracker,
    SoftDirtyTracker.method: SoftDirtyTracker,
}


def open_tracker(method: str, writers: Sequence[Writer], length: int) -> DirtyTracker:
    """A tracker by its method's name.

    :param length: bytes of guest memory.
    :raises MemoryTrackingError: when the method is unknown or a writer cannot be tracked.
    """
    if method not in TRACKERS:
        raise MemoryTrackingError(f"dirty tracking method {method!r} is unknown", f"use one of {', '.join(TRACKERS)}")
    return TRACKERS[method](writers, length)


def probe() -> str:
    """The best method that works here, found by tracking one write of this process with each.

    :raises MemoryTrackingError: naming why each failed.
    """
    reasons = []
    for method in TRACKERS:
        problem = problem_of(method)
        if not problem:
            return method
        reasons.append(f"{method}: {problem}")
    raise MemoryTrackingError(f"no way to track dirty pages here ({'; '.join(reasons)})", _REMEDY)


def problem_of(method: str) -> str:
    """Why a method does not work here; empty when it does."""
    try:
        return "" if _finds_a_write(method) else "does not notice a write"
    except MemoryTrackingError as error:
        return error.message


def _finds_a_write(method: str) -> bool:
    with GuestMemory.create(4 * PAGE_BYTES, "probe") as memory:
        memory.populate()
        writers = [(os.getpid(), memory.base)]
        tracking = None
        tracker: DirtyTracker | None = None
        try:
            if method == PagemapScanTracker.method:
                tracking = arm_write_tracking(memory.base, memory.size_bytes)
                tracker = PagemapScanTracker(writers, memory.size_bytes)
            else:
                tracker = SoftDirtyTracker(writers, memory.size_bytes, hold=lambda _: contextlib.nullcontext())
            bitmap = DirtyBitmap(memory.page_count)
            clean = tracker.collect(bitmap)
            memory.words[2, 0] = 1
            tracker.collect(bitmap)
            return clean == 0 and bitmap.pages().tolist() == [2]
        finally:
            if tracker is not None:
                tracker.close()
            if tracking is not None:
                tracking.disarm()
