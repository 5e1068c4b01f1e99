"""Guest memory: one memfd that several processes map shared.

The guest's processes, its vCPUs and the migration engine each map the same memfd; nothing is copied between them. Pages
are :data:`PAGE_BYTES` large and numbered from 0. Lean: numpy and the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bench.errors import GuestError
from bench.memory import content
from bench.memory.huge import collapse, mapped_bytes, open_huge

PAGE_BYTES = content.PAGE_BYTES
WORDS_PER_PAGE = content.WORDS_PER_PAGE

Words: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]

# linux/mman.h since Linux 5.14. Of a shared memfd it allocates and maps writable all the same, and what another process
# has allocated already takes a third of the time of MADV_POPULATE_WRITE, because 16 pages are mapped at a time.
_MADV_POPULATE_READ = 22
_libc = ctypes.CDLL(None, use_errno=True)  # its calls let other threads run, those of the mmap module do not
# linux/fcntl.h; with these no process can make the file shorter under another's mapping (which would be SIGBUS there)
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


class GuestMemory:
    """A shared mapping of a memfd of a whole number of pages.

    Made by :meth:`create` or :meth:`from_fd`; owns its descriptor. ``close`` (or leaving the context) closes it.

    :ivar fd: the memfd, to be passed to other processes.
    :ivar size_bytes: its size, ``page_count * PAGE_BYTES``.
    :ivar view: all bytes.
    :ivar pages: the same bytes as an array of shape (page_count, 4096), uint8.
    :ivar words: the same bytes as an array of shape (page_count, 512), uint64.
    :ivar base: the address of the mapping in this process.
    """

    def __init__(self, fd: int, size_bytes: int, writable: bool = True) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.page_count = size_bytes // PAGE_BYTES
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=protection)
        self.view = memoryview(self._map)
        flat = np.frombuffer(self._map, dtype=np.uint64)
        self.words: Words = flat.reshape(self.page_count, WORDS_PER_PAGE)
        self.pages: Bytes = flat.view(np.uint8).reshape(self.page_count, PAGE_BYTES)
        self.base = int(flat.__array_interface__["data"][0])
        self._closed = False

    @classmethod
    def create(cls, size_bytes: int, name: str = "guest", *, huge: bool = False) -> GuestMemory:
        """New zeroed memory; its size is sealed, but for *huge* memory (:mod:`bench.memory.huge`), which cannot be.

        :raises GuestError: when the size is no positive multiple of the page size, or the kernel refuses.
        """
        _check_size(size_bytes)
        if huge:
            return cls.from_fd(open_huge(size_bytes), size_bytes)
        fd = -1
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
            return cls(fd, size_bytes)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise GuestError(
                f"no guest memory of {size_bytes} bytes: {error.strerror}", "give the guest less memory"
            ) from error

    @classmethod
    def from_fd(cls, fd: int, size_bytes: int | None = None, writable: bool = True) -> GuestMemory:
        """Map a memfd that another process made. Takes ownership of *fd*, also when it fails.

        :param size_bytes: the size it must have; None takes whatever it has.
        :raises GuestError: when it is no such memory.
        """
        try:
            actual = os.fstat(fd).st_size
            _check_size(actual)
            if size_bytes is not None and actual != size_bytes:
                raise GuestError(f"a guest memory of {actual} bytes was passed where {size_bytes} were expected")
            return cls(fd, actual, writable)
        except OSError as error:
            os.close(fd)
            raise GuestError(f"the descriptor passed as guest memory cannot be mapped: {error.strerror}") from error
        except GuestError:
            os.close(fd)
            raise

    def populate(self, first: int = 0, count: int | None = None) -> None:
        """Allocate pages, all by default, and map them here, so that later accesses do not fault. Contents stay.

        :raises GuestError: when the machine has not enough memory.
        """
        begin = first * PAGE_BYTES
        length = self.size_bytes - begin if count is None else count * PAGE_BYTES
        try:
            try:
                _populate(self.base + begin, length)
            except OSError as error:
                if error.errno != errno.EINVAL:  # before Linux 5.14
                    raise
                os.posix_fallocate(self.fd, begin, length)  # allocates; the first access still maps
        except OSError as error:
            raise GuestError(
                f"guest memory of {self.size_bytes} bytes could not be allocated: {error.strerror}",
                "give the guest less memory or stop other programs",
            ) from error

    def require_huge(self) -> None:
        """Of huge memory that is populated: :raises GuestError: when not all of it lies in huge pages."""
        if self.huge_bytes() < self.size_bytes:
            collapse(self.base, self.size_bytes)
        got = self.huge_bytes()
        if got < self.size_bytes:
            raise GuestError(
                f"only {got >> 20} MiB of a guest's {self.size_bytes >> 20} MiB got huge pages: memory is fragmented",
                "give the guest less memory, or take guest.huge_pages out",
            )

    def huge_bytes(self) -> int:
        """What of it this process maps by huge pages."""
        return mapped_bytes(os.getpid(), self.base)

    def discard(self, first: int, count: int) -> None:
        """Give pages back to the kernel, from every process's mapping of the memfd (MADV_REMOVE); they read as zeros.

        :raises GuestError: when the kernel refuses.
        """
        try:
            self._map.madvise(mmap.MADV_REMOVE, first * PAGE_BYTES, count * PAGE_BYTES)
        except OSError as error:
            raise GuestError(f"{count} pages of guest memory could not be dropped: {error.strerror}") from error

    def fill(self, shares: Mapping[str, float], seed: int) -> None:
        """Fill all pages with a mix of kinds; see :func:`bench.memory.content.fill_pages`."""
        content.fill_pages(self.words, shares, seed)

    def load_image(self, path: Path) -> int:
        """Fill from an image file; see :func:`bench.memory.content.load_image`. :returns: the bytes loaded."""
        return content.load_image(self.view, path)

    def close(self) -> None:
        """Close the descriptor and unmap. Idempotent.

        An array or memoryview that someone still holds keeps the mapping alive until it is dropped.
        """
        if self._closed:
            return
        self._closed = True
        os.close(self.fd)
        self.view.release()
        empty = np.empty((0, WORDS_PER_PAGE), dtype=np.uint64)
        self.words, self.pages = empty, empty.view(np.uint8)
        with contextlib.suppress(BufferError):  # views exist; the last of them unmaps
            self._map.close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _populate(address: int, length: int) -> None:
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_READ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check_size(size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % PAGE_BYTES:
        raise GuestError(f"guest memory of {size_bytes} bytes: not a positive multiple of {PAGE_BYTES}")
