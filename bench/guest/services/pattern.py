"""The character generator's pattern (RFC 864): what chargen and HTTP ``/stream`` send and the clients verify.

Lines of 72 characters out of the ring of the 95 printable ASCII characters (space to tilde), each line beginning one
character later than the line before, each ended by CR LF. The pattern repeats after 95 lines, :data:`PERIOD_BYTES`. The
byte at any offset of a stream is known from the offset alone, so a stream's whole state is one integer.
"""

from __future__ import annotations

LINE_CHARACTERS = 72
PRINTABLE = bytes(range(0x20, 0x7F))
PERIOD_BYTES = len(PRINTABLE) * (LINE_CHARACTERS + 2)
RING_SLICE_BYTES = 1 << 18  # slices up to this size are cut from the ring without a copy


def _period() -> bytes:
    doubled = PRINTABLE * 2
    return b"".join(doubled[first : first + LINE_CHARACTERS] + b"\r\n" for first in range(len(PRINTABLE)))


_PERIOD = _period()
_RING = memoryview(_PERIOD * (-(-RING_SLICE_BYTES // PERIOD_BYTES) + 1))


def chargen_slice(offset: int, count: int) -> memoryview:
    """Bytes *offset* to *offset* + *count* of the endless pattern, read-only.

    :param offset: position in the stream, from 0, of any size.
    :param count: up to :data:`RING_SLICE_BYTES` costs nothing; more is put together.
    :raises ValueError: when one of them is negative.
    """
    if offset < 0 or count < 0:
        raise ValueError(f"no slice of the pattern: offset {offset}, count {count}")
    start = offset % PERIOD_BYTES
    if count <= RING_SLICE_BYTES:
        return _RING[start : start + count]
    repeats = -(-(start + count) // PERIOD_BYTES)
    return memoryview(_PERIOD * repeats)[start : start + count]
