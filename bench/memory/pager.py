"""Guest memory that is not there yet: faults of the guest's processes, answered from outside by userfaultfd.

Every process that writes guest memory calls :func:`expect_pages` on its own mapping of the memfd; from then on its
access to a page that the memfd does not hold waits. The descriptors go to the migration engine, whose :class:`Pager`
reads the faults and installs pages through them: UFFDIO_COPY puts a page into the memfd and maps it in the process
that owns the descriptor, in one step, and UFFDIO_WAKE lets the others look again.

Nothing is ever overwritten: the kernel refuses to copy to a page that exists (EEXIST), and the pager installs only
pages that it still misses. A page that it does not miss and the memfd does not hold is a zero page (UFFDIO_ZEROPAGE).
A process that dies meanwhile (ESRCH) ends it.

The waiting processes keep a reference to their descriptors, so that they go on waiting when the engine dies: otherwise
the kernel would let them go on with zeros in place of what never came.

Sources: ioctl_userfaultfd(2), linux/userfaultfd.h. What this kernel does was measured: PLATFORM.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bench.clock import now_ns
from bench.errors import MemoryTrackingError
from bench.memory.bitmap import DirtyBitmap, Pages, runs
from bench.memory.hashes import PageHashes
from bench.memory.image import PAGE_BYTES, GuestMemory, Words
from bench.memory.uffd import (
    UFFD_API,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    ior,
    iowr,
    open_userfaultfd,
)

UFFDIO_WAKE: Final = ior(UFFD_API, 0x02, 16)
UFFDIO_COPY: Final = iowr(UFFD_API, 0x03, 40)
UFFDIO_ZEROPAGE: Final = iowr(UFFD_API, 0x04, 32)
UFFDIO_REGISTER_MODE_MISSING: Final = 1 << 0
UFFD_FEATURE_MISSING_SHMEM: Final = 1 << 5
UFFD_EVENT_PAGEFAULT: Final = 0x12

_REGISTER: Final = struct.Struct("=QQQQ")  # start, len, mode, ioctls
_RANGE: Final = struct.Struct("=QQ")  # start, len
_COPY: Final = struct.Struct("=QQQQq")  # dst, src, len, mode, copied
_ZEROPAGE: Final = struct.Struct("=QQQq")  # start, len, mode, zeroed
_DONE: Final = struct.Struct("=q")
_MESSAGE: Final = struct.Struct("=BxHIQQ8x")  # event, reserved, flags, address, thread
_MESSAGES: Final = 64  # read at once

_REMEDY: Final = "use Linux 5.7 or later and run as root (CAP_SYS_PTRACE)"


class ExpectedPages:
    """The registration of one mapping of this process; ends with :meth:`end`.

    :ivar fd: the userfaultfd, to be passed to the engine.
    """

    def __init__(self, fd: int, address: int, length: int) -> None:
        self.fd = fd
        self._range = (address, length)

    def end(self) -> None:
        """Every page is there: accesses are as ever again. Idempotent."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            fcntl.ioctl(fd, UFFDIO_UNREGISTER, _RANGE.pack(*self._range))
        finally:
            os.close(fd)


def expect_pages(address: int, length: int) -> ExpectedPages:
    """From now on this process waits when it touches a page of the range that the memfd does not hold.

    :raises MemoryTrackingError: with the remedy, when the kernel refuses.
    """
    fd = open_userfaultfd(UFFD_FEATURE_MISSING_SHMEM)
    try:
        fcntl.ioctl(fd, UFFDIO_REGISTER, _REGISTER.pack(address, length, UFFDIO_REGISTER_MODE_MISSING, 0))
    except OSError as error:
        os.close(fd)
        what = "another userfaultfd has it already" if error.errno == errno.EBUSY else error.strerror
        raise MemoryTrackingError(f"waiting for {length} bytes of guest memory: {what}", _REMEDY) from error
    return ExpectedPages(fd, address, length)


