"""Sends a moved guest's announcements: prepared Ethernet frames, at given times after its port was wired."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.clock import now_ns
from bench.errors import GuestError
from bench.guest.loop import Loop, Timer

MAX_FRAMES = 16
MAX_OFFSETS = 64
MAX_OFFSET_NS = 600 * 10**9
_MIN_FRAME_BYTES, _MAX_FRAME_BYTES = 14, 1514


@dataclass(frozen=True, slots=True)
class Announcement:
    """What to announce, and when.

    :param frames: (kind, Ethernet frame); all of them are sent at every offset, in this order.
    :param offsets_ns: ascending, after the moment in which the port was wired.
    """

    frames: tuple[tuple[str, bytes], ...] = ()
    offsets_ns: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, raw: object) -> Announcement:
        """From ``{"frames": [{"kind": …, "hex": …}], "offsets_ns": […]}``; None is no announcement at all.

        :raises GuestError: when it is something else.
        """
        if raw is None:
            return cls()
        try:
            return cls._parse(raw)
        except (TypeError, KeyError, ValueError) as error:
            raise GuestError(f"announcement: {error!r}") from error

    @classmethod
    def _parse(cls, raw: object) -> Announcement:
        if not isinstance(raw, Mapping):
            raise TypeError("an object is expected")
        frames = tuple((str(item["kind"])[:32], bytes.fromhex(item["hex"])) for item in raw["frames"])
        offsets = tuple(raw["offsets_ns"])
        if len(frames) > MAX_FRAMES or len(offsets) > MAX_OFFSETS:
            raise ValueError(f"at most {MAX_FRAMES} frames and {MAX_OFFSETS} offsets")
        if any(not _MIN_FRAME_BYTES <= len(frame) <= _MAX_FRAME_BYTES for _, frame in frames):
            raise ValueError(f"a frame has {_MIN_FRAME_BYTES} to {_MAX_FRAME_BYTES} bytes")
        if any(not isinstance(offset, int) or not 0 <= offset <= MAX_OFFSET_NS for offset in offsets):
            raise ValueError(f"an offset is an integer in 0 … {MAX_OFFSET_NS} ns")
        if list(offsets) != sorted(offsets):
            raise ValueError("offsets ascend")
        return cls(frames, offsets)


class Announcer:
    """Announces through one interface of the calling thread's network namespace.

    :param sent: called for each frame that left: kind, number of the offset, when due, when sent (both
        CLOCK_MONOTONIC ns), and the error text when it did not leave after all.
    """

    def __init__(self, interface: str, loop: Loop, sent: Callable[[str, int, int, int, str], Any]) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # protocol 0: send only
        self._sock.bind((interface, 0))
        self._loop = loop
        self._sent = sent
        self._timer: Timer | None = None

    def begin(self, announcement: Announcement, start_ns: int) -> int:
        """Send what is due already, arm a timer for the rest.

        :param start_ns: what the offsets count from.
        :returns: when the first frame left, 0 when none did.
        """
        self.stop()
        return self._send_due(announcement, start_ns, 0)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.stop()
        self._sock.close()

    def _send_due(self, announcement: Announcement, start_ns: int, number: int) -> int:
        first_ns = 0
        offsets = announcement.offsets_ns
        while number < len(offsets) and start_ns + offsets[number] <= now_ns():
            due_ns = start_ns + offsets[number]
            for kind, frame in announcement.frames:
                error = self._send(frame)
                at_ns = now_ns()
                if not error:
                    first_ns = first_ns or at_ns
                self._sent(kind, number, due_ns, at_ns, error)
            number += 1
        if number < len(offsets):
            self._timer = self._loop.at(
                start_ns + offsets[number], lambda: self._send_due(announcement, start_ns, number)
            )
        return first_ns

    def _send(self, frame: bytes) -> str:
        try:
            self._sock.send(frame)
        except OSError as error:
            return error.strerror or str(error)
        return ""
