"""One direction of the delay line: frames held until they are due; pure.

The order of frames is always kept, as on a wire: with jitter a frame is due at its own time or at that of the frame
before it, whichever is later.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

FRAME_OVERHEAD_BYTES = 160
"""What Python adds to a held frame (bytes object, tuple, integer, deque slot), so that the bound is one of memory."""

MAX_DELAY_NS = 60 * 10**9


class Held:
    """Frames under way in one direction.

    :param seed: of loss and jitter: the same frames in the same order meet the same fate.
    """

    __slots__ = (
        "bytes",
        "delay_ns",
        "dropped_loss",
        "dropped_overflow",
        "dropped_write",
        "frames",
        "held_bytes",
        "jitter_ns",
        "limit_bytes",
        "loss",
        "queue",
        "random",
        "worst_late_ns",
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.queue: deque[tuple[int, bytes]] = deque()
        self.delay_ns = 0
        self.jitter_ns = 0
        self.loss = 0.0
        self.limit_bytes = 0
        self.held_bytes = 0
        self.frames = 0
        self.bytes = 0
        self.dropped_loss = 0
        self.dropped_overflow = 0
        self.dropped_write = 0
        self.worst_late_ns = 0

    def set(self, parameters: Mapping[str, Any]) -> None:
        """Take ``delay_ns``, ``jitter_ns``, ``loss`` and ``limit_bytes``; frames already held keep their time.

        :raises ValueError: naming what is out of range.
        """
        numbers = {}
        for key, largest in (("delay_ns", MAX_DELAY_NS), ("jitter_ns", MAX_DELAY_NS), ("limit_bytes", 1 << 34)):
            value = parameters.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
                raise ValueError(f"{key}: {value!r}; an integer from 0 to {largest}")
            numbers[key] = value
        loss = parameters.get("loss")
        if not isinstance(loss, int | float) or isinstance(loss, bool) or not 0 <= loss <= 1:
            raise ValueError(f"loss: {loss!r}; a number from 0 to 1")
        if numbers["jitter_ns"] > numbers["delay_ns"]:
            raise ValueError("jitter_ns is larger than delay_ns")
        self.delay_ns, self.jitter_ns, self.limit_bytes = (
            numbers[key] for key in ("delay_ns", "jitter_ns", "limit_bytes")
        )
        self.loss = float(loss)

    @property
    def per_packet(self) -> bool:
        """True when every frame must be one packet on the wire, so that segmentation offload has to be off."""
        return self.loss > 0 or self.jitter_ns > 0

    def offer(self, frame: bytes, now_ns: int) -> bool:
        """A frame arrives. False when it was lost or did not fit."""
        if self.loss and self.random.random() < self.loss:
            self.dropped_loss += 1
            return False
        size = len(frame) + FRAME_OVERHEAD_BYTES
        if self.held_bytes + size > self.limit_bytes:
            self.dropped_overflow += 1
            return False
        due_ns = now_ns + self.delay_ns
        if self.jitter_ns:
            due_ns += self.random.randint(-self.jitter_ns, self.jitter_ns)
        queue = self.queue
        if queue and queue[-1][0] > due_ns:
            due_ns = queue[-1][0]
        queue.append((due_ns, frame))
        self.held_bytes += size
        return True

    def take(self, now_ns: int) -> bytes | None:
        """The oldest frame if it is due; never early."""
        queue = self.queue
        if not queue or queue[0][0] > now_ns:
            return None
        due_ns, frame = queue.popleft()
        self.held_bytes -= len(frame) + FRAME_OVERHEAD_BYTES
        if now_ns - due_ns > self.worst_late_ns:  # noqa: PLR1730  a call for each frame costs
            self.worst_late_ns = now_ns - due_ns
        return frame

    def stats(self) -> dict[str, int | float]:
        """Counters since the start, and what is set. ``bytes`` counts delivered Ethernet bytes."""
        return {
            "frames": self.frames,
            "bytes": self.bytes,
            "dropped_loss": self.dropped_loss,
            "dropped_overflow": self.dropped_overflow,
            "dropped_write": self.dropped_write,
            "held": len(self.queue),
            "held_bytes": self.held_bytes,
            "worst_late_ns": self.worst_late_ns,
            "delay_ns": self.delay_ns,
            "jitter_ns": self.jitter_ns,
            "loss": self.loss,
            "limit_bytes": self.limit_bytes,
        }