class FaultTimes:
    """How long faults took: every one of them, and a histogram.

    From when the engine had read the fault until it had installed the page; the kernel's own part, some 10 us, is not
    seen.
    """

    def __init__(self) -> None:
        self._samples = array("q")

    def add(self, duration_ns: int) -> None:
        self._samples.append(duration_ns)

    def to_json(self) -> dict[str, Any]:
        """{count, p50_ns, p99_ns, max_ns, histogram}; the histogram is [upper bound in ns, faults] with bounds that
        double from 16.384 us, those without faults left out. Without faults the numbers are None.
        """
        samples = np.frombuffer(self._samples, dtype=np.int64) if self._samples else np.empty(0, dtype=np.int64)
        if not len(samples):
            return {"count": 0, "p50_ns": None, "p99_ns": None, "max_ns": None, "histogram": []}
        exponents = np.maximum(14, np.ceil(np.log2(np.maximum(samples, 1)))).astype(np.int64)
        values, counts = np.unique(exponents, return_counts=True)
        return {
            "count": len(samples),
            "p50_ns": int(np.percentile(samples, 50)),
            "p99_ns": int(np.percentile(samples, 99)),
            "max_ns": int(samples.max()),
            "histogram": [[1 << int(value), int(count)] for value, count in zip(values, counts, strict=True)],
        }


