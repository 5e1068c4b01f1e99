"""The pages of rounds over several connections at once: QEMU's multifd channels, with one thread.

The first stream is the migration's own connection, which carries everything else as well; the others begin with JOIN
and carry nothing but transfers and ROUND-ENDs. Any transfer of a round may take any stream: it takes one whose socket
has room, the one that carried least in the round before others. So a stream that is slow, or lost a segment, holds up
only what it has already, and the streams need not be equally fast.

What orders the copies of a page is the round's end, as in QEMU's multifd sync: every stream is sent a ROUND-END with
the pages that it carried, the first one that of all, and the destination places nothing of a round before all of them
have ended the one before (:mod:`bench.migration.streams_arrival`). Within a round a page is sent once. No stream ever
waits for another at this side.

One thread is enough: sending is copying into sockets, and whoever copies faster than the links carry only waits.
"""

from __future__ import annotations

import contextlib
import functools
import select
from collections.abc import Sequence
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import WireError
from bench.memory.image import Words
from bench.migration import wire
from bench.migration.outlet import new_scratch
from bench.migration.pieces import Part, Piece, bytes_of
from bench.migration.transport import NOTSENT_BYTES, Connection, PeerLost, TransportInfo

_LEAST_NOTSENT_BYTES: Final = 128 << 10


class Stream:
    """One connection, and what still has to leave through it before anything else can.

    :param free: where scratch room is put back once it has left.
    :ivar pages: carried in this round; *all_pages* and *all_bytes* in all.
    """

    def __init__(self, number: int, connection: Connection, free: list[Words]) -> None:
        self.number = number
        self.connection = connection
        self.pages = 0
        self.all_pages = 0
        self.all_bytes = 0
        self._free = free
        self._scratch: Words | None = None
        self._pieces: list[Piece] = []
        self._progress_ns = 0

    @property
    def idle(self) -> bool:
        """Whether it can take another frame."""
        return not self._pieces

    @property
    def due_ns(self) -> int:
        """When it counts as dead, if it has not taken anything by then; CLOCK_MONOTONIC."""
        return self._progress_ns + self.connection.link_timeout_ns

    def take(self, parts: Sequence[Part], scratch: Words | None = None) -> int:
        """Send these frames next, as far as possible at once. :returns: their bytes.

        :param scratch: what *parts* may refer to; only while :attr:`idle`.
        """
        if self.idle:
            self._scratch = scratch
            self._progress_ns = now_ns()
        self._pieces += self.connection.prepare(parts)
        total = bytes_of(parts)
        self.all_bytes += total
        self.flush()
        return total

    def flush(self) -> None:
        """Send what the socket takes of what is left. :raises PeerLost: naming the stream."""
        try:
            while self._pieces and self.connection.send_available(self._pieces):
                self._progress_ns = now_ns()
        except PeerLost as error:
            self.connection.broken = True
            raise PeerLost(f"stream {self.number}: {error.message}") from error
        self.connection.broken = bool(self._pieces)
        if self._scratch is not None and not self._pieces:
            self._free.append(self._scratch)
            self._scratch = None


