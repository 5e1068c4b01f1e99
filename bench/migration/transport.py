"""The TCP connection between the two engines, across the emulated network.

Sending never blocks in the kernel: it waits in one poll together with whatever else the engine must notice (its command
channel), so that a cancel is seen while a slow link is full. Receiving blocks, with MSG_WAITALL straight into guest
memory. A peer or a link that is dead ends in :class:`PeerLost`: data that nobody acknowledges by TCP_USER_TIMEOUT
(RFC 5482), an idle connection by keepalive (tcp(7)), a peer that is alive but silent by a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import MigrationError, WireError
from bench.flows.tcp_options import TCP_RTO_MIN_US
from bench.migration.pieces import Part, Piece, pieces_of, send_some, views_of

# Measured through the userspace switch, 512 MiB, three runs: unshaped CUBIC reached 4.8 to 5.7 Gbit/s, BBR 3.0 to 3.4;
# at htb 1 Gbit/s the two are alike (0.90 to 0.94 and 0.85 to 0.92).
CONGESTION_CONTROL: Final = "cubic"
LINK_TIMEOUT_NS: Final = 10 * NS_PER_S
NOTSENT_BYTES: Final = 1 << 20  # what may wait in the socket beyond the congestion window: it delays the final copy
WAKE_BYTES: Final = 128 << 10  # of a payload that is awaited: a reader that wakes for less costs more than it gains
AT_ONCE_BYTES: Final = 256 << 10  # read by one call, which acknowledges what it took at its end
BACKLOG: Final = 128
HURRIED_US: Final = 20_000  # two ticks of a kernel of 100 Hz, the least that it takes
_KEEPALIVES: Final = 3
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h

# Descriptors, and what serves each when it is readable; that may raise, which ends a wait beside which it is served.
Watched: TypeAlias = Mapping[int, Callable[[], None]]


class PeerLost(MigrationError):
    """The connection to the other engine is gone: closed, reset, timed out, unreachable."""


class PeerClosed(PeerLost):
    """The other engine closed the connection."""


@dataclass(frozen=True, slots=True)
class TransportInfo:
    """What the kernel knows of the connection (struct tcp_info of linux/tcp.h).

    :param acked_bytes: delivered so far.
    :param queued_bytes: written to the socket and not acknowledged yet.
    :param rtt_ns: smoothed round trip, with the queues that this connection's own data builds up.
    :param min_rtt_ns: the shortest round trip of the last minutes.
    :param retransmits: segments sent again so far.
    :param window_limited_ns: how long nothing could be sent because the receiver's window was full.
    """

    acked_bytes: int
    queued_bytes: int
    rtt_ns: int
    min_rtt_ns: int
    retransmits: int
    window_limited_ns: int = 0


class Connection:
    """One end. Not thread-safe.

    :param sock: a connected TCP socket; the connection owns it.
    :param link_timeout_ns: how long a link may deliver nothing before it counts as dead.
    :ivar sent_bytes: written so far.
    :ivar give_up: when this passes, a wait ends in :class:`PeerLost` whatever its own deadline is.
    :ivar broken: a piece was sent in part only, so that no other can follow.
    :cvar takes_files: whether stretches of files leave as such; a subclass whose carrier has to see bytes says no.
    """

    takes_files: ClassVar[bool] = True

    def __init__(self, sock: socket.socket, link_timeout_ns: int = LINK_TIMEOUT_NS) -> None:
        self.sock = sock
        self.link_timeout_ns = link_timeout_ns
        self.sent_bytes = 0
        self.give_up: Deadline | None = None
        self.broken = False
        self._expected = 1
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        sock.setblocking(True)
        self.tune()

    @classmethod
    def connect(
        cls,
        address: str,
        port: int,
        deadline: Deadline,
        link_timeout_ns: int = LINK_TIMEOUT_NS,
        watched: Watched | None = None,
    ) -> Connection:
        """:param watched: served meanwhile. :raises PeerLost: when nobody answers there in time."""
        return cls(connected(address, port, deadline, watched), link_timeout_ns)

    def tune(self) -> None:
        """Once, at the beginning: what the socket needs."""
        tune(self.sock, self.link_timeout_ns)

    def set_link_timeout(self, link_timeout_ns: int) -> None:
        """From now on a link that delivers nothing for so long counts as dead."""
        self.link_timeout_ns = link_timeout_ns
        set_timeouts(self.sock, link_timeout_ns)

    def hurry(self) -> None:
        """The guest stands still: see :func:`hurry`."""
        hurry(self.sock)

    def close(self) -> None:
        """Idempotent."""
        self.sock.close()

    def abort(self) -> None:
        """Close with a reset: what still waits to be sent is dropped, so that nothing of it arrives later."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def fileno(self) -> int:
        return self.sock.fileno()

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Have every wait of this connection call *on_readable* as well when *fd* is readable; it may raise."""
        self._watched[fd] = on_readable
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # before the first frame

    def greet(self) -> int:
        """Go on, without waiting, with what has to be done before the first frame can be read.

        :returns: what it waits for (select.POLLIN, select.POLLOUT); 0 when it is done.
        :raises PeerLost: when the peer may not come in.
        """
        return 0

    @property
    def buffered(self) -> int:
        """How many bytes can be read although the socket may not be readable."""
        return 0

    def cost(self) -> dict[str, int]:
        """What carrying took so far: wire_bytes beside those of the frames, cpu_ns, time_ns, handshake_ns."""
        return {}

    @property
    def watchers(self) -> Watched:
        """What :meth:`watch` was told, for those who wait for several connections at once."""
        return dict(self._watched)

    # waiting

    def wait(self, events: int, deadline: Deadline, what: str) -> None:
        """Wait until the socket has *events* (select.POLLIN, select.POLLOUT); 0 waits for the deadline itself.

        :raises PeerLost: at the deadline (unless *events* is 0), or when :attr:`give_up` passes.
        """
        if events & select.POLLIN and self.buffered:
            self.check()
            return
        if events:
            self._poll.register(self.sock, events)
        try:
            while True:
                until = min(deadline.at_ns, self.give_up.at_ns) if self.give_up else deadline.at_ns
                # poll's own timeout counts in ms; the last part of a wait for time alone must be finer than that
                left_ns = until - now_ns()
                if left_ns <= 0:
                    if not events and not (self.give_up and self.give_up.expired):
                        return
                    raise PeerLost(f"{what}: nothing within {deadline.duration_ns / NS_PER_S:g} s")
                if events or left_ns >= 2 * NS_PER_MS:
                    ready = self._poll.poll(left_ns // NS_PER_MS if not events else -(-left_ns // NS_PER_MS))
                else:
                    readable = select.select(list(self._watched), [], [], left_ns / NS_PER_S)[0]
                    ready = [(fd, select.POLLIN) for fd in readable]
                if self._dispatch(ready):
                    return
        finally:
            if events:
                self._poll.unregister(self.sock)

    def check(self) -> None:
        """Serve what is readable among the watched descriptors now."""
        if self._watched:
            self._dispatch(self._poll.poll(0))

    def _dispatch(self, ready: Sequence[tuple[int, int]]) -> bool:
        """Call the watchers of *ready*; True when the socket itself is among them."""
        own = False
        for fd, _events in ready:
            callback = self._watched.get(fd)
            if callback is not None:
                callback()
            else:
                own = True
        return own

    # sending

    def send(self, *parts: Part) -> int:
        """Send all *parts* one after the other, at once if the socket takes them. :returns: their bytes.

        :raises PeerLost: when the link or the peer is gone.
        """
        pieces = self.prepare(parts)
        total = sum(piece.nbytes for piece in pieces)
        self.broken = True
        self._transmit(pieces)
        self.broken = False
        self.sent_bytes += total
        return total

    def _transmit(self, pieces: list[Piece]) -> None:
        """Write all of these to the socket."""
        while pieces:
            if not self._transmit_some(pieces):
                self.wait(select.POLLOUT, Deadline(self.link_timeout_ns), "sending to the other engine")

    def prepare(self, parts: Sequence[Part]) -> list[Piece]:
        """*parts* as :meth:`send_available` takes them, which must follow with all of it before anything else."""
        return pieces_of(parts) if self.takes_files else [*views_of(parts)]

    def send_available(self, pieces: list[Piece]) -> int:
        """Send what the socket takes now of what :meth:`prepare` gave, and remove it from there.

        :returns: its bytes, 0 when the socket is full.
        :raises PeerLost: when the link or the peer is gone.
        """
        count = self._transmit_some(pieces)
        self.sent_bytes += count
        return count

    def _transmit_some(self, pieces: list[Piece]) -> int:
        """Write to the socket what it takes now of *pieces* (none empty), and remove that from them."""
        try:
            return send_some(self.sock, pieces)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"sending to the other engine: {_why(error)}") from error

    # receiving

    def read_exactly(self, count: int) -> bytearray:
        """*count* bytes; small pieces only, as the caller bounds *count*.

        :raises WireError: when the stream ends before the first or the last of them.
        """
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def read_into(self, view: memoryview) -> None:
        """Fill *view*. Errors as :meth:`read_exactly`; :class:`PeerLost` when the link is gone."""
        done = 0
        total = view.nbytes
        while done < total:
            try:
                count = self.sock.recv_into(view[done : done + AT_ONCE_BYTES], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise PeerLost(f"the other engine sent nothing for {self.link_timeout_ns / NS_PER_S:g} s") from None
            except OSError as error:
                raise PeerLost(f"receiving from the other engine: {_why(error)}") from error
            if not count:
                if done or total == 0:
                    raise WireError("the other engine closed the connection inside a frame")
                raise WireError("the other engine closed the connection")
            done += count

    def read_available(self, view: memoryview) -> int:
        """What has arrived, into the beginning of *view*. :returns: its bytes, 0 when there is nothing now.

        :raises PeerLost: when the stream has ended or the link is gone.
        """
        try:
            count = self.sock.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"receiving from the other engine: {_why(error)}") from error
        if not count:
            raise PeerClosed("the other engine closed the connection")
        return count

    def expect(self, count: int) -> None:
        """Until the next call the socket need not be readable before *count* bytes are there, or :data:`WAKE_BYTES`.

        For those who wait for several connections and take what is there (SO_RCVLOWAT, socket(7)); 1 is usual.
        """
        wanted = max(1, min(count, WAKE_BYTES))
        if wanted != self._expected:
            self._expected = wanted
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    @property
    def arrived(self) -> int:
        """Bytes that the socket holds, however many are expected (FIONREAD, tcp(7))."""
        (count,) = struct.unpack("=i", fcntl.ioctl(self.sock, termios.FIONREAD, b"\0\0\0\0"))
        return int(count)

    def limit_queue(self, limit_bytes: int) -> None:
        """How much may be sent and not acknowledged: a send buffer of this size (socket(7), SO_SNDBUFFORCE)."""
        half = limit_bytes // 2  # the kernel doubles it, for its own accounting
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, half)
        except OSError:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, half)

    def limit_unsent(self, limit_bytes: int) -> None:
        """How much may wait in the socket beyond what is under way before it counts as full (TCP_NOTSENT_LOWAT)."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit_bytes)

    # knowing

    def info(self) -> TransportInfo:
        return tcp_info(self.sock)


