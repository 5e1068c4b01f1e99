"""Post-copy at the destination: the guest runs, and its missing pages come; see :mod:`bench.migration.postcopy`.

One thread serves, in this order: faults of the guest (asks the source for the page), pages that were asked for, pages
that are pushed. Each turn is short, so that a fault waits for little. While a command to the guest is under way, which
can itself need a page, the command waits in a thread of its own (:meth:`PostCopyArrival.beside`).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from bench.clock import NS_PER_S, Deadline
from bench.errors import GuestError, MigrationError, WireError
from bench.memory.bitmap import Pages
from bench.memory.image import WORDS_PER_PAGE
from bench.memory.pager import Pager
from bench.migration import wire
from bench.migration.engine import reason_of
from bench.migration.reader import FrameReader
from bench.migration.transport import Connection, PeerClosed, PeerLost
from bench.migration.wire import Frame, Kind

if TYPE_CHECKING:
    from bench.migration.arrival import Arrival

JOIN_NS: Final = 30 * NS_PER_S  # for the source's second connection
PAGE_FRAMES: Final = (Kind.RUN, Kind.PAGES, Kind.ZERO)

T = TypeVar("T")


class PostCopyArrival:
    """The post-copy part of one arrival, from ADVISE on."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._pager: Pager
        self._faults: Connection | None = None
        self._fault_pages: FrameReader
        self._pushed: FrameReader | None = None
        self._round_pages = 0
        self._recoverable = False
        self._ended = False

    # before the guest runs

    def arm(self) -> None:
        """The source's connection for faults joins; every process of the skeleton waits for pages from now on."""
        arrival = self._arrival
        deadline = Deadline(JOIN_NS)
        while self._faults is None:
            entrant = arrival.door.wait(deadline, arrival.channel_fd, arrival.serve_channel)
            if entrant is None:
                raise MigrationError("the source's connection for faults did not come")
            if entrant.frame.fields.get("role") == "faults":
                self._use_for_faults(arrival.admit(entrant))
            else:
                entrant.connection.close()
        self._pager = Pager(arrival.guest.expect_pages(), arrival.memory, arrival.hashes)
        arrival.stack.callback(self._pager.close)
        arrival.connection.send(wire.encode_json(Kind.ARMED, {}))

    def miss(self, frame: Frame) -> None:
        """A MISSING frame."""
        for first, count in frame.runs.tolist():
            self._pager.forget(first, count)

    def listen(self, frame: Frame) -> None:
        """All of them are known: faults are answered from now on, whatever this engine waits for."""
        if self._pager.left != frame.value:
            raise WireError(f"LISTEN: {frame.value} pages are missing, {self._pager.left} were named")
        for fd in self._pager.filenos:
            self._arrival.connection.watch(fd, self._on_fault)
        assert self._faults is not None
        self._arrival.connection.watch(self._faults.fileno(), self._on_fault_pages)

    def beside(self, work: Callable[[], T]) -> T:
        """Do *work*, a command to the guest, and answer the guest's faults meanwhile."""
        done, finished = os.pipe()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                os.close(finished)

        threading.Thread(target=run, daemon=True).start()
        try:
            while not self._turn(extra=done):
                pass
        finally:
            os.close(done)
        if errors:
            raise errors[0]
        return results[0]

    # while it runs

    def take_beside(self, work: Callable[[], T]) -> T:
        """As :meth:`beside` for the command by which ownership passes: a network that fails does not end it."""
        for fd in self._pager.filenos:
            self._arrival.connection.unwatch(fd)
        if self._faults is not None:
            self._arrival.connection.unwatch(self._faults.fileno())
        self._recoverable = True
        return self.beside(work)

    def run(self, resumed_ns: int) -> None:
        """Until every page is here and the source knows.

        :raises BenchError: when the guest is lost.
        """
        arrival = self._arrival
        arrival.report("postcopy_begin", resumed_ns, pages=self._pager.left)
        self._use_for_pages(arrival.connection)
        self._tell({Kind.TAKEN: {"resumed_ns": resumed_ns}})
        while self._pager.left:
            self._turn(guest=True)
        arrival.report("postcopy_complete")
        self.beside(arrival.guest.end_expecting)
        stats = self._stats()
        self._pager.close()
        self._tell(self._last_words(stats))
        while not self._ended:
            told = arrival.connection
            self._turn()
            if arrival.connection is not told:  # a new one: perhaps the old one lost them
                self._tell(self._last_words(stats))

    def _last_words(self, stats: dict[str, Any]) -> dict[Kind, dict[str, Any]]:
        words: dict[Kind, dict[str, Any]] = {Kind.COMPLETE: stats}
        if self._arrival.hashes is not None:
            words[Kind.DIGEST] = {"digest": self._arrival.hashes.digest()}
        return words

    def _tell(self, words: dict[Kind, dict[str, Any]]) -> None:
        try:
            for kind, fields in words.items():
                self._arrival.connection.send(wire.encode_json(kind, fields))
        except PeerLost as error:
            self._lose(error)

    def _stats(self) -> dict[str, Any]:
        pager = self._pager
        return {
            "faults": pager.faults,
            "zero_faults": pager.zero_faults,
            "duplicates": pager.duplicates,
            "fault_latency": pager.times.to_json(),
        }

    # one turn

    def _turn(self, *, extra: int = -1, guest: bool = False) -> bool:
        """Wait until something happens, and serve it.

        :param extra: one more descriptor to wait for; *guest*: notice the guest's end as well.
        :returns: whether *extra* is readable.
        """
        arrival = self._arrival
        poll = select.poll()
        uffds = self._pager.filenos
        pushed = -1 if self._pushed is None else self._pushed.connection.fileno()
        faults = -1 if self._faults is None else self._faults.fileno()
        guest_fd = arrival.guest.channel.fileno() if guest else -1
        door = arrival.door.fileno() if self._recoverable else -1
        channel = arrival.channel_fd
        for fd in (*uffds, pushed, faults, guest_fd, door, channel, extra):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        buffered = {connection.fileno() for connection in self._connections() if connection.buffered}
        entrants = self._recoverable and arrival.door.waiting
        ready = buffered | {fd for fd, _events in poll.poll(0 if buffered or entrants else None)}
        try:
            if not ready.isdisjoint(uffds):
                self._on_fault()
            if faults in ready:
                self._on_fault_pages()
            if pushed in ready:
                self._on_pushed()
        except (PeerLost, WireError) as error:
            if not self._recoverable:
                raise
            self._lose(error)
        if door in ready or entrants:
            self._on_door()
        if channel in ready:
            arrival.serve_channel()
        if guest_fd in ready:
            raise GuestError("the guest died while pages were missing")
        return extra in ready

    def _on_fault(self) -> None:
        self._request(self._pager.read_faults())

    def _request(self, pages: list[int]) -> None:
        if self._faults is None:
            return  # asked for again when there is a connection
        numbers = np.array(sorted(pages), dtype=np.uint32)
        for begin in range(0, len(numbers), wire.MAX_FRAME_PAGES):
            self._faults.send(wire.encode_request(numbers[begin : begin + wire.MAX_FRAME_PAGES]))

    def _on_fault_pages(self) -> None:
        for frame, payload in self._fault_pages.ready():
            self._install(frame, payload)

    def _on_pushed(self) -> None:
        assert self._pushed is not None
        for frame, payload in self._pushed.ready():
            if frame.kind is Kind.ERROR:
                raise MigrationError(f"the source failed: {str(frame.fields.get('reason', ''))[:1000]}")
            if frame.kind is Kind.ROUND_END:
                if frame.value != self._round_pages:
                    raise WireError(f"{self._round_pages} pages were pushed here, {frame.value} there")
            else:
                self._round_pages += frame.pages
                self._install(frame, payload)

    def _install(self, frame: Frame, payload: memoryview) -> None:
        if frame.kind is Kind.ZERO:
            for first, count in frame.runs.tolist():
                self._pager.install_zero(first, count)
            return
        if frame.kind is Kind.RUN:
            pages: Pages = np.arange(frame.value, frame.value + frame.count, dtype=np.int64)
        else:
            pages = frame.indices.astype(np.int64)
        rows = np.frombuffer(payload, dtype=np.uint64).reshape(-1, WORDS_PER_PAGE)
        self._pager.install(pages, rows)

    # connections

    def _connections(self) -> list[Connection]:
        pushed = [] if self._pushed is None else [self._pushed.connection]
        return pushed if self._faults is None else [*pushed, self._faults]

    def _use_for_faults(self, connection: Connection) -> None:
        self._faults = connection
        self._fault_pages = FrameReader(connection, PAGE_FRAMES, self._arrival.memory.page_count)

    def _use_for_pages(self, connection: Connection) -> None:
        kinds = (*PAGE_FRAMES, Kind.ROUND_END, Kind.ERROR)
        self._pushed = FrameReader(connection, kinds, self._arrival.memory.page_count)
        self._round_pages = 0

    def _lose(self, error: Exception) -> None:
        """The network failed, or the source closed: nothing comes until it connects anew."""
        if not self._pager.left and isinstance(error, PeerClosed):
            self._ended = True  # it has closed after the last page
        elif self._pushed is not None or self._faults is not None:
            self._arrival.report("postcopy_paused", reason=reason_of(error), pages_left=self._pager.left)
        self._drop()

    def _drop(self) -> None:
        if self._pushed is not None:
            self._pushed.connection.abort()
            self._pushed = None
        if self._faults is not None:
            self._faults.abort()
            self._faults = None

    def _on_door(self) -> None:
        """Somebody is at the door; the source comes in."""
        door = self._arrival.door
        door.serve()
        while (entrant := door.take()) is not None:
            connection, role = self._arrival.admit(entrant), entrant.frame.fields.get("role")
            try:
                if role == "main":
                    self._drop()  # whatever there is, the source has given it up
                    self._arrival.use_connection(connection)
                    self._use_for_pages(connection)
                    self._say_missing(connection)
                elif role == "faults":
                    self._use_for_faults(connection)
                    self._request(list(self._pager.waiting))
                    self._arrival.report("postcopy_recovered", pages_left=self._pager.left)
                else:
                    connection.close()
            except PeerLost as error:
                self._lose(error)

    def _say_missing(self, connection: Connection) -> None:
        pages = self._pager.missing.pages()
        if len(pages):
            runs = wire.runs_of(pages)
            for begin in range(0, len(runs), wire.MAX_ZERO_RUNS):
                connection.send(wire.encode_missing(runs[begin : begin + wire.MAX_ZERO_RUNS]))
        connection.send(wire.encode_listen(len(pages)))