class Streams:
    """An :class:`bench.migration.outlet.Outlet` over several connections.

    :param connections: the migration's own one first; its watchers are served whenever this waits.
    :param joined_ns: how long it took the others to join.
    """

    def __init__(self, connections: Sequence[Connection], joined_ns: int = 0) -> None:
        self.count = len(connections)
        self._free = [new_scratch() for _ in range(self.count + 1)]  # one for each stream, and one to be filled
        self._lent: Words | None = None
        self._streams = [Stream(number, each, self._free) for number, each in enumerate(connections, 1)]
        self._first = connections[0]
        self._joined_ns = joined_ns
        self._writable: list[Stream] = []
        self._open = True
        self._last_infos = [TransportInfo(0, 0, 0, 0, 0)] * self.count
        for stream in self._streams:
            stream.connection.limit_unsent(max(_LEAST_NOTSENT_BYTES, NOTSENT_BYTES // self.count))
        for stream in self._streams[1:]:
            self._first.watch(stream.connection.fileno(), functools.partial(self._on_readable, stream))

    # sending

    def scratch(self) -> Words:
        if self._lent is None:
            self._lent = self._free.pop()
        return self._lent

    def send(self, parts: Sequence[Part], pages: int) -> int:
        stream = self._next_stream()
        stream.pages += pages
        stream.all_pages += pages
        scratch, self._lent = self._lent, None
        return stream.take(parts, scratch)

    def pause(self, deadline: Deadline) -> None:
        while not deadline.expired:
            self._wait(deadline.at_ns)

    def end_round(self, number: int, pages: int) -> int:
        ends = [stream.take([wire.encode_round_end(number, stream.pages)]) for stream in self._streams[1:]]
        ends.append(self._streams[0].take([wire.encode_round_end(number, pages)]))
        while not all(stream.idle for stream in self._streams):
            self._wait()
        for stream in self._streams:
            stream.pages = 0
        return sum(ends)

    def set_link_timeout(self, link_timeout_ns: int) -> None:
        for stream in self._streams:
            stream.connection.set_link_timeout(link_timeout_ns)

    def hurry(self) -> None:
        for stream in self._streams:
            stream.connection.hurry()

    def abandon(self) -> None:
        first = self._streams[0]
        self.close()
        while not first.idle:
            self._first.wait(select.POLLOUT, Deadline(self._first.link_timeout_ns), "the frame under way")
            first.flush()

    def close(self) -> None:
        if self._open:
            self._open = False
            for stream in self._streams:
                with contextlib.suppress(OSError):  # the first may be closed already
                    self._last_infos[stream.number - 1] = stream.connection.info()
            for stream in self._streams[1:]:
                self._first.unwatch(stream.connection.fileno())
                stream.connection.abort()

    # waiting

    def _next_stream(self) -> Stream:
        """One that can take a frame, and whose socket takes some of it at once."""
        while not self._writable:
            self._wait(new=True)
        stream = min(self._writable, key=lambda stream: stream.pages)
        self._writable.remove(stream)
        return stream

    def _wait(self, until_ns: int | None = None, *, new: bool = False) -> None:
        """Wait until a socket takes something of what is left, a watcher of the first connection has something to do,
        or the time is up.

        :param new: until an idle stream's socket has room, too.
        :raises PeerLost: when a stream is dead, or :attr:`Connection.give_up` passed.
        """
        begin_ns = now_ns()
        waiting = [stream for stream in self._streams if not stream.idle]
        dead_ns = min((stream.due_ns for stream in waiting), default=begin_ns + self._first.link_timeout_ns)
        ends = [dead_ns]
        if until_ns is not None:
            ends.append(until_ns)
        if self._first.give_up is not None:
            ends.append(self._first.give_up.at_ns)
        outputs = self._streams if new else waiting
        ready = self._select(outputs, max(0, min(ends) - begin_ns))
        self._writable = [stream for stream in ready if stream.idle]
        for stream in ready:
            stream.flush()
        self._check_time(waiting, dead=not ready and new and dead_ns <= now_ns())

    def _select(self, outputs: Sequence[Stream], timeout_ns: int) -> list[Stream]:
        """Wait for room in the sockets of *outputs*, serving the watchers. :returns: those that have some."""
        watched = self._first.watchers
        # not poll, whose timeout is in ms: pacing needs it finer
        readable, writable, _ = select.select(
            list(watched), [stream.connection for stream in outputs], [], timeout_ns / NS_PER_S
        )
        for fd in readable:
            watched[fd]()
        return [stream for stream in outputs if stream.connection in writable]

    def _check_time(self, waiting: Sequence[Stream], dead: bool) -> None:
        if self._first.give_up is not None and self._first.give_up.expired:
            raise PeerLost("sending to the other engine: given up")
        now = now_ns()
        late = [str(stream.number) for stream in waiting if not stream.idle and stream.due_ns <= now]
        if late or dead:
            seconds = self._first.link_timeout_ns / NS_PER_S
            raise PeerLost(f"stream {', '.join(late) or 'of any number'}: nothing could be sent for {seconds:g} s")

    def _on_readable(self, stream: Stream) -> None:
        """The destination sends nothing here but the end of the connection."""
        try:
            if stream.connection.read_available(memoryview(bytearray(1))):
                raise WireError(f"stream {stream.number}: the destination sent something")
        except PeerLost as error:
            raise PeerLost(f"stream {stream.number}: {error.message}") from error

    # knowing

    def info(self) -> TransportInfo:
        infos = [stream.connection.info() for stream in self._streams]
        return TransportInfo(
            acked_bytes=sum(info.acked_bytes for info in infos),
            queued_bytes=sum(info.queued_bytes for info in infos),
            rtt_ns=max(info.rtt_ns for info in infos),
            min_rtt_ns=min(info.min_rtt_ns for info in infos),
            retransmits=sum(info.retransmits for info in infos),
        )

    @property
    def bytes_beside(self) -> int:
        return sum(stream.connection.sent_bytes for stream in self._streams[1:])

    def cost(self) -> dict[str, Any]:
        self.close()
        return {
            "streams": {
                "count": self.count,
                "bytes": [stream.all_bytes for stream in self._streams],
                "pages": [stream.all_pages for stream in self._streams],
                "retransmits": [info.retransmits for info in self._last_infos],
                "window_limited_ns": [info.window_limited_ns for info in self._last_infos],
                "joined_ns": self._joined_ns,
            }
        }
