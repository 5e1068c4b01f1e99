"""Serves the guest's state machines on loopback, for tests with real clients: a tiny selectors loop, no root needed.

With ``moves`` every connection is exported and restored through JSON around each read, which no client may notice.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.clock import now_ns
from bench.guest.services.base import Machine, StreamService
from bench.guest.services.registry import open_stream, restore_stream
from bench.guest.store import Store

SENDING_BYTES = 1 << 18


@dataclass
class Connection:
    sock: socket.socket
    service: StreamService
    blocked: bool = False


@dataclass
class ServiceServer:
    """One listener for each service on a port of its own."""

    machine: Machine
    moves: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stop_here, self._stop_there = socket.socketpair()
        self._selector.register(self._stop_here, selectors.EVENT_READ, None)
        self._listeners: list[socket.socket] = []
        self._by_fd: dict[int, Connection] = {}
        for name in ("echo", "discard", "chargen", "http", "redis"):
            listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            listener.setblocking(False)
            self.ports[name] = listener.getsockname()[1]
            self._listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ, name)

    def run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            for connection in list(self._by_fd.values()):
                self._close(connection)
            for listener in self._listeners:
                listener.close()
            self._selector.close()
            self._stop_here.close()

    def stop(self) -> None:
        self._stop_there.close()

    def _turn(self) -> bool:
        wakes = [c.service.wake_ns() for c in self._by_fd.values() if not c.blocked]
        due = [wake for wake in wakes if wake is not None]
        timeout = max(0, min(due) - now_ns()) / 1e9 if due else None
        for key, mask in self._selector.select(timeout):
            what: Any = key.data
            if what is None:
                return False
            if isinstance(what, str):
                self._accept(key.fileobj, what)  # type: ignore[arg-type]
                continue
            if mask & selectors.EVENT_WRITE:
                what.blocked = False
            if mask & selectors.EVENT_READ:
                self._read(what)
        for connection in list(self._by_fd.values()):
            self._write(connection)
        return True

    def _accept(self, listener: socket.socket, name: str) -> None:
        sock, _peer = listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, open_stream(name, self.machine))
        self._by_fd[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _read(self, connection: Connection) -> None:
        if not connection.service.reading:
            return
        try:
            data = connection.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        self._maybe_move(connection)
        if data:
            connection.service.received(data)
        else:
            connection.service.received_eof()
        self._maybe_move(connection)

    def _maybe_move(self, connection: Connection) -> None:
        if self.moves:
            service = connection.service
            connection.service = restore_stream(service.name, json.loads(json.dumps(service.export())), self.machine)

    def _write(self, connection: Connection) -> None:
        if connection.sock.fileno() not in self._by_fd:
            return
        service = connection.service
        quota = 16  # so that an endless stream leaves the others their turn
        while not connection.blocked and quota and (data := service.output(SENDING_BYTES)):
            quota -= 1
            try:
                service.sent(connection.sock.send(data))
            except BlockingIOError:
                connection.blocked = True
            except OSError:
                self._close(connection)
                return
        if service.closing and not service.output(1):
            self._close(connection)
            return
        interest = selectors.EVENT_READ if service.reading else 0
        if connection.blocked or not quota:
            interest |= selectors.EVENT_WRITE
        key = self._selector.get_map().get(connection.sock.fileno())
        if interest and key is None:
            self._selector.register(connection.sock, interest, connection)
        elif interest and key is not None and key.events != interest:
            self._selector.modify(connection.sock, interest, connection)
        elif not interest and key is not None:
            self._selector.unregister(connection.sock)

    def _close(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if self._by_fd.pop(fd, None) is None:
            return
        if fd in self._selector.get_map():
            self._selector.unregister(connection.sock)
        connection.sock.close()


@contextmanager
def serving(memory_bytes: int = 16 << 20, store_bytes: int = 8 << 20, moves: bool = False) -> Iterator[ServiceServer]:
    """A server in a thread of its own, stopped at the end; what went wrong in it is raised here."""
    memory = memoryview(bytearray(memory_bytes))
    server = ServiceServer(Machine(memory, Store.format(memory[-store_bytes:])), moves)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
    assert not server.errors
