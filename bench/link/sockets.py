"""Room in the packet sockets of Open vSwitch's userspace datapath.

ovs-vswitchd receives from each port by an AF_PACKET socket of its own and sends to *all* ports by one shared socket,
all of them with the kernel's default buffers of 208 KiB. So a port that is slow to wake loses frames that its link
delivered, and a full bottleneck queue on one port takes the send buffer away from all others: losses that nobody asked
for (measured here: 6921 retransmissions in 3 s at 1 Gbit/s, and 2 Gbit/s unshaped; with wide buffers none, and
6 to 8 Gbit/s). The daemon has no option for it and the system-wide default is not ours to change, so the buffers
of our own daemon's sockets are widened from outside (pidfd_getfd(2), SO_RCVBUFFORCE and SO_SNDBUFFORCE of socket(7)).
"""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

_SYS_PIDFD_GETFD = 438  # the same on every architecture
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

RECEIVE_BYTES = 8 << 20
"""Per port: 1 ms at 25 Gbit/s, more than twice over."""

SEND_BYTES = 1 << 30
"""Shared by all ports: more than their queues can hold, since those are what is to limit."""

_libc = ctypes.CDLL(None, use_errno=True)


def widen_packet_sockets(pid: int) -> int:
    """Give every AF_PACKET socket of process *pid* wide buffers; idempotent.

    The shared sending socket is made by the daemon when it first sends, and a port's receiving socket when the port is
    added: call it once ports are there and something was sent, and again after adding some.

    :returns: how many sockets were widened.
    :raises OSError: the process is gone, or its descriptors may not be taken (no CAP_SYS_PTRACE over it).
    """
    widened = 0
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  no Path object for each of many descriptors
            try:
                if not str(Path(f"/proc/{pid}/fd/{name}").readlink()).startswith("socket:"):
                    continue
            except FileNotFoundError:  # closed meanwhile
                continue
            fd = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if fd < 0:
                number = ctypes.get_errno()
                raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
            with socket.socket(fileno=fd) as sock:
                if sock.family == socket.AF_PACKET:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
                    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BYTES)
                    widened += 1
    finally:
        os.close(pidfd)
    return widened
