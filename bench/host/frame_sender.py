"""Sends one prepared Ethernet frame several times.

``python -m bench.host.frame_sender INTERFACE HEX TIMES INTERVAL_MS``

For a host that plays a part in a fault; guests announce by themselves (:mod:`bench.guest.announcer`).
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """The process."""
    interface, frame, times, interval_ms = arguments
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        sock.bind((interface, 0))
        for _ in range(int(times)):
            sock.send(bytes.fromhex(frame))
            time.sleep(int(interval_ms) / 1000)  # its schedule; nothing is waited for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
