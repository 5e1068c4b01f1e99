"""The character generator's pattern (RFC 864) as the clients know it, and cheap checks of received data against it.

The pattern is RFC 864's recommendation: lines of 72 of the 95 printable ASCII characters, each line starting one
character later than the one before, each ended by CR LF. It repeats after 95 lines of 74 bytes. The guest's services
have an implementation of their own: two that agree are a better check than one that agrees with itself.
"""

from __future__ import annotations

from typing import Final

LINE_BYTES: Final = 74
PERIOD_BYTES: Final = 95 * LINE_BYTES
MAX_SLICE_BYTES: Final = 1 << 18


def _period() -> bytes:
    printable = bytes(range(0x20, 0x7F)) * 2
    return b"".join(printable[line : line + 72] + b"\r\n" for line in range(95))


PERIOD: Final = _period()
# Long enough that any slice of up to MAX_SLICE_BYTES at any offset is contiguous: no copies, whole buffers compared.
_REPEATED: Final = PERIOD * (MAX_SLICE_BYTES // PERIOD_BYTES + 2)
_VIEW: Final = memoryview(_REPEATED)


def pattern_slice(offset: int, count: int) -> memoryview:
    """The *count* bytes of the pattern from *offset* on, without copying; *count* is at most MAX_SLICE_BYTES."""
    if count > MAX_SLICE_BYTES:
        raise ValueError(f"a slice of at most {MAX_SLICE_BYTES} bytes")
    start = offset % PERIOD_BYTES
    return _VIEW[start : start + count]


def matches(data: memoryview | bytes, offset: int) -> bool:
    """True when *data* (at most MAX_SLICE_BYTES) is the pattern from *offset* on: one memcmp."""
    return _REPEATED.startswith(data, offset % PERIOD_BYTES)
