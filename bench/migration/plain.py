"""The carrier without security: plain TCP, as QEMU's ``tcp:`` without TLS.

A stranger is known by its lack of the ticket, which crosses in the clear: whoever can read the network can read it,
and the guest's memory.
"""

from __future__ import annotations

import contextlib

from bench.clock import Deadline
from bench.migration.carriers import NONE, Credentials, Listening, Reception
from bench.migration.door import Door
from bench.migration.transport import Connection, Watched, listen


class Plain:
    """See this module."""

    name = NONE

    def credentials(self) -> tuple[Credentials, Credentials]:
        return {}, {}

    def dialer(self, address: str, port: int, link_timeout_ns: int, credentials: Credentials) -> PlainDialer:
        del credentials
        return PlainDialer(address, port, link_timeout_ns)

    def receive(self, place: Listening, stack: contextlib.ExitStack) -> Reception:
        door = Door(listen(place.address, place.port), place.ticket, place.link_timeout_ns, Connection)
        stack.callback(door.close)
        return Reception(door, door.port)


class PlainDialer:
    """The source's side."""

    def __init__(self, address: str, port: int, link_timeout_ns: int) -> None:
        self._address = address
        self._port = port
        self._link_timeout_ns = link_timeout_ns

    def dial(self, deadline: Deadline, watched: Watched) -> Connection:
        return Connection.connect(self._address, self._port, deadline, self._link_timeout_ns, watched)
