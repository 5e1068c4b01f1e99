"""What the kernel says of the flows' connections, at 100 Hz: a sample is kept when something in it changed.

What always changes (times since this and that, byte counts) does not count as a change. See
:data:`bench.records.TCP_SAMPLE` for the layout.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

import numpy as np

from bench.clock import NS_PER_MS, now_ns
from bench.records import TCP_SAMPLE, StructuredArray

SAMPLE_NS: Final = 10 * NS_PER_MS
MOST_SAMPLES: Final = 200_000  # 33 minutes of changes, 13 MB
_BYTES: Final = 248
# What is compared: state, timers, windows, losses; round trip; window and retransmissions. Left out: bytes 44 to 68.
_COMPARED: Final = (slice(0, 44), slice(68, 84), slice(100, 104))


class TcpSamples:
    """The samples of one connection."""

    def __init__(self) -> None:
        self._records: StructuredArray = np.zeros(256, TCP_SAMPLE)
        self._count = 0
        self._last = b""

    def __len__(self) -> int:
        return self._count

    def look(self, sock: socket.socket) -> None:
        """Take a sample now. :raises OSError: when the socket is closed."""
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
        seen = b"".join(raw[part] for part in _COMPARED)
        if seen == self._last or self._count >= MOST_SAMPLES:
            return
        self._last = seen
        if self._count == len(self._records):
            self._records = np.concatenate([self._records, np.zeros_like(self._records)])
        state, ca_state, timeouts, probes, backoff = raw[:5]
        words = struct.unpack_from("=24I", raw, 8)
        acked = struct.unpack_from("=Q", raw, 120)[0] if len(raw) >= 128 else 0
        rate = struct.unpack_from("=Q", raw, 160)[0] if len(raw) >= 168 else 0
        self._records[self._count] = (
            *(now_ns(), state, ca_state, timeouts, probes, backoff, words[0], words[4], words[18]),
            *(words[15], words[23], rate * 8, acked),
        )
        self._count += 1

    def array(self) -> StructuredArray:
        """A copy of what was kept."""
        return self._records[: self._count].copy()

    def save(self, path: Path) -> None:
        """:raises OSError: when it cannot be written."""
        with path.open("wb") as file:
            np.save(file, self.array(), allow_pickle=False)
