"""The datagrams of a one-way flow (``udp-stream``): one layout for who sends and who receives.

::

    magic "MBUS" | flow u32 | number u64 | sent u64 (CLOCK_MONOTONIC ns) | content          little endian

*flow* is :func:`bench.flows.notes.flow_number` of its name. The content is RFC 864's pattern from a place that the
number gives, so that a receiver knows every byte without having been told anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bench.flows.pattern import matches, pattern_slice

PORT: Final = 5001
MAX_BYTES: Final = 1472
MIN_BYTES: Final = 24
MIN_TICK_NS: Final = 100_000
MAX_BURST: Final = 64
"""Datagrams that are due at one time and leave together; what is more is skipped: a burst would measure itself."""

_HEADER: Final = struct.Struct("<4sIQQ")
_MAGIC: Final = b"MBUS"
_STEP: Final = 61


@dataclass(frozen=True, slots=True)
class Arrived:
    """One that came in; *good*: its content is what it has to be."""

    flow: int
    number: int
    sent_ns: int
    good: bool


def interval_ns(size: int, rate_bps: int) -> int:
    """Between two datagrams of *size* bytes, so that their payload makes *rate_bps*."""
    return max(1, size * 8 * 10**9 // rate_bps)


def pack(flow: int, number: int, sent_ns: int, size: int) -> bytes:
    """*size* bytes, :data:`MIN_BYTES` at least."""
    return _HEADER.pack(_MAGIC, flow, number, sent_ns) + pattern_slice(number * _STEP, max(0, size - _HEADER.size))


def unpack(data: bytes) -> Arrived | None:
    """None for what is no datagram of such a flow."""
    if len(data) < _HEADER.size:
        return None
    magic, flow, number, sent_ns = _HEADER.unpack_from(data)
    if magic != _MAGIC or number >= 1 << 48 or sent_ns >= 1 << 63:
        return None
    return Arrived(flow, number, sent_ns, matches(memoryview(data)[_HEADER.size :], number * _STEP))
