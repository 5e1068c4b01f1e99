"""How a connection to a storage server notices that nobody is there any more, and takes no slow disk for that."""

from __future__ import annotations

import socket
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S

PROBE_S: Final = 1  # the least that TCP knows


def notice_silence(sock: socket.socket, silent_ns: int) -> None:
    """Have the kernel end a TCP connection whose other machine acknowledges nothing for *silent_ns*.

    What is sent and not acknowledged is found out by TCP_USER_TIMEOUT; an idle connection is probed once a second
    (tcp(7): with the option set, it decides for the probes too).
    """
    seconds = max(1, -(-silent_ns // NS_PER_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_ns // NS_PER_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, seconds)
