"""The analytic model of a migration, and the least that any engine could need. Pure.

**The dirty volume.** A guest's pages fall into classes of *n* pages, each page written at *r* times a second,
independently (a Poisson process). The expected number of *distinct* pages written in a time *t* is then

    D(t) = sum over the classes of  n (1 - exp(-r t))

which grows with the slope of the write rate at first and ends at the working set: the cap that the uniform model of
lambda = D/B lacks (Clark et al., NSDI 2005, call it the writable working set; Akoush et al., MASCOTS 2010, model it).
:mod:`bench.analysis.dirty_rate` gets the classes from a measurement.

**Pre-copy.** Pages of P bytes cross a link of goodput B. The engine writes into a socket that holds up to Q bytes, of
which q are filled; a round of S bytes takes the engine t = (S - (Q - q)) / B, or no time when the socket takes them
all. What it sends and what is left to send:

    S(1) = Z(M) + (M - zero pages) P       S(i+1) = D(t(i)) P

with the cost of zero pages Z and, in P, of frames. It pauses the guest when (S(i+1) + q) / B <= the downtime limit (or,
without one, when a round leaves no less than an earlier one), or when its rounds or its time are used up; before that
it goes on sending for a moment (the *door*: a round trip in which handshakes finish) and waits until q has crossed, at
most :data:`DRAIN_NS`. While the guest is paused, the rest of S, what is left of q and the device state cross, and three
half round trips (the last page, ready, hand-over), and what stopping, dumping and loading the guest costs:

    downtime = (S(n) + q + device state) / B + 3/2 round trips + fixed costs

**Levers.** Without zero-page detection Z is that of any page. Compression shrinks P to the share that a sample of the
memory says, and bounds the rate at which pages are sent to what the engine can compress (then the socket runs dry, as
when it paces); post-copy's pages cross plain. A dirty limit caps D(t) at its rate.

For a uniform dirty rate, Q = 0 and no cap this is the textbook's M lambda^i / B (../facts: total time about
(M/B)(1 - lambda^(n+1))/(1 - lambda)); at lambda >= 1 the rounds stop shrinking and only the limits end them.

**The lower bound.** Whatever the engine, pages that are not zero must cross once, and with uncompressed pages

    bytes >= (pages - zero pages) * 4096 + device state
    total >= bytes / B
    downtime >= (pages dirty at the pause * 4096 + device state) / B + one round trip

All of it is about the *transfer*: setting up (the connection, the skeleton's memory) is not in any of these times.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S

PAGE_BYTES: Final = 4096
PAGE_HEAD_BYTES: Final = 4 + 24 / 256  # its number, and its part of a frame's header
ZERO_PAGE_BYTES: Final = 8  # one run of one page; neighbours share one, so at most
FRAME_BYTES: Final = 1514  # Ethernet, as links are shaped
MSS_BYTES: Final = 1448  # of TCP with timestamps (RFC 7323)
MTU_BYTES: Final = 1500

SOCKET_BYTES: Final = 1 << 20
WORKING_SET_SHARE: Final = 0.8
WORKING_SET_NS: Final = 100 * NS_PER_MS
DOOR_NS: Final = 5 * NS_PER_MS
DRAIN_NS: Final = 100 * NS_PER_MS
LEAST_DOWNTIME_NS: Final = NS_PER_MS // 2  # with no limit: less than a switchover costs anyway
MAX_SIMULATED_ROUNDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class PageClass:
    """Pages that are written equally often. *pages* is an expectation and need not be whole."""

    pages: float
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class DirtyCurve:
    """How many distinct pages the guest writes in a time."""

    classes: tuple[PageClass, ...] = ()

    @classmethod
    def hot_set(cls, pages: int, writes_per_s: float, hot_pages: int = 0, hot_share: float = 0.0) -> DirtyCurve:
        """A hot set that gets *hot_share* of the writes, the rest going to all *pages* uniformly; both Poisson."""
        if not pages:
            return cls()
        rest = (1 - hot_share) * writes_per_s / pages
        hot = rest + (hot_share * writes_per_s / hot_pages if hot_pages else 0)
        return cls((PageClass(hot_pages, hot), PageClass(pages - hot_pages, rest)))

    def pages_in(self, duration_ns: float) -> float:
        """D(t): expected distinct pages written in *duration_ns*."""
        seconds = max(0.0, duration_ns) / NS_PER_S
        return sum(item.pages * -math.expm1(-item.rate_per_s * seconds) for item in self.classes)

    @property
    def writes_per_s(self) -> float:
        """Page writes a second, as far as they can be told apart: the slope of D at 0."""
        return sum(item.pages * item.rate_per_s for item in self.classes)

    @property
    def written_pages(self) -> float:
        """All pages that are ever written: where D ends."""
        return sum(item.pages for item in self.classes if item.rate_per_s > 0)

    @property
    def working_set_pages(self) -> float:
        """The hottest pages that make up :data:`WORKING_SET_SHARE` of what :data:`WORKING_SET_NS` dirty.

        In a time that short, pages count nearly by their writes, but a few that burn count no more than others.
        """
        left = WORKING_SET_SHARE * self.pages_in(WORKING_SET_NS)
        pages = 0.0
        for item in sorted(self.classes, key=lambda item: -item.rate_per_s):
            dirtied = DirtyCurve((item,)).pages_in(WORKING_SET_NS)
            if dirtied > 0 and left > 0:
                pages += item.pages * min(1.0, left / dirtied)
                left -= dirtied
        return pages


@dataclass(frozen=True, slots=True)
class Levers:
    """What the levers of a migration do, as far as that can be known before it.

    :param find_zeros: zero pages cross as numbers.
    :param wire_share: of the bytes of pages, how many cross.
    :param work_bps: how many bits of pages the engine can prepare in a second; 0: faster than any link.
    :param dirty_bytes_per_s: to which the guest is held back; 0: it is not.
    """

    find_zeros: bool = True
    wire_share: float = 1.0
    work_bps: float = 0.0
    dirty_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model is told.

    :param pages: of guest memory, of which ``zero_pages`` hold nothing at the start.
    :param goodput_bps: what TCP delivers on the link; see :func:`goodput_bps`.
    :param downtime_limit_ns: None for as little as possible.
    :param precopy_rounds: of mode ``hybrid``, before it goes over to post-copy.
    :param max_bandwidth_bps: to which the engine paces all but the final copy; 0 is no limit.
    :param device_bytes: the device state.
    :param fixed_ns: what the pause costs beside the link: stopping, dumping, loading and resuming the guest.
    :param round_ns: what every round costs beside the link (looking for dirty pages).
    :param socket_bytes: what may wait in the sender's socket.
    :param door_ns: how long the engine goes on sending after it decided to pause.
    :param levers: see :class:`Levers`.
    """

    pages: int
    zero_pages: int
    curve: DirtyCurve
    goodput_bps: float
    round_trip_ns: int
    downtime_limit_ns: int | None
    max_rounds: int = 30
    max_time_ns: int = 600 * NS_PER_S
    max_bandwidth_bps: int = 0
    device_bytes: int = 0
    fixed_ns: int = 0
    round_ns: int = 0
    socket_bytes: int = SOCKET_BYTES
    door_ns: int = DOOR_NS
    precopy_rounds: int = 1
    levers: Levers = Levers()

    def __post_init__(self) -> None:
        """:raises ValueError: for a link that carries nothing, or more zero pages than pages."""
        if not self.goodput_bps > 0 or not math.isfinite(self.goodput_bps):
            raise ValueError(f"a goodput of {self.goodput_bps} bit/s")
        if not 0 <= self.zero_pages <= self.pages:
            raise ValueError(f"{self.zero_pages} zero pages of {self.pages}")

    @property
    def page_bytes(self) -> float:
        """A page that is not zero, on the wire, in a round."""
        return PAGE_BYTES * self.levers.wire_share + PAGE_HEAD_BYTES

    @property
    def first_bytes(self) -> float:
        """All memory on the wire, in a round."""
        return self._all_bytes(self.page_bytes)

    @property
    def plain_bytes(self) -> float:
        """All memory on the wire, as post-copy sends it."""
        return self._all_bytes(PAGE_BYTES + PAGE_HEAD_BYTES)

    @property
    def still_bps(self) -> float:
        """How fast a round's bytes cross while the guest is paused."""
        work_bps = self.levers.work_bps * self.page_bytes / PAGE_BYTES
        return min(self.goodput_bps, work_bps) if work_bps else self.goodput_bps

    def dirtied(self, duration_ns: float) -> float:
        """Distinct pages that the guest writes in a time."""
        pages = self.curve.pages_in(duration_ns)
        limit = self.levers.dirty_bytes_per_s
        return min(pages, limit * max(0.0, duration_ns) / NS_PER_S / PAGE_BYTES) if limit else pages

    def _all_bytes(self, page_bytes: float) -> float:
        zeros = self.zero_pages if self.levers.find_zeros else 0
        return (self.pages - zeros) * page_bytes + zeros * ZERO_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says. ``converged``: the downtime limit was met, so no other limit had to end the rounds.

    :param rounds: of which the last one is sent while the guest is paused; 0 when memory crosses after the resume.
    :param pause_pages: pages that are sent while the guest is paused.
    :param total_ns: of the transfer: from the end of the set-up until the source knows that the guest runs there.
    """

    rounds: int
    bytes: int
    total_ns: int
    downtime_ns: int
    pause_pages: int
    converged: bool = True


@dataclass(frozen=True, slots=True)
class Bound:
    """The least that any engine could reach."""

    bytes: int
    total_ns: int
    downtime_ns: int


def goodput_bps(frame_rate_bps: float, mtu: int = MTU_BYTES) -> float:
    """What TCP delivers on a link that carries *frame_rate_bps* of Ethernet frames (as tc shapes and counts them)."""
    return frame_rate_bps * (mtu - MTU_BYTES + MSS_BYTES) / (mtu - MTU_BYTES + FRAME_BYTES)


def lower_bound(pages_once: float, pause_pages: float, device_bytes: int, goodput: float, round_trip_ns: int) -> Bound:
    """See the module.

    :param pages_once: pages that must cross at least once: all that are not zero.
    :param pause_pages: those of them that must cross while the guest stands still.
    """
    least_bytes = pages_once * PAGE_BYTES + device_bytes
    still_bytes = pause_pages * PAGE_BYTES + device_bytes
    return Bound(
        bytes=round(least_bytes),
        total_ns=round(_time_ns(least_bytes, goodput)),
        downtime_ns=round(_time_ns(still_bytes, goodput)) + round_trip_ns,
    )


def _time_ns(size_bytes: float, rate_bps: float) -> float:
    return size_bytes * 8 * NS_PER_S / rate_bps


class _Sender:
    """The engine and its socket: time passes as bytes are written."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        limit = inputs.max_bandwidth_bps
        self.rate_bps = min(inputs.still_bps, limit) if limit else inputs.still_bps
        self._paced = self.rate_bps < inputs.goodput_bps
        self.now_ns = 0.0
        self.sent_bytes = 0.0
        self.queued_bytes = 0.0

    def send(self, size_bytes: float, cost_ns: float = 0) -> float:
        """Write it all. :returns: how long that took."""
        room = 0.0 if self._paced else self._inputs.socket_bytes - self.queued_bytes
        writing_ns = _time_ns(max(0.0, size_bytes - room), self.rate_bps)
        took_ns = max(writing_ns, cost_ns)
        self.sent_bytes += size_bytes
        if not self._paced:
            self.queued_bytes += size_bytes - self._bytes_in(took_ns)
            self.queued_bytes = min(max(self.queued_bytes, 0.0), self._inputs.socket_bytes)
        self.now_ns += took_ns
        return took_ns

    def send_for(self, duration_ns: float, size_bytes: float) -> float:
        """Write as much of it as goes in a time. :returns: how much that was."""
        room = 0.0 if self._paced else self._inputs.socket_bytes - self.queued_bytes
        done = min(size_bytes, room + self._bytes_in(duration_ns))
        self.send(done, duration_ns)
        return done

    def drain(self) -> float:
        """Write nothing until what waits in the socket has crossed, or :data:`DRAIN_NS`. :returns: how long."""
        took_ns = min(_time_ns(self.queued_bytes, self.rate_bps), DRAIN_NS)
        self.queued_bytes = max(0.0, self.queued_bytes - self._bytes_in(took_ns))
        self.now_ns += took_ns
        return took_ns

    def _bytes_in(self, duration_ns: float) -> float:
        return duration_ns * self.rate_bps / (8 * NS_PER_S)


