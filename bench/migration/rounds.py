"""Rounds: passes over the pages that have to be sent, and what they teach about the link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.migration import policy, wire
from bench.migration.departure import DepartingGuest
from bench.migration.engine import Reporter
from bench.migration.order import Order
from bench.migration.outlet import Outlet
from bench.migration.packing import make_sender
from bench.migration.pages import Sent
from bench.migration.peer import Peer
from bench.migration.policy import Progress, Step
from bench.migration.throttle import Throttler
from bench.migration.transport import Pacer, chunk_pages

CHUNK_NS: Final = 10 * NS_PER_MS  # how long sending one piece may take: a cancel waits for no more
PROGRESS_NS: Final = 200 * NS_PER_MS
DRAIN_NS: Final = 100 * NS_PER_MS  # what waits in the socket of a link of 100 Mbit/s


class Until(Protocol):
    """What a round may last until: a :class:`bench.clock.Deadline`, or something that happens."""

    @property
    def expired(self) -> bool: ...


class Rounds:
    """The rounds of one migration.

    :param outlet: where their pages leave.
    :ivar count: rounds done.
    :ivar sender: sends their pages.
    """

    def __init__(self, order: Order, guest: DepartingGuest, peer: Peer, outlet: Outlet, report: Reporter) -> None:
        self.count = 0
        self.sender = make_sender(outlet, guest.memory, Pacer(order.limits.max_bandwidth_bps), order.levers)
        self._outlet = outlet
        self._order = order
        self._guest = guest
        self._peer = peer
        self._report = report
        self._estimate = policy.BandwidthEstimate()
        self._began_ns = 0
        self._progress_ns = 0
        self._least_bytes: int | None = None

    def begin(self) -> None:
        """The time for them runs from now on."""
        self._began_ns = now_ns()

    def send(self, *, paused: bool, until: Until | None = None, first: Callable[[], object] | None = None) -> None:
        """One round of what is pending, or a piece of it and as many more as fit before *until*, and the collect that
        ends it.

        While paused the collect comes first: from then on nothing writes.

        :param first: while paused: what is sent between FINAL and the pages.
        :raises Cancelled: when the runner asked for it and the guest still runs.
        """
        connection, pending = self._peer.connection, self._guest.pending
        self.count += 1
        self.sender.begin_round(self.count)
        begin_ns = now_ns()
        if paused:
            self._guest.collect()
            connection.send(wire.encode_final(self.count))
            if first is not None:
                first()
        else:
            self._report("round_begin", begin_ns, round=self.count)
        acked_bytes = self._outlet.info().acked_bytes
        sent = Sent()
        pages = pending.pages()
        pending.clear()
        while sent.pages < len(pages) and not (sent.pages and until and until.expired):
            self.sender.send(pages[sent.pages : sent.pages + self._chunk_pages()], sent)
            connection.check()
            if not paused:
                self._peer.check()
                self._throttler.during_round(self._guest.tracker)
            self.tell_progress(self.count, begin_ns, sent, len(pages))
        self.sender.end_round()
        pending.set_pages(pages[sent.pages :])
        sent.sent_bytes += self._outlet.end_round(self.count, sent.pages)
        if paused:
            self._report("final_pages_sent", pages=sent.pages)
        if not paused and (until or self._order.limits.downtime_limit_ns is None):
            # What still waits in the socket at the pause is downtime as well, and a round of few pages ends long before
            # they have crossed: collect when they have.
            self.drain()
        self._account(acked_bytes, begin_ns)
        queued_bytes = self._outlet.info().queued_bytes
        if not paused:
            dirty_pages = self._guest.collect()
            self._throttler.after_round(dirty_pages * wire.PAGE_BYTES, sent.sent_bytes, now_ns())
        self._report(
            "round_end",
            round=self.count,
            pages=sent.pages,
            zero_pages=sent.zero_pages,
            bytes_sent=sent.sent_bytes,
            dirty_pages_after=len(pending),
            start_ns=begin_ns,
            end_ns=now_ns(),
            paused=paused,
            bandwidth_bps=self._estimate.bps,
            queued_bytes=queued_bytes,
        )

    def decide(self) -> Step:
        """The policy's decision on where this migration stands now."""
        pending = self._guest.pending
        remaining = self.sender.expected_bytes(len(pending)) + self._outlet.info().queued_bytes
        elapsed_ns = now_ns() - self._began_ns
        bandwidth_bps = self._estimate.bps
        if not len(pending):
            remaining = 0 if bandwidth_bps is None else remaining
        progress = Progress(remaining, bandwidth_bps, self.count, elapsed_ns, self._least_bytes)
        self._least_bytes = min(remaining, remaining if self._least_bytes is None else self._least_bytes)
        return self._throttler.decided(policy.next_step(progress, self._order.limits))

    def unpace(self) -> None:
        """From now on the bandwidth limit does not hold."""
        self.sender.pacer = Pacer(0)

    def tell_progress(self, number: int, begin_ns: int, sent: Sent, pages: int) -> None:
        """Now and then: how far round *number* is, of which *pages* were to be sent."""
        now = now_ns()
        if now - self._progress_ns < PROGRESS_NS:
            return
        self._progress_ns = now
        self._report.progress(
            "round_progress",
            round=number,
            pages_left=pages - sent.pages,
            bytes_sent=self._peer.bytes_sent,
            rate_bps=sent.sent_bytes * 8 * NS_PER_S // max(1, now - begin_ns),
        )

    @property
    def _throttler(self) -> Throttler:
        assert self._guest.throttler is not None
        return self._guest.throttler

    def _account(self, acked_bytes: int, begin_ns: int) -> None:
        """Feed the bandwidth estimate with what was delivered since the round began.

        By the wall clock: what this engine's own work costs, it will cost in the final copy as well.
        """
        self._estimate.add(self._outlet.info().acked_bytes - acked_bytes, now_ns() - begin_ns)

    def drain(self) -> None:
        """Wait until all that was sent is acknowledged, up to :data:`DRAIN_NS`; serve what is watched meanwhile."""
        deadline = Deadline(DRAIN_NS)
        while self._outlet.info().queued_bytes and not deadline.expired:
            # the kernel tells nobody when the last acknowledgement came
            self._outlet.pause(Deadline(min(NS_PER_MS // 4, deadline.remaining_ns)))

    def _chunk_pages(self) -> int:
        """So many pages that neither the link nor the pacing holds them for longer than :data:`CHUNK_NS`."""
        rate = self._estimate.bps or self._early_rate()
        limit = self._order.limits.max_bandwidth_bps
        if limit:
            rate = min(rate or limit, limit)
        if rate:
            rate = max(1, rate // self._outlet.count)  # of one stream, when all are busy
        most = wire.MAX_RUN_PAGES if self._outlet.count == 1 else wire.MAX_FRAME_PAGES  # streams take turns by frames
        return self.sender.batch_pages(chunk_pages(rate, CHUNK_NS, wire.PAGE_BYTES, most))

    def _early_rate(self) -> int | None:
        """What the first round has reached so far."""
        elapsed_ns = now_ns() - self._began_ns
        if elapsed_ns < CHUNK_NS:
            return None
        return max(1, self._peer.bytes_sent * 8 * NS_PER_S // elapsed_ns)
