"""Post-copy at the source (Hines and Gopalan, VEE 2009): the destination runs the guest first and gets its pages then.

Order: a second connection joins, the destination arms its skeleton (ADVISE, ARMED); the guest is paused; the numbers of
the missing pages and the device state cross; the destination takes over. From then on pages cross once each: those
that the guest waits for, on the connection of their own, at once; all others are pushed on the first connection, those
around a fault before the rest. One thread serves both, in pieces of about a millisecond of the link, and the push keeps
the queues on its way short (:class:`PushWindow`), so that a fault does not stand behind it. The bandwidth limit is the
push's; what is asked for is sent at once. Pages are neither compressed nor sent as deltas here.

When the network fails, the migration pauses (``postcopy-paused``): vCPUs that need a page wait. ``recover`` connects
anew, the destination says what it still misses, and the push goes on. What dies with a dead host:

- the source, its engine or its guest process: the pages that have not crossed yet. The guest at the destination cannot
  go on and ends with the run; the lease still says that it was there. The migration has failed, the guest is lost.
- the destination or its engine: the guest (and its processes with the engine, for nobody could answer their faults
  any more; no process ever goes on with zeros in place of a page). The source's copy is older than what clients have
  seen, so it is not resumed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.clock import NS_PER_MS, now_ns
from bench.errors import BenchError, MigrationError, WireError
from bench.memory.bitmap import Pages
from bench.migration import wire
from bench.migration.engine import reason_of
from bench.migration.pages import PageSender, Sent
from bench.migration.reader import FrameReader
from bench.migration.states import State
from bench.migration.transport import Connection, Pacer, PeerLost, chunk_pages
from bench.migration.wire import Kind

if TYPE_CHECKING:
    from bench.migration.session import Session

PUSH_NS: Final = NS_PER_MS  # a piece of the push
PUSH_PAGES: Final = (32, 64)  # and how many pages it has at least and at most
NEAR_BEFORE: Final = 8  # pages pushed first, around each fault
NEAR_AFTER: Final = 24
NEAR_REMEMBERED: Final = 256
QUEUE_NS: Final = NS_PER_MS  # what the push may add to the round trip


class PostCopy:
    """The mode: post-copy from the start."""

    name = "postcopy"

    def run(self, session: Session) -> None:
        switch_to_post_copy(session, "post-copy", everything=True)


def switch_to_post_copy(session: Session, reason: str, *, everything: bool = False) -> None:
    """Have the destination run the guest without the pages that are pending, and serve it those.

    :param everything: all pages, also those that were not pending.
    """
    server = PageServer(session)
    server.prepare()
    session.approach_pause(reason)
    if everything:
        session.pending.set_all()
    paused = session.pause_guest()
    session.collect()
    server.tell_missing()
    session.send_device_state(paused)
    session.hand_over(paused)
    server.run()


class PushWindow:
    """How much the push may have under way: so much that it fills the link and at most doubles its round
    trip (or adds :data:`QUEUE_NS` to a shorter one).

    As in TCP Vegas (Brakmo and Peterson, 1995) the queue is known by what the round trip has grown by.
    """

    LEAST: Final = 256 << 10
    MOST: Final = 16 << 20

    def __init__(self) -> None:
        self.bytes = 512 << 10

    def adapt(self, rtt_ns: int, min_rtt_ns: int) -> int:
        """Once in a while, at most once per round trip. :returns: the window from now on."""
        grown_ns, allowed_ns = rtt_ns - min_rtt_ns, max(QUEUE_NS, min_rtt_ns)
        if grown_ns > allowed_ns:
            self.bytes = max(self.LEAST, self.bytes * 3 // 4)
        elif grown_ns < allowed_ns * 3 // 4:
            self.bytes = min(self.MOST, self.bytes * 9 // 8)
        return self.bytes


class PageServer:
    """Serves the pages of one migration, from before the pause to the last one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._faults: Connection
        self._requests: FrameReader
        self._answers: PageSender
        self._push: PageSender
        self._window = PushWindow()
        self._adapted_ns = 0
        self._near: deque[int] = deque(maxlen=NEAR_REMEMBERED)
        self._total = 0
        self._began_ns = 0
        self._pushed = Sent()
        self._round = Sent()  # since the last connection began: what ROUND-END counts
        self._answered = Sent()
        self._requested = 0
        self._pauses = 0

    # before the destination owns the guest

    def prepare(self) -> None:
        """While the guest runs here: the connection for faults, and the destination's skeleton armed."""
        self._join_faults(self._session.connect("faults"))
        self._session.connection.send(wire.encode_json(Kind.ADVISE, {}))
        self._session.receive(Kind.ARMED)

    def tell_missing(self) -> None:
        """The guest is paused and will write nothing any more: what is pending now, the destination will miss."""
        session = self._session
        pages = session.pending.pages()
        self._total = len(pages)
        runs = wire.runs_of(pages) if len(pages) else np.empty((0, 2), dtype=np.uint32)
        for begin in range(0, len(runs), wire.MAX_ZERO_RUNS):
            session.connection.send(wire.encode_missing(runs[begin : begin + wire.MAX_ZERO_RUNS]))
        session.connection.send(wire.encode_listen(self._total))
        session.report("postcopy_listen", pages=self._total)
        session.serve_after_loss(self._go_on_after_loss)

    def _join_faults(self, connection: Connection) -> None:
        """Requests are served from now on whenever the first connection waits for anything."""
        session = self._session
        self._faults = connection
        self._requests = FrameReader(connection, (Kind.REQUEST,), session.memory.page_count)
        self._answers = PageSender(connection, session.memory, Pacer(0), session.order.levers.zero_pages)
        session.count_sender(self._answers)
        session.connection.watch(connection.fileno(), self._answer)

    # after that

    def run(self) -> None:
        """Until the destination has every page. :raises BenchError: when it never will."""
        session = self._session
        session.states.enter(State.POSTCOPY_ACTIVE)
        self._began_ns = now_ns()
        session.report("postcopy_begin", pages=self._total)
        lost = self._serve_once()
        while lost:
            self._pause(lost)
            lost = self._serve_once()
        self._end()

    def _go_on_after_loss(self, reason: str) -> None:
        """The destination owns the guest, and its confirmation was lost."""
        session = self._session
        session.states.enter(State.POSTCOPY_ACTIVE)
        self._began_ns = now_ns()
        session.report("postcopy_begin", pages=self._total)
        lost = reason
        while lost:
            self._pause(lost)
            lost = self._serve_once()
        self._end()

    def _serve_once(self) -> str:
        """Push until the destination has everything. :returns: why the network failed; empty at the end."""
        session = self._session
        try:
            self._push_all()
            complete = session.receive(Kind.COMPLETE)
        except (PeerLost, WireError) as error:
            return reason_of(error)
        session.outcome.cost["postcopy"] = {**complete.fields, **self._counts()}
        return ""

    def _push_all(self) -> None:
        session = self._session
        connection = session.connection
        limit_bps = session.order.limits.max_bandwidth_bps
        self._push = PageSender(connection, session.memory, Pacer(limit_bps), session.order.levers.zero_pages)
        session.count_sender(self._push)
        self._round = Sent()
        connection.set_link_timeout(session.order.link_timeout_ns)
        connection.limit_queue(self._window.bytes)
        acked_bytes, began_ns = connection.info().acked_bytes, now_ns()
        try:
            while len(pages := self._next_pages(self._chunk(connection, acked_bytes, began_ns, limit_bps))):
                self._push.send(pages, self._round)
                connection.check()
                self._adapt(connection)
                session.tell_progress(session.rounds + 1, began_ns, self._round, self._total)
        finally:
            self._add(self._round)
        connection.send(wire.encode_round_end(session.rounds + 1, self._round.pages))

    def _chunk(self, connection: Connection, acked_bytes: int, began_ns: int, limit_bps: int) -> int:
        elapsed_ns = now_ns() - began_ns
        rate = (connection.info().acked_bytes - acked_bytes) * 8 * 10**9 // max(1, elapsed_ns)
        if limit_bps:
            rate = min(rate or limit_bps, limit_bps)
        least, most = PUSH_PAGES
        return max(least, chunk_pages(rate if elapsed_ns > PUSH_NS else None, PUSH_NS, wire.PAGE_BYTES, most))

    def _adapt(self, connection: Connection) -> None:
        now = now_ns()
        if now - self._adapted_ns < 2 * QUEUE_NS:
            return
        info = connection.info()
        if now - self._adapted_ns >= info.rtt_ns:
            self._adapted_ns = now
            before = self._window.bytes
            if self._window.adapt(info.rtt_ns, info.min_rtt_ns) != before:
                connection.limit_queue(self._window.bytes)

    def _next_pages(self, limit: int) -> Pages:
        """What to push next: around the latest fault, else where the push was. Empty when nothing is left."""
        pending = self._session.pending
        while self._near:
            page = self._near[-1]
            first = max(0, page - NEAR_BEFORE)
            found = np.flatnonzero(pending.flags[first : page + NEAR_AFTER])[:limit] + first
            if len(found):
                pending.clear_pages(found)
                return found.astype(np.int64, copy=False)
            self._near.pop()
        return pending.take(limit)

    def _answer(self) -> None:
        """The connection for faults is readable: send what is asked for, unless it is on its way already."""
        pending = self._session.pending
        for frame, _payload in self._requests.ready():
            pages = frame.indices.astype(np.int64)
            self._requested += len(pages)
            wanted = pages[pending.flags[pages]]
            if len(wanted):
                pending.clear_pages(wanted)
                self._answers.send(wanted, self._answered)
            self._near.extend(pages.tolist())

    def _counts(self) -> dict[str, int]:
        return {
            "pages": self._pushed.pages + self._answered.pages,
            "zero_pages": self._pushed.zero_pages + self._answered.zero_pages,
            "pages_pushed": self._pushed.pages,
            "pages_on_demand": self._answered.pages,
            "pages_requested": self._requested,
            "pauses": self._pauses,
        }

    def _add(self, part: Sent) -> None:
        self._pushed.pages += part.pages
        self._pushed.zero_pages += part.zero_pages
        self._pushed.sent_bytes += part.sent_bytes

    def _end(self) -> None:
        session = self._session
        session.count_bytes(self._faults)
        session.connection.unwatch(self._faults.fileno())
        self._faults.close()
        session.report("postcopy_end", **session.outcome.cost["postcopy"])

    # a network that fails

    def _pause(self, reason: str) -> None:
        """Wait until the runner has us recover, and until that succeeded."""
        session = self._session
        session.states.enter(State.POSTCOPY_PAUSED)
        self._pauses += 1
        session.connection.unwatch(self._faults.fileno())
        session.count_bytes(self._faults)
        session.connection.abort()
        self._faults.abort()
        session.report("postcopy_paused", reason=reason, pages_left=len(session.pending))
        while True:
            session.wait_for_recover()
            session.states.enter(State.POSTCOPY_RECOVER)
            try:
                self._recover()
            except (BenchError, OSError) as error:
                session.states.enter(State.POSTCOPY_PAUSED)
                session.report("postcopy_recover_failed", reason=reason_of(error))
                continue
            session.states.enter(State.POSTCOPY_ACTIVE)
            session.report("postcopy_recovered", pages_left=len(session.pending))
            return

    def _recover(self) -> None:
        """Both connections anew; the destination knows what it misses, also of what was on its way."""
        session = self._session
        session.replace_connection(session.connect("main"))
        self._join_faults(session.connect("faults"))
        flags = np.zeros_like(session.pending.flags)
        while True:
            frame = session.receive(Kind.MISSING, Kind.LISTEN)
            if frame.kind is Kind.LISTEN:
                break
            for first, count in frame.runs.tolist():
                flags[first : first + count] = True
        if int(np.count_nonzero(flags)) != frame.value:
            raise MigrationError("the destination's list of missing pages is not whole")
        session.pending.clear()
        session.pending.flags[:] = flags