def _predict_precopy(inputs: Inputs) -> Prediction:
    sender = _Sender(inputs)
    page_bytes = inputs.page_bytes
    rounds, pending = 1, inputs.first_bytes
    limit_ns = LEAST_DOWNTIME_NS if inputs.downtime_limit_ns is None else inputs.downtime_limit_ns
    least = math.inf
    converged = True
    while True:
        took_ns = sender.send(pending, inputs.round_ns)
        if inputs.downtime_limit_ns is None:
            took_ns += sender.drain()
        pending = inputs.dirtied(took_ns) * page_bytes
        expected_ns = _time_ns(pending + sender.queued_bytes, sender.rate_bps)
        remaining = pending + sender.queued_bytes
        if expected_ns <= limit_ns or (inputs.downtime_limit_ns is None and remaining >= least):
            break
        least = min(least, remaining)
        if rounds >= min(inputs.max_rounds, MAX_SIMULATED_ROUNDS) or sender.now_ns >= inputs.max_time_ns:
            converged = False
            break
        rounds += 1
    door_ns = max(inputs.door_ns, inputs.round_trip_ns)
    if pending >= page_bytes:
        rounds += 1
    begun_ns = sender.now_ns
    pending -= sender.send_for(door_ns, pending)
    sender.drain()
    pending += inputs.dirtied(sender.now_ns - begun_ns) * page_bytes
    pending = min(pending, inputs.pages * page_bytes)
    return _pause(inputs, sender, rounds + 1, pending, converged=converged)


