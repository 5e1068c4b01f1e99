"""Tap devices in other namespaces, and the scheduling that a punctual process needs. Lean: the delay line uses it.

Sources: ``Documentation/networking/tuntap.rst``, ``linux/if_tun.h``, mallopt(3), sched(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from bench.host.kernel import entered_netns
from bench.host.timer import be_woken_on_time

TUN_DEVICE = Path("/dev/net/tun")

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04

VNET_HEADER_BYTES = 10
"""``struct virtio_net_hdr`` before each frame: it carries checksum and segmentation offload across."""

MAX_FRAME_BYTES = VNET_HEADER_BYTES + 65536 + 64
"""The largest frame that a tap hands out: 64 KiB of TCP segment with its headers."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MALLOC_KEEP_BYTES = 16 << 20


def open_tap(interface: str, pid: int | None) -> int:
    """Create tap *interface* in the namespace of process *pid* (None: ours); it lives as long as the descriptor.

    :raises OSError: the name is taken (EBUSY), the namespace is gone, or the kernel has no tun.
    """
    name = interface.encode()
    if not 1 <= len(name) <= 15:
        raise OSError(f"interface name {interface!r}: 1 to 15 bytes")
    with entered_netns(pid):
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        except BaseException:
            os.close(fd)
            raise
    return fd


def set_offload(fd: int, *, segmentation: bool) -> None:
    """Let the kernel hand out unfinished checksums, and TCP segments of up to 64 KiB if *segmentation*."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | (_TUN_F_TSO4 | _TUN_F_TSO6 if segmentation else 0))


def be_punctual() -> str:
    """Ask for wake-ups on time: a timer slack of 1 ns and real-time scheduling, else the best nice value.

    Also lets malloc keep freed memory: frames come and go by 64 KiB, and giving each back costs page faults.

    :returns: what was granted: ``"realtime"``, ``"nice"`` or ``"none"``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        for parameter in (_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD):
            mallopt(parameter, _MALLOC_KEEP_BYTES)
    return be_woken_on_time(1)
