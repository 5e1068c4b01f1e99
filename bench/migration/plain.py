"""The carrier without security: plain TCP, as QEMU's ``tcp:`` without TLS."""

from __future__ import annotations

import socket

from bench.clock import Deadline
from bench.migration.carriers import NONE
from bench.migration.transport import Connection, listen


class Plain:
    """See this module."""

    name = NONE

    def dialer(self, address: str, port: int, link_timeout_ns: int) -> PlainDialer:
        return PlainDialer(address, port, link_timeout_ns)

    def door(self, address: str, port: int) -> PlainDoor:
        return PlainDoor(listen(address, port))


class PlainDialer:
    """The source's side."""

    def __init__(self, address: str, port: int, link_timeout_ns: int) -> None:
        self._address = address
        self._port = port
        self._link_timeout_ns = link_timeout_ns

    def dial(self, deadline: Deadline) -> Connection:
        return Connection.connect(self._address, self._port, deadline, self._link_timeout_ns)

    def close(self) -> None:
        """Nothing to give up."""


class PlainDoor:
    """The destination's side."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self, link_timeout_ns: int, deadline: Deadline | None = None) -> tuple[Connection, str]:
        self._listener.settimeout(None if deadline is None else max(0.001, deadline.remaining_s))
        sock, peer = self._listener.accept()
        return Connection(sock, link_timeout_ns), f"{peer[0]}:{peer[1]}"

    def close(self) -> None:
        self._listener.close()