def _pause(inputs: Inputs, sender: _Sender, rounds: int, pending_bytes: float, *, converged: bool = True) -> Prediction:
    """The part that all modes share: the guest stands still, *pending_bytes* and the device state cross."""
    crossing_ns = _time_ns(pending_bytes + sender.queued_bytes + inputs.device_bytes, inputs.still_bps)
    downtime_ns = crossing_ns + 1.5 * inputs.round_trip_ns + inputs.fixed_ns
    return Prediction(
        rounds=rounds,
        bytes=round(sender.sent_bytes + pending_bytes + inputs.device_bytes),
        total_ns=round(sender.now_ns + downtime_ns + inputs.round_trip_ns / 2),
        downtime_ns=round(downtime_ns),
        pause_pages=round(pending_bytes / inputs.page_bytes),
        converged=converged,
    )


def _predict_stop_and_copy(inputs: Inputs) -> Prediction:
    sender = _Sender(inputs)
    sender.send_for(max(inputs.door_ns, inputs.round_trip_ns), 0)
    prediction = _pause(inputs, sender, 1, inputs.first_bytes)
    return dataclasses.replace(prediction, pause_pages=inputs.pages - inputs.zero_pages)


def _predict_postcopy(inputs: Inputs) -> Prediction:
    sender = _Sender(inputs)
    sender.send_for(max(inputs.door_ns, inputs.round_trip_ns), 0)
    paused = _pause(inputs, sender, 0, 0)
    pushing_ns = _time_ns(inputs.plain_bytes, inputs.goodput_bps)
    return dataclasses.replace(
        paused,
        bytes=paused.bytes + round(inputs.plain_bytes),
        total_ns=paused.total_ns + round(pushing_ns),
    )


