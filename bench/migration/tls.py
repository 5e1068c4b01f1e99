"""The carrier TLS: version 1.3 only, both sides known by certificates made for the migration (RFC 8446).

Each side has a key and a self-signed certificate, and trusts exactly one other: its peer's (pinned; as QEMU's tls-creds
with ``verify-peer``, without an authority that could sign for somebody else). The engine encrypts and decrypts itself,
through memory (``ssl.SSLObject``), so that the socket stays what it is for a plain connection: sending waits in the one
poll, pages are decrypted straight into guest memory, and the kernel's figures are those of the connection.

What waits in the socket counts as queued by what it carries: a record of 16 KiB takes 22 bytes more
(:data:`RECORD_OVERHEAD`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import MigrationError, WireError
from bench.migration.carriers import Credentials, Listening, Reception
from bench.migration.cost import Meter
from bench.migration.door import Door
from bench.migration.pieces import Buffer, Part, Piece, views_of
from bench.migration.transport import (
    Connection,
    PeerClosed,
    PeerLost,
    TransportInfo,
    Watched,
    connected,
    listen,
    ready_beside,
)

RECORD_BYTES: Final = 16384  # RFC 8446, 5.1
RECORD_OVERHEAD: Final = 22  # header, content type and tag of each
FLUSH_BYTES: Final = 256 << 10  # encrypted at once, then sent at once
READ_BYTES: Final = 256 << 10
SOURCE: Final = "source"
DESTINATION: Final = "destination"


class Tls:
    """See this module."""

    name = "tls"

    def credentials(self) -> tuple[Credentials, Credentials]:
        from bench.migration.certificates import make_certificate  # noqa: PLC0415 - the engines never make any

        source, destination = make_certificate(SOURCE), make_certificate(DESTINATION)
        return (
            {"key": source.key, "certificate": source.certificate, "peer": destination.certificate},
            {"key": destination.key, "certificate": destination.certificate, "peer": source.certificate},
        )

    def dialer(self, address: str, port: int, link_timeout_ns: int, credentials: Credentials) -> TlsDialer:
        return TlsDialer(address, port, link_timeout_ns, make_context(credentials, server=False))

    def receive(self, place: Listening, stack: contextlib.ExitStack) -> Reception:
        context = make_context(place.credentials, server=True)

        def wrap(sock: socket.socket, link_timeout_ns: int) -> Connection:
            return TlsConnection(sock, link_timeout_ns, context, server=True)

        door = Door(listen(place.address, place.port), place.ticket, place.link_timeout_ns, wrap)
        stack.callback(door.close)
        return Reception(door, door.port)


def make_context(credentials: Credentials, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with this key and certificate, and trust in one peer.

    The key reaches the library through a file without a name, which is all that it can load from.

    :raises MigrationError: when they are not whole.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the peer is known by its certificate itself
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0  # no resumption: nothing comes but frames
    fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "w", encoding="ascii") as file:
            file.write(f"{credentials['certificate']}\n{credentials['key']}")
        context.load_cert_chain(f"/proc/self/fd/{fd}")
        context.load_verify_locations(cadata=credentials["peer"])
    except (KeyError, TypeError, OSError) as error:
        raise MigrationError(f"the credentials for TLS are not whole: {type(error).__name__}") from error
    finally:
        os.close(fd)
    return context


class TlsDialer:
    """The source's side."""

    def __init__(self, address: str, port: int, link_timeout_ns: int, context: ssl.SSLContext) -> None:
        self._address = address
        self._port = port
        self._link_timeout_ns = link_timeout_ns
        self._context = context

    def dial(self, deadline: Deadline, watched: Watched) -> Connection:
        sock = connected(self._address, self._port, deadline, watched)
        connection = TlsConnection(sock, self._link_timeout_ns, self._context, server=False)
        what = f"TLS with the destination at {self._address}:{self._port}"
        try:
            while wanted := connection.greet():
                if not ready_beside(connection.fileno(), wanted, deadline, watched):
                    raise PeerLost(f"{what}: nothing within {deadline.duration_ns / NS_PER_S:g} s")
        except BaseException:
            connection.abort()
            raise
        return connection


