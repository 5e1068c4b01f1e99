"""Rounds that arrive over several streams; see :mod:`bench.migration.streams`.

One thread reads whatever has arrived, each frame's payload straight to where it belongs, and waits for no stream in
particular. A stream that has ended its round is not read further before all have: so a page of a later round never
meets its older copy, and what is said at a round's end holds for all streams.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import WireError
from bench.migration import wire
from bench.migration.outlet import new_scratch
from bench.migration.pages import PageReceiver
from bench.migration.reader import HeadReader
from bench.migration.transport import Connection, PeerLost
from bench.migration.wire import Frame, Kind

STREAM_KINDS: Final = (*wire.TRANSFERS, Kind.ROUND_END)
LAST_WORDS_NS: Final = NS_PER_S  # for the source to say why a stream has ended


class Lane:
    """One stream's frames as they trickle in; never reads beyond a frame.

    :param kinds: what may come.
    :ivar ended: its ROUND-END while other streams have not ended that round.
    :ivar progress_ns: when it was readable last.
    """

    def __init__(self, number: int, connection: Connection, kinds: Sequence[Kind], receiver: PageReceiver) -> None:
        self.number = number
        self.connection = connection
        self.ended: Frame | None = None
        self.progress_ns = now_ns()
        self._heads = HeadReader(connection, kinds, receiver.page_count)
        self._receiver = receiver
        self._scratch = new_scratch()
        self._frame: Frame | None = None
        self._payload = memoryview(b"")
        self._left = self._payload
        self._pages = 0

    @property
    def inside_frame(self) -> bool:
        return self._frame is not None or self._heads.inside

    def step(self) -> Frame | None:
        """Read what has arrived, to the end of a frame at most.

        :returns: a frame that has just become whole, its pages placed, or None. The payload of one that is no transfer
            is still in the stream.
        :raises PeerLost, WireError: when the stream ended, or is none of the grammar's.
        """
        self.progress_ns = now_ns()
        if self._frame is None:
            self._frame = self._heads.next()
            if self._frame is None:
                return None
            self._payload = memoryview(b"")
            if self._frame.kind in wire.TRANSFERS:
                self._payload = self._receiver.room(self._frame, self._scratch)
            self._left = self._payload
        while self._left:
            count = self.connection.read_available(self._left)
            if not count:
                self.connection.expect(len(self._left))
                return None
            self._left = self._left[count:]
        self.connection.expect(1)
        frame, self._frame = self._frame, None
        if frame.kind in wire.TRANSFERS:
            self._receiver.settle(frame, self._payload)
            self._pages += frame.pages
        return frame

    def check_pages(self, frame: Frame) -> None:
        """:raises WireError: when this stream's ROUND-END counts other pages than came over it."""
        if frame.value != self._pages:
            raise WireError(
                f"stream {self.number}: round {frame.count}: {self._pages} pages arrived, {frame.value} were sent"
            )

    def release(self) -> None:
        """All streams have ended the round."""
        self.ended = None
        self._pages = 0


class Lanes:
    """All streams of one migration.

    :param connections: the migration's own one first.
    :param watched: other descriptors to serve meanwhile, and by what.
    :param silence_ns: how long the source may send nothing at all between two frames.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        receiver: PageReceiver,
        watched: dict[int, Callable[[], None]],
        silence_ns: int,
    ) -> None:
        self._main, *self._beside = [
            Lane(number, connection, STREAM_KINDS if number > 1 else wire.TO_DESTINATION, receiver)
            for number, connection in enumerate(connections, 1)
        ]
        self._watched = watched
        self._silence_ns = silence_ns
        self._lost: Exception | None = None
        self._last_words: Deadline | None = None

    def next(self) -> Frame:
        """The next frame of the migration's own connection that is no transfer, everything before it being placed.

        A ROUND-END counts when all streams have ended that round.

        :raises PeerLost, WireError: when a stream was lost, unless the source says why (by a frame that is returned).
        """
        while True:
            if self._main.ended is not None and self._lost is None and all(lane.ended for lane in self._beside):
                return self._end_round()
            for lane in self._ready():
                frame = self._step(lane)
                if frame is None or frame.kind in wire.TRANSFERS:
                    continue
                if frame.kind is not Kind.ROUND_END:
                    return frame
                lane.ended = frame

    def _end_round(self) -> Frame:
        frame = self._main.ended
        assert frame is not None
        for lane in self._beside:
            assert lane.ended is not None
            if lane.ended.count != frame.count:
                raise WireError(f"stream {lane.number} ended round {lane.ended.count}, the first one {frame.count}")
            lane.check_pages(lane.ended)
        for lane in (self._main, *self._beside):
            lane.release()
        return frame

    def _step(self, lane: Lane) -> Frame | None:
        """As :meth:`Lane.step`; a stream that is lost leaves the source a moment to say why."""
        try:
            return lane.step()
        except (PeerLost, WireError) as error:
            named = type(error)(f"stream {lane.number}: {error.message}")
            if lane is self._main:
                raise (self._lost or named) from error
            if self._lost is None:
                self._lost, self._last_words = named, Deadline(LAST_WORDS_NS)
            return None

    @property
    def readable(self) -> list[Lane]:
        """The streams that may be read now: not those that have ended the round before others did."""
        if self._lost is not None:
            return [self._main]
        return [lane for lane in (self._main, *self._beside) if lane.ended is None]

    def _ready(self) -> list[Lane]:
        """Wait until there is something to read, serving what is watched beside. :returns: the streams that have it."""
        lanes = self.readable
        poll = select.poll()
        by_fd = {lane.connection.fileno(): lane for lane in lanes}
        for fd in (*by_fd, *self._watched):
            poll.register(fd, select.POLLIN)
        buffered = [lane for lane in lanes if lane.connection.buffered]
        found = poll.poll(0 if buffered else max(0, self._until_ns(lanes) - now_ns()) // NS_PER_MS + 1)
        for fd, events in found:
            if events & select.POLLNVAL:  # or it would be readable for ever
                raise ValueError(f"descriptor {fd} was closed while streams were waited for")
            if fd in self._watched:
                self._watched[fd]()
        if not found and not buffered:
            trickling = [lane for lane in lanes if self._due_ns(lane) <= now_ns() and lane.connection.arrived]
            if trickling:  # less than was expected
                return trickling
            self._check_time(lanes)
        readable = [by_fd[fd] for fd, _events in found if fd in by_fd]
        return readable + [lane for lane in buffered if lane not in readable]

    def _due_ns(self, lane: Lane) -> int:
        """When a stream of which nothing arrives counts as dead."""
        timeout_ns = lane.connection.link_timeout_ns
        if lane.inside_frame:
            return lane.progress_ns + timeout_ns
        ends_ns = [other.progress_ns for other in (self._main, *self._beside) if other.ended is not None]
        return max(ends_ns) + timeout_ns if ends_ns else lane.progress_ns + self._silence_ns

    def _until_ns(self, lanes: Sequence[Lane]) -> int:
        if self._last_words is not None:
            return self._last_words.at_ns
        return min(self._due_ns(lane) for lane in lanes)

    def _check_time(self, lanes: Sequence[Lane]) -> None:
        if self._lost is not None and self._last_words is not None and self._last_words.expired:
            raise self._lost
        now = now_ns()
        late = [lane for lane in lanes if self._due_ns(lane) <= now]
        if late:
            numbers = ", ".join(str(lane.number) for lane in late)
            seconds = late[0].connection.link_timeout_ns / NS_PER_S
            raise PeerLost(f"stream {numbers}: nothing arrived within {seconds:g} s")