def tcp_info(sock: socket.socket) -> TransportInfo:
    """What the kernel knows of a TCP socket."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256).ljust(256, b"\0")
    (rtt_us,) = struct.unpack_from("=I", raw, 68)
    (retransmits,) = struct.unpack_from("=I", raw, 100)
    (acked,) = struct.unpack_from("=Q", raw, 120)
    (min_rtt_us,) = struct.unpack_from("=I", raw, 148)
    (window_limited_us,) = struct.unpack_from("=Q", raw, 176)
    queued = struct.unpack("=i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return TransportInfo(acked, queued, rtt_us * 1000, min_rtt_us * 1000, retransmits, window_limited_us * 1000)


def connected(address: str, port: int, deadline: Deadline, watched: Watched | None = None) -> socket.socket:
    """A TCP socket, connected.

    :param watched: served meanwhile.
    :raises PeerLost: when nobody answers there in time.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _set_congestion_control(sock)
        sock.setblocking(False)
        failed = sock.connect_ex((address, port))
        if failed == errno.EINPROGRESS:
            if not ready_beside(sock.fileno(), select.POLLOUT, deadline, watched or {}):
                raise TimeoutError(f"no answer within {deadline.duration_ns / NS_PER_S:g} s")
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        sock.setblocking(True)
    except OSError as error:
        sock.close()
        raise PeerLost(f"no connection to the destination at {address}:{port}: {_why(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def ready_beside(fd: int, events: int, deadline: Deadline, watched: Watched) -> bool:
    """Wait until *fd* has *events* (select.POLLIN, select.POLLOUT), serving what is *watched* meanwhile.

    :returns: False at the deadline.
    """
    poll = select.poll()
    poll.register(fd, events)
    for other in watched:
        poll.register(other, select.POLLIN)
    while True:
        found = [ready for ready, _events in poll.poll(-(-deadline.remaining_ns // NS_PER_MS))]
        for ready in found:
            if ready in watched:
                watched[ready]()
        if fd in found:
            return True
        if deadline.expired:
            return False


def listen(address: str, port: int) -> socket.socket:
    """A listener for one migration, which does not block.

    :raises MigrationError: when the address or port cannot be had.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_congestion_control(sock)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        remedy = "set migration.port to another one" if error.errno else ""
        raise MigrationError(f"cannot listen for a migration on {address}:{port}: {_why(error)}", remedy) from error
    return sock


class Pacer:
    """Keeps what is sent to a rate: after each piece it says how long to wait.

    Waits that end late are made up for by shorter ones, up to :data:`CREDIT_NS`, so that the mean is exact; a link
    that was too slow for longer than that earns no burst.
    """

    CREDIT_NS: Final = 20 * NS_PER_MS

    def __init__(self, rate_bps: int) -> None:
        self.rate_bps = rate_bps
        self._due_ns = 0

    def sent(self, count_bytes: int, at_ns: int) -> int:
        """Account for *count_bytes* sent just now. :returns: CLOCK_MONOTONIC ns at which the next piece may follow."""
        if not self.rate_bps:
            return at_ns
        base_ns = max(self._due_ns, at_ns - self.CREDIT_NS)
        self._due_ns = base_ns + count_bytes * 8 * NS_PER_S // self.rate_bps
        return self._due_ns


def chunk_pages(rate_bps: int | None, duration_ns: int, page_bytes: int, most: int, unknown: int = 16) -> int:
    """How many pages fill *duration_ns* at *rate_bps*, from 1 to *most*; *unknown* while there is no rate."""
    if not rate_bps:
        return min(unknown, most)
    return int(np.clip(rate_bps * duration_ns // (8 * page_bytes * NS_PER_S), 1, most))


def tune(sock: socket.socket, link_timeout_ns: int) -> None:
    """Have a connected TCP socket send at once, queue little, and notice a dead link."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    set_timeouts(sock, link_timeout_ns)


def hurry(sock: socket.socket) -> None:
    """From now on what was lost at the end of a burst, which no later segment tells of, is sent again after
    :data:`HURRIED_US` and a round trip instead of 200 ms (RFC 6298's least timeout on Linux). Nothing where the kernel
    cannot.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MIN_US, HURRIED_US)


def set_timeouts(sock: socket.socket, link_timeout_ns: int) -> None:
    """How long the link of a TCP socket may deliver nothing before it counts as dead."""
    seconds = max(1, -(-link_timeout_ns // NS_PER_S))
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, max(1, link_timeout_ns // NS_PER_MS))
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, seconds // (_KEEPALIVES + 1)))
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, seconds // (_KEEPALIVES + 1)))
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, _KEEPALIVES)
    whole, part = divmod(link_timeout_ns, NS_PER_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", whole, part // 1000))


def _set_congestion_control(sock: socket.socket) -> None:
    """Before connecting, so that the first window is already its own; a kernel without it keeps its default."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode())


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
