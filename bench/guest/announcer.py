"""A moved guest's announcements: prepared Ethernet frames, sent at given times after its port was wired."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.clock import now_ns
from bench.errors import GuestError
from bench.guest.cards import MAX_CARDS
from bench.guest.loop import Loop, Timer
from bench.guest.punctual_sender import PRIORITY, Due, PunctualSender, Sent, open_cards
from bench.guest.punctual_sender import send as transmit
from bench.host.channel import ChannelClosed
from bench.host.timer import uninterrupted

MAX_FRAMES = 32
MAX_OFFSETS = 128  # the most rounds of a scenario, by the hypervisor and again by the guest
MAX_SENDS = MAX_FRAMES * MAX_OFFSETS
MAX_OFFSET_NS = 600 * 10**9
_MIN_FRAME_BYTES, _MAX_FRAME_BYTES = 14, 1514
_DISCARD_PORT = 9

log = logging.getLogger("guest")


@dataclass(frozen=True, slots=True)
class Send:
    """One frame, by its index, at *at_ns* after the beginning; *lost* ones are noted and do not leave."""

    at_ns: int
    frame: int
    sender: str = "hypervisor"
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Announcement:
    """What to announce, and when.

    :param frames: (kind, Ethernet frame).
    :param cards: by which of the guest's cards each of them leaves; without, all by the first.
    :param offsets_ns: ascending, after the beginning; all frames are sent at each, in their order, unless *sends* says
        otherwise.
    :param sends: what leaves when, by time.
    :param wire_after_ns: the port is wired so long after the guest resumed.
    :param before_wiring: the beginning is the resume and not the wiring.
    """

    frames: tuple[tuple[str, bytes], ...] = ()
    offsets_ns: tuple[int, ...] = ()
    sends: tuple[Send, ...] = ()
    wire_after_ns: int = 0
    before_wiring: bool = False
    cards: tuple[int, ...] = ()

    def card_of(self, frame: int) -> int:
        """Of a frame, by its index."""
        return self.cards[frame] if self.cards else 0

    def planned(self) -> tuple[Send, ...]:
        """What leaves when, by time."""
        return self.sends or tuple(
            Send(offset_ns, index) for offset_ns in self.offsets_ns for index in range(len(self.frames))
        )

    @classmethod
    def from_json(cls, raw: object) -> Announcement:
        """From ``{"frames": [{"kind": …, "hex": …, "card"?: …}], "offsets_ns": […]}`` and, if need be, ``sends``
        ({at_ns, frame, sender, lost}), ``wire_after_ns``, ``before_wiring``; None is no announcement at all.

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
        cards = tuple(item.get("card", 0) for item in raw["frames"])
        offsets = tuple(raw["offsets_ns"])
        if len(frames) > MAX_FRAMES or len(offsets) > MAX_OFFSETS:
            raise ValueError(f"at most {MAX_FRAMES} frames and {MAX_OFFSETS} offsets")
        if any(not _MIN_FRAME_BYTES <= len(frame) <= _MAX_FRAME_BYTES for _, frame in frames):
            raise ValueError(f"a frame has {_MIN_FRAME_BYTES} to {_MAX_FRAME_BYTES} bytes")
        if any(not isinstance(card, int) or not 0 <= card < MAX_CARDS for card in cards):
            raise ValueError(f"a card is an integer in 0 … {MAX_CARDS - 1}")
        if any(not isinstance(offset, int) or not 0 <= offset <= MAX_OFFSET_NS for offset in offsets):
            raise ValueError(f"an offset is an integer in 0 … {MAX_OFFSET_NS} ns")
        if list(offsets) != sorted(offsets):
            raise ValueError("offsets ascend")
        sends = tuple(
            Send(item["at_ns"], item["frame"], str(item["sender"])[:32], bool(item["lost"]))
            for item in raw.get("sends") or ()
        )
        if len(sends) > MAX_SENDS or any(
            not isinstance(send.frame, int) or not 0 <= send.frame < len(frames) for send in sends
        ):
            raise ValueError(f"at most {MAX_SENDS} sends, each of one of the frames")
        times = [send.at_ns for send in sends]
        wire_after = raw.get("wire_after_ns") or 0
        if any(not isinstance(at, int) or not 0 <= at <= MAX_OFFSET_NS for at in (*times, wire_after)):
            raise ValueError(f"a time is an integer in 0 … {MAX_OFFSET_NS} ns")
        if times != sorted(times):
            raise ValueError("sends ascend")
        return cls(frames, offsets, sends, wire_after, bool(raw.get("before_wiring")), cards if any(cards) else ())


