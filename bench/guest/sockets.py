"""All sockets of the guest: listeners, connections and UDP ports, serving, frozen, dumped and restored together."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import GuestError
from bench.flows.notes import NoteFile
from bench.flows.tcp_options import TCP_RTO_MIN_US
from bench.guest import tcp_repair
from bench.guest.clients.base import CLIENT
from bench.guest.clients.outbound import Outbound
from bench.guest.connection import Connection, Traffic
from bench.guest.device_state import DatagramState, StreamState, family_of
from bench.guest.loop import Loop
from bench.guest.path_memory import remembered
from bench.guest.port import GUEST_INTERFACE
from bench.guest.services.base import Machine, StreamService
from bench.guest.services.registry import DATAGRAM_PORTS, STREAM_PORTS, open_datagram, open_stream, restore_stream

log = logging.getLogger("guest")

MAX_CONNECTIONS = 16384
_BACKLOG = 1024
_ACCEPTS_PER_EVENT = 16
_DATAGRAMS_PER_EVENT = 32
_DATAGRAM_BYTES = 65535
_UDP_BUFFER_BYTES = 4 << 20
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_RCVBUFFORCE = 26, 27, 33
_SYN_RECV = "03"

# Draining is worth its time only when it keeps much from being sent twice.
_DRAIN_FROM_BYTES = 256 << 10
_DRAIN_STEP_NS = 200_000
DRAIN_NS = 2 * NS_PER_MS

# Classic BPF over a TCP header: drop what has SYN without ACK (linux/filter.h).
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # ldb [13]: the flags
        (0x54, 0, 0, 0x12),  # and SYN | ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
    )
)


Place = tuple[str, int]
"""An address and a port of the guest."""


class Sockets:
    """Make it in the guest's network namespace.

    :param ips: the guest's addresses, IPv4 and IPv6; every port is bound to each of them.
    :param card_of: the interface that one of them is at.
    :param machine: what services see; None until :attr:`machine` is set, which the first connection needs.
    :param notes: of what one-way datagrams arrive, and of the guest's own flows; None: nothing is kept.
    :param event: ``event(name, **data)``, of the guest's own flows.
    :raises GuestError: when a port cannot be bound.
    """

    def __init__(
        self,
        ips: Sequence[str],
        machine: Machine | None,
        loop: Loop,
        notes: NoteFile | None = None,
        event: Callable[..., None] = lambda *_args, **_data: None,
        *,
        card_of: Callable[[str], str] = lambda _ip: GUEST_INTERFACE,
    ) -> None:
        self._ips = tuple(ips)
        self._card_of = card_of
        self.machine = machine
        self._loop = loop
        self._listeners: dict[Place, socket.socket] = {}
        self._ports: dict[Place, socket.socket] = {}
        notes = notes or NoteFile(None)
        self.outbound = Outbound(self._ips[0], loop, notes, self._adopt, event)
        self._datagrams = {port: open_datagram(name, notes) for port, name in DATAGRAM_PORTS.items()}
        self._connections: dict[Connection, None] = {}
        self._unread: tuple[DatagramState, ...] = ()
        self._serving = False
        self._door_closed = False
        self._traffic = {name: Traffic() for name in (*STREAM_PORTS.values(), CLIENT)}
        self._answered = 0
        try:
            for ip in self._ips:
                for port in STREAM_PORTS:
                    self._listeners[ip, port] = self._listen(ip, port)
                for port in DATAGRAM_PORTS:
                    self._ports[ip, port] = self._bind(ip, port)
        except OSError as error:
            self.close()
            raise GuestError(f"the guest cannot listen on {ip} port {port}: {error.strerror}") from error

    def __len__(self) -> int:
        """Connections."""
        return len(self._connections)

    @property
    def _known_machine(self) -> Machine:
        assert self.machine is not None
        return self.machine

    def counters(self) -> dict[str, int]:
        """Running totals, as ``echo.received_bytes``; they move with the guest."""
        totals = {
            f"{name}.{key}": getattr(traffic, key)
            for name, traffic in self._traffic.items()
            for key in ("connections", "received_bytes", "sent_bytes")
        }
        return {**totals, "datagrams": self._answered}

    @staticmethod
    def _listen(ip: str, port: int) -> socket.socket:
        sock = socket.socket(family_of(ip), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            sock.bind((ip, port))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    @staticmethod
    def _bind(ip: str, port: int) -> socket.socket:
        sock = socket.socket(family_of(ip), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _UDP_BUFFER_BYTES)
            sock.bind((ip, port))
        except OSError:
            sock.close()
            raise
        return sock

    # running

    def serve(self) -> None:
        """Begin, or go on after :meth:`freeze`."""
        if not self._serving:
            self._serving = True
            for (_ip, port), listener in self._listeners.items():
                self._loop.watch_bulk(listener.fileno(), select.EPOLLIN, self._acceptor(port, listener))
            for (_ip, port), sock in self._ports.items():
                self._loop.watch_bulk(sock.fileno(), select.EPOLLIN, self._answerer(port, sock))
        unread, self._unread = self._unread, ()
        for datagram in unread:
            sock = self._ports[datagram.ip or self._ips[0], datagram.port]
            self._answer(datagram.port, sock, datagram.data, datagram.remote)
        for connection in list(self._connections):
            connection.serve()
        self.outbound.serve()

    def _acceptor(self, port: int, listener: socket.socket) -> Any:
        return lambda _events: self._accept(port, listener, _ACCEPTS_PER_EVENT, serve=True)

    def _answerer(self, port: int, sock: socket.socket) -> Any:
        return lambda _events: self._receive(port, sock)

    def _accept(self, port: int, listener: socket.socket, limit: int, *, serve: bool) -> None:
        for _ in range(limit):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            with contextlib.suppress(FileNotFoundError):  # inherited when it came while the door was closed
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            name = STREAM_PORTS[port]
            self._traffic[name].connections += 1
            service = open_stream(name, self._known_machine)
            connection = Connection(sock, service, self._loop, self._traffic[name], self._forget)
            self._connections[connection] = None
            if serve:
                connection.serve()

    def _adopt(self, sock: socket.socket, service: StreamService) -> Connection:
        """A connection that the guest made itself."""
        self._traffic[CLIENT].connections += 1
        connection = Connection(sock, service, self._loop, self._traffic[CLIENT], self._forget)
        self._connections[connection] = None
        return connection

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if connection.service.name == CLIENT:
            self.outbound.over(connection)

    def _receive(self, port: int, sock: socket.socket) -> None:
        for _ in range(_DATAGRAMS_PER_EVENT):
            try:
                data, remote = sock.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            self._answer(port, sock, data, (remote[0], remote[1]))

    def _answer(self, port: int, sock: socket.socket, data: bytes, remote: tuple[str, int]) -> None:
        answer = self._datagrams[port].datagram(data)
        self._answered += 1
        if answer is not None:
            with contextlib.suppress(OSError):  # no room or no route: UDP may lose
                sock.sendto(answer, remote)

    def set_least_timeout(self, remote: tuple[str, int], least_us: int) -> bool:
        """Of the guest's end of the connection with *remote*; it moves with the connection.

        :returns: False when there is no such connection.
        :raises OSError: the kernel does not take it (Linux 6.16 does).
        """
        for connection in self._connections:
            if connection.remote == remote:
                connection.sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MIN_US, least_us)
                return True
        return False

    # the door

    def close_door(self) -> None:
        """Drop new SYNs silently; handshakes under way go on. Idempotent."""
        if not self._door_closed:
            program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
            filter_ = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))  # struct sock_fprog
            for listener in self._listeners.values():
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
            self._door_closed = True

    def open_door(self) -> None:
        """Idempotent."""
        if self._door_closed:
            for listener in self._listeners.values():
                listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self._door_closed = False

    @staticmethod
    def embryonic() -> int:
        """Connections half way through their handshake, which cannot be moved."""
        lines: list[str] = []
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                lines += Path("/proc/thread-self/net", name).read_text(encoding="ascii").splitlines()[1:]
        return sum(line.split(None, 4)[3] == _SYN_RECV for line in lines)

    # moving away

    def freeze(self) -> None:
        """No timer runs until :meth:`serve`; the loop must hold its bulk events too."""
        for connection in self._connections:
            connection.freeze()
        self.outbound.freeze()

    def drain(self, duration_ns: int = DRAIN_NS) -> None:
        """Wait, bounded, until the peers have acknowledged the bulk of what was sent."""
        end_ns = now_ns() + duration_ns
        while now_ns() < end_ns:
            flying = sum(tcp_repair.in_flight_bytes(connection.sock) for connection in self._connections)
            if flying < _DRAIN_FROM_BYTES:
                return
            time.sleep(_DRAIN_STEP_NS / NS_PER_S)  # nothing announces an acknowledgement

    def take_in(self) -> None:
        """Accept what waits, once the network is cut: the last thing that changes memory (a store counts clients)."""
        for (_ip, port), listener in self._listeners.items():
            self._accept(port, listener, MAX_CONNECTIONS, serve=False)

    def dump(self) -> tuple[tuple[StreamState, ...], tuple[DatagramState, ...]]:
        """Everything that the sockets hold, unread datagrams included; the network is cut. Memory does not change.

        :raises OSError: when the kernel refuses; :meth:`undo` mends it.
        """
        streams = []
        for connection in list(self._connections):
            state = connection.dump()
            if state is None:
                connection.close()
            else:
                streams.append(state)
        self._unread += tuple(
            DatagramState(port, (remote[0], remote[1]), data, ip if ip != self._ips[0] else "")
            for (ip, port), sock in self._ports.items()
            for data, remote in _waiting(sock)
        )
        return tuple(streams), self._unread

    def undo(self) -> list[str]:
        """Leave repair mode everywhere, the network attached; :meth:`serve` follows.

        :returns: what went wrong with connections that are lost.
        """
        return [lost for connection in list(self._connections) if (lost := connection.undo())]

    # moving in

    def restore(
        self, streams: Sequence[StreamState], datagrams: Sequence[DatagramState], counters: Mapping[str, int]
    ) -> None:
        """Put everything back, in repair mode; the network is cut.

        :raises GuestError: when something cannot be restored; nothing is left then.
        """
        half_closed = any(stream.tcp.state != "established" for stream in streams)
        places = [(datagram.ip or self._ips[0], datagram.port) for datagram in datagrams]
        if any(place not in self._ports for place in places) or len(streams) > MAX_CONNECTIONS:
            raise GuestError("device state: a datagram for no port, or too many connections")
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop_connections)
            raws: dict[int, socket.socket] = {}
            for family in {family_of(stream.tcp.local[0]) for stream in streams} if half_closed else ():
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
                raws[family] = stack.enter_context(socket.socket(family, kind, socket.IPPROTO_RAW))
            with remembered((stream.tcp for stream in streams), self._card_of):
                for stream in streams:
                    self._restore_one(stream, raws.get(family_of(stream.tcp.local[0])))
            self._unread = tuple(datagrams)
            self._answered = counters.get("datagrams", 0)
            for name, traffic in self._traffic.items():
                for key in ("connections", "received_bytes", "sent_bytes"):
                    setattr(traffic, key, counters.get(f"{name}.{key}", 0))
            stack.pop_all()
            for raw in raws.values():
                raw.close()

    def _restore_one(self, stream: StreamState, raw: socket.socket | None) -> None:
        ip, port = stream.tcp.local
        own = stream.service == CLIENT
        if ip not in self._ips or not (own or STREAM_PORTS.get(port) == stream.service):
            raise GuestError(f"device state: no {stream.service[:32]!r} service at {ip}:{port}")
        service: StreamService
        if own:
            service = self.outbound.service(stream.state)
        else:
            service = restore_stream(stream.service, stream.state, self._known_machine)
        sock = tcp_repair.restore(stream.tcp, raw)
        traffic = self._traffic[stream.service]
        connection = Connection(sock, service, self._loop, traffic, self._forget)
        connection.adopt(stream)
        self._connections[connection] = None
        self.outbound.restored(connection)

    def _drop_connections(self) -> None:
        for connection in list(self._connections):
            connection.close()

    def finish(self) -> list[str]:
        """Leave repair mode everywhere, the network attached; :meth:`serve` follows.

        :returns: what went wrong with connections that are lost.
        """
        return [lost for connection in list(self._connections) if (lost := connection.finish())]

    def close(self) -> None:
        """Close the listeners and ports; connections end with the process, so that they can end silently."""
        self.outbound.close()
        for sock in (*self._listeners.values(), *self._ports.values()):
            self._loop.unwatch_bulk(sock.fileno())
            sock.close()
        self._listeners.clear()
        self._ports.clear()


def _waiting(sock: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """All datagrams that a port has not read yet."""
    found: list[tuple[bytes, tuple[str, int]]] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, remote = sock.recvfrom(_DATAGRAM_BYTES)
            found.append((data, (remote[0], remote[1])))
    return found


def log_lost(connections: Iterable[str]) -> None:
    """What :meth:`Sockets.undo` and :meth:`Sockets.finish` say went wrong."""
    for reason in connections:
        log.warning("connection lost: %s", reason)