def _predict_hybrid(inputs: Inputs) -> Prediction:
    sender = _Sender(inputs)
    pending, left = inputs.first_bytes, 0.0
    for _ in range(inputs.precopy_rounds):
        pages = inputs.dirtied(sender.send(pending, inputs.round_ns))
        pending, left = pages * inputs.page_bytes, pages * (PAGE_BYTES + PAGE_HEAD_BYTES)
    sender.send_for(max(inputs.door_ns, inputs.round_trip_ns), 0)
    sender.drain()
    paused = _pause(inputs, sender, inputs.precopy_rounds, 0)
    return dataclasses.replace(
        paused,
        bytes=paused.bytes + round(left),
        total_ns=paused.total_ns + round(_time_ns(left, inputs.goodput_bps)),
    )


PREDICTORS: Final[Mapping[str, Callable[[Inputs], Prediction]]] = {
    "precopy": _predict_precopy,
    "stop-and-copy": _predict_stop_and_copy,
    "postcopy": _predict_postcopy,
    "hybrid": _predict_hybrid,
}


def predict(inputs: Inputs, mode: str = "precopy") -> Prediction | None:
    """What a migration of that mode will take; None for a mode that has no model."""
    predictor = PREDICTORS.get(mode)
    return None if predictor is None else predictor(inputs)
