"""The userfaultfd ABI, and write tracking built on its asynchronous write protection.

A process that writes guest memory calls :func:`arm_write_tracking` on its own mapping. From then on the first write to
each page lifts that page's protection inside the kernel, without a message to anyone, and the migration engine finds
and protects such pages again from outside (:mod:`bench.memory.tracker`).

What does not count as a write: reads by anyone, and writes to the same memfd through another mapping or by write(2).

Constants: linux/userfaultfd.h; ioctl_userfaultfd(2); Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from bench.errors import MemoryTrackingError

# asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64, riscv64)
_SYSCALL = {"x86_64": 323, "aarch64": 282, "riscv64": 282}


def iowr(kind: int, number: int, size: int) -> int:
    """``_IOWR`` of asm-generic/ioctl.h."""
    return (3 << 30) | (size << 16) | (kind << 8) | number


def ior(kind: int, number: int, size: int) -> int:
    """``_IOR`` of asm-generic/ioctl.h."""
    return (2 << 30) | (size << 16) | (kind << 8) | number


UFFD_API = 0xAA
UFFDIO_API = iowr(UFFD_API, 0x3F, 24)
UFFDIO_REGISTER = iowr(UFFD_API, 0x00, 32)
UFFDIO_UNREGISTER = ior(UFFD_API, 0x01, 16)
UFFDIO_WRITEPROTECT = iowr(UFFD_API, 0x06, 24)

UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15

UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

WRITE_TRACKING_FEATURES = (
    UFFD_FEATURE_WP_ASYNC
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM  # guest memory is a memfd
    | UFFD_FEATURE_WP_UNPOPULATED  # pages that this process never touched are protected as well
)

_API = struct.Struct("=QQQ")  # api, features, ioctls
_REGISTER = struct.Struct("=QQQQ")  # start, len, mode, ioctls
_RANGE = struct.Struct("=QQ")  # start, len
_WRITEPROTECT = struct.Struct("=QQQ")  # start, len, mode

_REMEDY = "use Linux 6.7 or later and run as root (CAP_SYS_PTRACE), or a kernel with soft-dirty (CONFIG_MEM_SOFT_DIRTY)"


class WriteTracking:
    """Write tracking of one range of this process, armed until :meth:`disarm`.

    :ivar fd: the userfaultfd; tracking lasts as long as it is open.
    """

    def __init__(self, fd: int, address: int, length: int) -> None:
        self.fd = fd
        self.address = address
        self.length = length

    def disarm(self) -> None:
        """Lift all protection and close the descriptor. Idempotent."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            fcntl.ioctl(fd, UFFDIO_UNREGISTER, _RANGE.pack(self.address, self.length))
        finally:
            os.close(fd)


def open_userfaultfd(features: int) -> int:
    """A new non-blocking userfaultfd with exactly these features.

    :raises MemoryTrackingError: when the kernel or a lack of privileges refuses.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise MemoryTrackingError(f"userfaultfd: its system call number on {platform.machine()} is not known", _REMEDY)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(ctypes.c_long(number), ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise MemoryTrackingError(f"userfaultfd: {os.strerror(ctypes.get_errno())}", _REMEDY)
    try:
        fcntl.ioctl(fd, UFFDIO_API, _API.pack(UFFD_API, features, 0))
    except OSError as error:
        os.close(fd)
        what = "this kernel lacks asynchronous write protection" if error.errno == errno.EINVAL else error.strerror
        raise MemoryTrackingError(f"userfaultfd: {what}", _REMEDY) from error
    return fd


def arm_write_tracking(address: int, length: int) -> WriteTracking:
    """Write-protect a range of this process asynchronously; all of it counts as unwritten afterwards.

    :param address: page-aligned start of a shared mapping of guest memory (:attr:`GuestMemory.base`).
    :param length: in bytes, a multiple of the page size.
    :raises MemoryTrackingError: with the remedy, when the kernel refuses.
    """
    fd = open_userfaultfd(WRITE_TRACKING_FEATURES)
    try:
        fcntl.ioctl(fd, UFFDIO_REGISTER, _REGISTER.pack(address, length, UFFDIO_REGISTER_MODE_WP, 0))
        fcntl.ioctl(fd, UFFDIO_WRITEPROTECT, _WRITEPROTECT.pack(address, length, UFFDIO_WRITEPROTECT_MODE_WP))
    except OSError as error:
        os.close(fd)  # which also unregisters
        what = "another userfaultfd tracks it already" if error.errno == errno.EBUSY else error.strerror
        raise MemoryTrackingError(f"write tracking of {length} bytes of guest memory: {what}", _REMEDY) from error
    return WriteTracking(fd, address, length)