_Planned: TypeAlias = tuple[str, int, Send, int, int]
"""Kind, card, the send, number of its time, when it is due."""


class Announcer:
    """Announces through interfaces of the calling thread's network namespace.

    They are the guest's cards, whoever announces: that is where QEMU puts its frames in for the guest, too, and
    the bridge behind a card learns from them as from the guest's own. What is due at once leaves from here, without
    waiting for anybody; the rest from a process of its own (:mod:`.punctual_sender`), however busy the guest is.

    :param interfaces: by the number of the card.
    :param sent: called for each frame: kind, card, the send, number of its time, when it was due and when it left (both
        CLOCK_MONOTONIC ns), and the error text when it did not leave after all.
    :raises GuestError: the process does not start.
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        loop: Loop,
        sent: Callable[[str, int, Send, int, tuple[int, int], str], Any],
    ) -> None:
        self._socks = open_cards(interfaces)
        self._loop = loop
        self._sent = sent
        self._later = PunctualSender(self._socks)
        self._watched = True
        self._plans: dict[int, list[_Planned]] = {}
        loop.watch(self._later.fileno(), select.EPOLLIN, self._told)

    def begin(self, announcement: Announcement, start_ns: int) -> int:
        """Send what is due already, and have the rest sent in time. What was under way before is not sent any more.

        :param start_ns: what the times count from.
        :returns: when the first frame left, 0 when none did.
        """
        with uninterrupted(PRIORITY):  # each frame wakes a switch, which would have the next one wait
            first_ns, later = self._send_due(announcement, start_ns)
            if later or self._plans:
                self._hand_over(announcement, later)
        return first_ns

    def _send_due(self, announcement: Announcement, start_ns: int) -> tuple[int, list[_Planned]]:
        """:returns: when the first frame left, and what is not due yet."""
        first_ns = number = 0
        former_ns: int | None = None
        later: list[_Planned] = []
        for send in announcement.planned():
            number += former_ns is not None and send.at_ns != former_ns
            former_ns = send.at_ns
            kind, frame = announcement.frames[send.frame]
            card, due_ns = announcement.card_of(send.frame), start_ns + send.at_ns
            if later or due_ns > now_ns():
                later.append((kind, card, send, number, due_ns))
                continue
            error = "" if send.lost else transmit(self._socks, card, frame)
            at_ns = now_ns()
            if not error and not send.lost:
                first_ns = first_ns or at_ns
            self._sent(kind, card, send, number, (due_ns, at_ns), error)
        return first_ns, later

    def _hand_over(self, announcement: Announcement, later: list[_Planned]) -> None:
        frames = [None if send.lost else announcement.frames[send.frame][1] for _, _, send, _, _ in later]
        try:
            plan = self._later.plan([Due(item[4], item[1], frame) for item, frame in zip(later, frames, strict=True)])
        except GuestError as error:
            for kind, card, send, number, due_ns in later:
                self._sent(kind, card, send, number, (due_ns, now_ns()), error.message)
        else:  # the former one's last frame may be on its way here
            self._plans = {plan - 1: self._plans.get(plan - 1, []), plan: later}

    def _told(self, _events: int) -> None:
        try:
            sent = self._later.receive()
        except ChannelClosed:
            self._unwatch()
            log.error("the announcer has ended; nothing more is announced")
            return
        self._note(sent)

    def _note(self, sent: Sequence[Sent]) -> None:
        for item in sent:
            plan = self._plans.get(item.plan)
            if plan is not None:
                kind, card, send, number, due_ns = plan[item.which]
                self._sent(kind, card, send, number, (due_ns, item.at_ns), item.error)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._later.fileno())

    def close(self) -> None:
        """Nothing leaves after this. Idempotent."""
        self._unwatch()
        self._note(self._later.close())
        for sock in self._socks:
            sock.close()


class Chatter:
    """A guest that speaks by itself: an IPv4 broadcast every *interval_ns*, from its card's interface.

    UDP to the discard port (RFC 863), which answers nothing. A silent guest, which only ever answers, has none.
    """

    def __init__(self, interface: str, loop: Loop, interval_ns: int, address: str) -> None:
        self._loop = loop
        self._interval_ns = interval_ns
        self._timer: Timer | None = None
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        self._sock.setblocking(False)
        self._sock.bind((address, 0))

    def begin(self) -> None:
        """Speak now and then. Idempotent."""
        self.stop()
        with contextlib.suppress(OSError):  # a full queue, or no route yet: the next one comes
            self._sock.sendto(b"here", ("255.255.255.255", _DISCARD_PORT))
        self._timer = self._loop.at(now_ns() + self._interval_ns, self.begin)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.stop()
        self._sock.close()