class Pager:
    """Answers the faults of one guest. Not thread-safe.

    :param regions: descriptor and address of the whole memory for each writing process; the pager owns the
        descriptors.
    :param memory: this process's mapping, which nobody waits for.
    :param hashes: updated with what is installed; None when nothing is verified. A page is hashed before the guest can
        have written to it.
    :ivar missing: pages that have not come yet.
    :ivar waiting: page -> when its fault was read, for the faults that wait.
    :ivar duplicates: pages that came although they were not missing; they were dropped.
    """

    def __init__(self, regions: Sequence[tuple[int, int]], memory: GuestMemory, hashes: PageHashes | None) -> None:
        self.missing = DirtyBitmap(memory.page_count)
        self.waiting: dict[int, int] = {}
        self.times = FaultTimes()
        self.faults = 0
        self.zero_faults = 0
        self.duplicates = 0
        self._regions = list(regions)
        self._memory = memory
        self._hashes = hashes
        self._left = 0

    @property
    def filenos(self) -> list[int]:
        """Readable when there are faults."""
        return [fd for fd, _base in self._regions]

    @property
    def left(self) -> int:
        """How many pages are missing."""
        return self._left

    def close(self) -> None:
        """Close the descriptors; processes that wait go on waiting. Idempotent."""
        for fd, _base in self._regions:
            os.close(fd)
        self._regions = []

    def forget(self, first: int, count: int) -> None:
        """These pages are missing from now on: what was placed there is dropped.

        :raises GuestError: when the kernel cannot.
        """
        self._memory.discard(first, count)
        self._left += count - int(np.count_nonzero(self.missing.flags[first : first + count]))
        self.missing.set_range(first, count)

    # faults

    def read_faults(self) -> list[int]:
        """Take in what has happened; answer what can be answered here.

        :returns: the missing pages that nobody waited for before: ask the source for these.
        """
        new: list[int] = []
        for index, (fd, base) in enumerate(self._regions):
            with contextlib.suppress(BlockingIOError):
                data = os.read(fd, _MESSAGE.size * _MESSAGES)
                at_ns = now_ns()
                for event, _short, _word, _flags, address in _MESSAGE.iter_unpack(data):
                    if event == UFFD_EVENT_PAGEFAULT:
                        self._fault(index, (address - base) // PAGE_BYTES, at_ns, new)
        return new

    def _fault(self, index: int, page: int, at_ns: int, new: list[int]) -> None:
        self.faults += 1
        if self.missing.flags[page]:
            if page not in self.waiting:
                self.waiting[page] = at_ns
                new.append(page)
            return
        # It came between the fault and now, or it is a page that never held anything.
        self.zero_faults += self._zero(index, page, 1)
        self._wake(page, 1, but=-1)

    # pages

    def install(self, pages: Pages, rows: Words) -> None:
        """Put pages where the guest sees them.

        :param pages: rising numbers; *rows* their contents, shape (pages, 512), contiguous.
        :raises MemoryTrackingError: when the guest is gone.
        """
        wanted = self.missing.flags[pages]
        if not wanted.all():
            self.duplicates += int(np.count_nonzero(~wanted))
            pages = pages[wanted]
            rows = np.ascontiguousarray(rows[wanted])
        if self._hashes is not None:
            self._hashes.put(pages, rows)
        address = int(rows.__array_interface__["data"][0])
        for first, count in zip(*(part.tolist() for part in runs(pages)), strict=True):
            self._copy(first, address, count)
            address += count * PAGE_BYTES
        self._arrived(pages)

    def install_zero(self, first: int, count: int) -> None:
        """Make a run of missing pages zero pages. :raises MemoryTrackingError: when the guest is gone."""
        pages = np.flatnonzero(self.missing.flags[first : first + count]) + first
        self.duplicates += count - len(pages)
        if self._hashes is not None:
            self._hashes.mark_zero(pages)
        for begin, length in zip(*(part.tolist() for part in runs(pages)), strict=True):
            self._zero(0, begin, length)
        self._arrived(pages)

    def _arrived(self, pages: Pages) -> None:
        """After the kernel has them: whoever is known to wait looks again.

        A fault that was not read yet finds its page not missing any more, and is woken then.
        """
        self.missing.flags[pages] = False
        self._left -= len(pages)
        if self.waiting:
            for page in self.waiting.keys() & set(pages.tolist()):
                self._wake(page, 1, but=0)
                self.times.add(now_ns() - self.waiting.pop(page))

    def _copy(self, first: int, address: int, count: int) -> None:
        """UFFDIO_COPY through the first region, however often the kernel stops on the way."""
        fd, base = self._regions[0]
        done, total = 0, count * PAGE_BYTES
        start = base + first * PAGE_BYTES
        while done < total:
            argument = bytearray(_COPY.pack(start + done, address + done, total - done, 0, 0))
            try:
                fcntl.ioctl(fd, UFFDIO_COPY, argument)
                done = total
            except OSError as error:
                done += self._go_on(error, argument, _COPY.size, first + done // PAGE_BYTES)

    def _zero(self, index: int, first: int, count: int) -> int:
        """UFFDIO_ZEROPAGE through one region. :returns: how many pages were made."""
        fd, base = self._regions[index]
        done, there, total = 0, 0, count * PAGE_BYTES
        start = base + first * PAGE_BYTES
        while done < total:
            argument = bytearray(_ZEROPAGE.pack(start + done, total - done, 0, 0))
            try:
                fcntl.ioctl(fd, UFFDIO_ZEROPAGE, argument)
                done = total
            except OSError as error:
                there += error.errno == errno.EEXIST
                done += self._go_on(error, argument, _ZEROPAGE.size, first + done // PAGE_BYTES)
        return count - there

    def _go_on(self, error: OSError, argument: bytearray, size: int, page: int) -> int:
        """How many bytes an interrupted ioctl has dealt with. :raises MemoryTrackingError: when it cannot go on."""
        if error.errno == errno.EAGAIN:
            return max(0, int(_DONE.unpack_from(argument, size - _DONE.size)[0]))
        if error.errno == errno.EEXIST:
            self._wake(page, 1, but=-1)
            return PAGE_BYTES
        what = "the guest is gone" if error.errno in (errno.ESRCH, errno.ENOENT) else error.strerror
        raise MemoryTrackingError(f"page {page} of the guest's memory could not be installed: {what}") from error

    def _wake(self, first: int, count: int, but: int) -> None:
        """Every region's waiters but those of region *but* (-1: all), which its own ioctl has woken."""
        for index, (fd, base) in enumerate(self._regions):
            if index != but:
                with contextlib.suppress(OSError):  # a process that died waits for nothing
                    fcntl.ioctl(fd, UFFDIO_WAKE, _RANGE.pack(base + first * PAGE_BYTES, count * PAGE_BYTES))
