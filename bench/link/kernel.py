"""The few kernel calls of the delay line that Python lacks: taps in other namespaces, timerfd, scheduling.

Sources: ``Documentation/networking/tuntap.rst``, ``linux/if_tun.h``, timerfd_create(2), setns(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from contextlib import contextmanager
from collections.abc import Iterator

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04

VNET_HEADER_BYTES = 10
"""``struct virtio_net_hdr`` before each frame: it carries checksum and segmentation offload across."""

MAX_FRAME_BYTES = VNET_HEADER_BYTES + 65536 + 64
"""The largest frame that a tap hands out: 64 KiB of TCP segment with its headers."""

PR_SET_TIMERSLACK = 29
CLONE_NEWNET = 0x40000000
TFD_TIMER_ABSTIME = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


@contextmanager
def net_namespace(pid: int | None) -> Iterator[None]:
    """Run the body in the network namespace of process *pid* (None: where we are). One thread only."""
    if pid is None:
        yield
        return
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(there, CLONE_NEWNET), "setns")
        finally:
            os.close(there)
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def open_tap(interface: str, pid: int | None) -> int:
    """Create tap *interface* in the namespace of process *pid*; it lives as long as the descriptor.

    :raises OSError: the name is taken, the namespace is gone, or the kernel has no tun.
    """
    name = interface.encode()
    if not 1 <= len(name) <= 15:
        raise OSError(f"interface name {interface!r}: 1 to 15 bytes")
    with net_namespace(pid):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
            fcntl.ioctl(fd, TUNSETIFF, request)
        except BaseException:
            os.close(fd)
            raise
    return fd


def set_offload(fd: int, segmentation: bool) -> None:
    """Let the kernel hand out unfinished checksums, and TCP segments of up to 64 KiB if *segmentation*."""
    flags = TUN_F_CSUM | (TUN_F_TSO4 | TUN_F_TSO6 if segmentation else 0)
    fcntl.ioctl(fd, TUNSETOFFLOAD, flags)


class Timer:
    """A timerfd on CLOCK_MONOTONIC (epoll's own timeout has a resolution of 1 ms)."""

    def __init__(self) -> None:
        self.fd = _check(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC), "timerfd_create")
        self._spec = _Itimerspec()
        self._pointer = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        """Become readable at *at_ns*; at once if that has passed."""
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(max(at_ns, 1), 10**9)
        _check(_libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, self._pointer, None), "timerfd_settime")

    def clear(self) -> None:
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.fd)


def be_punctual() -> str:
    """Ask for wake-ups on time: a timer slack of 1 ns and real-time scheduling, else the best nice value.

    :returns: what was granted: ``"realtime"``, ``"nice"`` or ``"none"``.
    """
    _libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            return "none"
        return "nice"
    return "realtime"