class TlsConnection(Connection):
    """One end.

    :param sock: connected; the handshake is made by :meth:`greet`.
    """

    def __init__(self, sock: socket.socket, link_timeout_ns: int, context: ssl.SSLContext, *, server: bool) -> None:
        super().__init__(sock, link_timeout_ns)
        sock.setblocking(False)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._raw = bytearray(READ_BYTES)
        self._begun_ns = now_ns()
        self._handshake_ns = 0
        self._side = b""  # decrypted already, read by nobody yet
        self._more = False  # there may be whole records in the buffer
        self._meter = Meter()
        self._frame_bytes = self._wire_bytes = 0

    # the handshake

    def greet(self) -> int:
        while not self._handshake_ns:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_nowait()
                if self._outgoing.pending:
                    return select.POLLOUT
                if not self._fetch():
                    return select.POLLIN
                continue
            except ssl.SSLCertVerificationError as error:
                self._say_alert()
                raise PeerLost("the other end's certificate is not the one made for this migration") from error
            except ssl.SSLError as error:
                self._say_alert()
                raise PeerLost(f"the other end does not speak TLS 1.3 with us: {error.reason or error}") from error
            self._handshake_ns = max(1, now_ns() - self._begun_ns)
            self._more = True
        self._flush_nowait()
        return select.POLLOUT if self._outgoing.pending else 0

    def _flush_nowait(self) -> None:
        """What TLS has to say in the handshake, as far as the socket takes it: some KiB, so in practice at once."""
        if self._outgoing.pending:
            data = self._outgoing.read()
            try:
                sent = self.sock.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise PeerLost(f"TLS with the other engine: {error.strerror}") from error
            if sent < len(data):
                self._transmit([memoryview(data)[sent:]])

    def _say_alert(self) -> None:
        with contextlib.suppress(PeerLost, OSError):
            self.sock.send(self._outgoing.read(), socket.MSG_DONTWAIT)

    # sending

    def send(self, *parts: Part) -> int:
        views = views_of(parts)
        total = sum(view.nbytes for view in views)
        self.broken = True
        records = _records(views)
        more = True
        while more:
            with self._meter:
                more = False
                for record in records:
                    self._tls.write(record)
                    if self._outgoing.pending >= FLUSH_BYTES:
                        more = True
                        break
            data = self._outgoing.read()
            self._wire_bytes += len(data)
            self._transmit([memoryview(data)])
        self.broken = False
        self._frame_bytes += total
        self.sent_bytes += total
        return total

    def prepare(self, parts: Sequence[Part]) -> list[Piece]:
        views = views_of(parts)
        with self._meter:
            for record in _records(views):
                self._tls.write(record)
        data = self._outgoing.read()
        total = sum(view.nbytes for view in views)
        self._wire_bytes += len(data)
        self._frame_bytes += total
        self.sent_bytes += total
        return [*views_of([data])]

    def send_available(self, pieces: list[Piece]) -> int:
        return self._transmit_some(pieces)

    # receiving

    @property
    def buffered(self) -> int:
        if not self._side and self._more:
            self._side = self._decrypt_some()
        return len(self._side)

    def read_into(self, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            try:
                count = self.read_available(view[done:])
            except PeerClosed as closed:
                raise _ended(inside=done > 0) from closed
            if not count:
                self._wait_for_data()
            done += count

    def expect(self, count: int) -> None:
        """What is read is records, whose bytes are not those that are expected."""

    def read_available(self, view: memoryview) -> int:
        done = 0
        if self._side:
            done = min(len(self._side), view.nbytes)
            view[:done] = self._side[:done]
            self._side = self._side[done:]
        try:
            while done < view.nbytes:
                done += self._decrypt(view[done:])
                if done < view.nbytes and not self._fetch():
                    break
        except PeerLost:
            if not done:
                raise  # else it is said again by the next call
        return done

    def _wait_for_data(self) -> None:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(self.link_timeout_ns // 1_000_000):
            raise PeerLost(f"the other engine sent nothing for {self.link_timeout_ns / NS_PER_S:g} s")

    def _fetch(self) -> bool:
        """Take from the socket what is there. :returns: whether that was something."""
        count = super().read_available(memoryview(self._raw))
        if count:
            with memoryview(self._raw) as raw:
                self._incoming.write(raw[:count])
            self._more = True
        return count > 0

    def _decrypt(self, view: memoryview) -> int:
        """As many whole records as there are, into *view*. :returns: their bytes."""
        done = 0
        with self._meter:
            while self._more and done < view.nbytes:
                try:
                    count = int(self._tls.read(view.nbytes - done, view[done:]))
                except ssl.SSLWantReadError:
                    self._more = False
                    break
                except ssl.SSLError as error:
                    raise PeerLost(f"TLS with the other engine: {error.reason or error}") from error
                if not count:
                    raise PeerClosed("the other engine closed the connection")
                done += count
        return done

    def _decrypt_some(self) -> bytes:
        buffer = bytearray(RECORD_BYTES)
        with contextlib.suppress(PeerLost):  # said again by whoever reads
            return bytes(buffer[: self._decrypt(memoryview(buffer))])
        return b""

    # knowing

    def info(self) -> TransportInfo:
        info = super().info()
        queued = info.queued_bytes * RECORD_BYTES // (RECORD_BYTES + RECORD_OVERHEAD)
        return TransportInfo(max(0, self.sent_bytes - queued), queued, info.rtt_ns, info.min_rtt_ns, info.retransmits)

    def cost(self) -> dict[str, int]:
        return {
            "wire_bytes": self._wire_bytes,
            "overhead_bytes": self._wire_bytes - self._frame_bytes,
            "handshake_ns": self._handshake_ns,
            **self._meter.to_json(),
        }


def _records(views: list[memoryview]) -> Iterator[Buffer]:
    """These bytes in pieces of :data:`RECORD_BYTES`, so that a short header shares a record with what follows."""
    short = bytearray()
    for view in views:
        begin = 0
        if short or view.nbytes < RECORD_BYTES:
            begin = min(RECORD_BYTES - len(short), view.nbytes)
            short += view[:begin]
            if len(short) == RECORD_BYTES:
                yield bytes(short)
                short.clear()
        while view.nbytes - begin >= RECORD_BYTES:
            yield view[begin : begin + RECORD_BYTES]
            begin += RECORD_BYTES
        short += view[begin:]
    if short:
        yield bytes(short)


def _ended(*, inside: bool) -> MigrationError:
    return WireError("the other engine closed the connection" + (" inside a frame" if inside else ""))
