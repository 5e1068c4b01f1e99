"""Frames from a connection as far as they have arrived, for an engine that must never wait for the rest of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from bench.errors import WireError
from bench.migration import wire
from bench.migration.transport import Connection
from bench.migration.wire import Frame, Kind

_CAPACITY: Final = wire.HEADER_BYTES + wire.MAX_META_BYTES + wire.MAX_FRAME_PAGES * wire.PAGE_BYTES
READ_BYTES: Final = 256 << 10  # at once: some 100 us of work


class _Short(Exception):
    """The rest has not arrived yet."""


class _Needed(Exception):
    """The head has more bytes than have arrived.

    :ivar count: how many, as far as known.
    """

    def __init__(self, count: int) -> None:
        self.count = count


class HeadReader:
    """Frames without their payloads; never reads beyond the head (header and meta data) of a frame.

    :param kinds: what may come.
    """

    def __init__(self, connection: Connection, kinds: Sequence[Kind], memory_pages: int = 0) -> None:
        self._connection = connection
        self._decoder = wire.Decoder(self, kinds, memory_pages)
        self._head = np.empty(wire.HEADER_BYTES + wire.MAX_META_BYTES, dtype=np.uint8).data
        self._need, self._have, self._read = wire.HEADER_BYTES, 0, 0

    @property
    def inside(self) -> bool:
        """Whether part of a head has arrived, and the rest has not."""
        return self._have > 0

    def next(self) -> Frame | None:
        """The next frame if its head is there now; the caller reads its payload before calling again.

        :raises PeerLost, WireError: when the stream ended, or is none of the grammar's.
        """
        while True:
            while self._have < self._need:
                count = self._connection.read_available(self._head[self._have : self._need])
                if not count:
                    return None
                self._have += count
            self._read = 0
            try:
                frame = self._decoder.next()
            except _Needed as needed:
                self._need = needed.count
            else:
                self._need, self._have = wire.HEADER_BYTES, 0
                return frame

    def read_exactly(self, count: int) -> bytes:
        """For the decoder: of a head that is there."""
        end = self._read + count
        if end > self._have:
            raise _Needed(end)
        self._read = end
        return bytes(self._head[end - count : end])


class FrameReader:
    """Whole frames, with their payloads, of one connection.

    :param expected: the kinds that may come. No DEVICE frame, whose payload may be larger than the buffer.
    """

    def __init__(self, connection: Connection, expected: Sequence[Kind], memory_pages: int) -> None:
        self.connection = connection
        self._decoder = wire.Decoder(self, expected, memory_pages)
        self._buffer = bytearray(_CAPACITY)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0
        self._frame: Frame | None = None

    def ready(self) -> Iterator[tuple[Frame, memoryview]]:
        """One read from the socket, and every frame that is whole by then; a payload is valid until the next one.

        :raises PeerLost, WireError: when the stream ended, or is none of the grammar's.
        """
        if self._begin and self._end + READ_BYTES > _CAPACITY:
            left = self._end - self._begin
            self._buffer[:left] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, left
        space = self._view[self._end : self._end + READ_BYTES]
        self._end += self.connection.read_available(space)
        while (frame := self._next()) is not None:
            payload = self._view[self._begin : self._begin + frame.payload_bytes]
            self._begin += frame.payload_bytes
            self._frame = None
            yield frame, payload
        if self._begin == self._end:
            self._begin = self._end = 0

    def read_exactly(self, count: int) -> bytes:
        """For the decoder."""
        if self._end - self._begin < count:
            raise _Short
        self._begin += count
        return bytes(self._view[self._begin - count : self._begin])

    def _next(self) -> Frame | None:
        """The next frame if it is there with its payload."""
        if self._frame is None:
            begin = self._begin
            try:
                self._frame = self._decoder.next()
            except _Short:
                self._begin = begin
                return None
            if self._frame.payload_bytes > wire.MAX_FRAME_PAGES * wire.PAGE_BYTES:
                raise WireError(f"{self._frame.kind.name} frame of {self._frame.payload_bytes} bytes where none is due")
        return self._frame if self._end - self._begin >= self._frame.payload_bytes else None
