"""A body made of the chargen pattern, paced by the guest: what HTTP ``/stream`` sends. No sockets, no timers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S
from bench.guest.services.base import OutputBuffer, integer, unpack
from bench.guest.services.pattern import RING_SLICE_BYTES, chargen_slice

PIECE_NS = NS_PER_MS
MAX_BEHIND_NS = 50 * NS_PER_MS
CHUNK_BYTES = 1 << 14
MAX_RATE = 1 << 50
MAX_TOTAL_BYTES = 1 << 62


class PatternBody:
    """*total* bytes of the pattern at *rate*, in pieces of about :data:`PIECE_NS`.

    Being late by up to :data:`MAX_BEHIND_NS` (a busy machine) is made up for, so the mean rate holds. A longer gap (the
    guest was paused, or the client did not read) is not: the schedule moves on by it and there is no burst. The clock's
    value is no part of the exported state, so a migration never looks like being late.

    :param rate: bytes/s, 0: as fast as the connection takes it.
    :param total: bytes, None: endless.
    :param chunked: framed in chunks of :data:`CHUNK_BYTES` (RFC 9112, 7.1), whatever the pieces are.
    """

    def __init__(self, rate: int, total: int | None, chunked: bool, clock_ns: Callable[[], int]) -> None:
        self._rate = rate
        self._total = total
        self._chunked = chunked
        self._clock_ns = clock_ns
        self._produced = 0
        self._chunk_left = 0
        self._framing = OutputBuffer(b"0\r\n\r\n" if chunked and total == 0 else b"")
        self._anchor_ns: int | None = None
        self._anchor_bytes = 0
        self._starved = True  # output() had nothing, or was not asked yet

    @property
    def done(self) -> bool:
        return self._produced == self._total and not len(self._framing)

    def output(self, limit: int) -> bytes | memoryview:
        """Either framing or pattern, never both."""
        if self._chunked and not self._chunk_left and not len(self._framing) and not self.done:
            self._chunk_left = CHUNK_BYTES if self._total is None else min(CHUNK_BYTES, self._total - self._produced)
            self._framing += b"%x\r\n" % self._chunk_left
        if len(self._framing):
            self._starved = False
            return self._framing.peek(limit)
        count = min(self._room(), self._allowance())
        self._starved = count == 0 and not self.done
        return chargen_slice(self._produced, min(count, limit))

    def sent(self, count: int) -> None:
        if len(self._framing):
            self._framing.drop(count)
            return
        if count > self._room():
            raise ValueError(f"{count} bytes sent out of {self._room()}")
        self._produced += count
        if self._chunked and count:
            self._chunk_left -= count
            if not self._chunk_left:
                self._framing += b"\r\n0\r\n\r\n" if self._produced == self._total else b"\r\n"

    def wake_ns(self) -> int | None:
        """When the next piece is due; None unless :meth:`output` had nothing because it was not due."""
        if not self._starved or not self._rate or self.done:
            return None
        if self._anchor_ns is None:
            return self._clock_ns()
        until = self._produced - self._anchor_bytes + self._piece()
        return self._anchor_ns - (-until * NS_PER_S // self._rate)

    def _room(self) -> int:
        """Bytes of pattern that may come next before framing or the end."""
        if self._chunked:
            return self._chunk_left
        return RING_SLICE_BYTES if self._total is None else min(RING_SLICE_BYTES, self._total - self._produced)

    def _piece(self) -> int:
        return min(self._room(), max(1, self._rate * PIECE_NS // NS_PER_S))

    def _allowance(self) -> int:
        """Bytes that are due by now; 0 when they are less than a piece."""
        if not self._rate:
            return self._room()
        now_ns = self._clock_ns()
        if self._anchor_ns is None:
            self._anchor_ns, self._anchor_bytes = now_ns, self._produced
        behind = (now_ns - self._anchor_ns) * self._rate // NS_PER_S - (self._produced - self._anchor_bytes)
        if behind > max(self._piece(), self._rate * MAX_BEHIND_NS // NS_PER_S):
            self._anchor_ns, self._anchor_bytes = now_ns, self._produced - self._piece()
            behind = self._piece()
        return behind if behind >= self._piece() else 0

    def export(self) -> dict[str, Any]:
        return {
            "rate": self._rate,
            "total": self._total,
            "chunked": self._chunked,
            "produced": self._produced,
            "chunk_left": self._chunk_left,
            "framing": self._framing.pack(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], clock_ns: Callable[[], int]) -> PatternBody:
        total = None if state["total"] is None else integer(state, "total")
        body = cls(integer(state, "rate"), total, bool(state["chunked"]), clock_ns)
        body._produced = integer(state, "produced")
        body._chunk_left = integer(state, "chunk_left")
        body._framing = OutputBuffer(unpack(state["framing"]))
        return body
