"""The registry of carriers: what the connections between the two engines go through.

Every connection of a migration is dialled by the source with the carrier's :class:`Dialer` and comes in at the
destination through its :class:`bench.migration.door.Door`: the first one, those of post-copy, further ones. A new
carrier is one new file with one class, and one line here; engines, modes and the wire format know nothing of it.

What a carrier needs to know the other end by (keys, certificates) is made for each migration by the runner, which
passes each engine its half over its channel. It is never in a file that outlives the engine, and never on a command
line.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

from bench.clock import Deadline
from bench.errors import MigrationError
from bench.migration.door import Door
from bench.migration.transport import Connection, Watched

NONE: Final = "none"

Credentials = Mapping[str, Any]


class Dialer(Protocol):
    """The source's side: makes the connections of one migration."""

    def dial(self, deadline: Deadline, watched: Watched) -> Connection:
        """A connection to the destination engine.

        :param watched: served at any time meanwhile; what that raises ends it, and leaves nothing behind.
        :raises PeerLost: when nobody answers there in time, or it is not who it should be.
        """
        ...


class Carrier(Protocol):
    """One way to connect the engines. Stateless."""

    name: str

    def credentials(self) -> tuple[Credentials, Credentials]:
        """Made for one migration, JSON-able: the source's and the destination's."""
        ...

    def dialer(self, address: str, port: int, link_timeout_ns: int, credentials: Credentials) -> Dialer:
        """:param credentials: the source's, and what :attr:`Reception.hints` of the destination said.
        :raises MigrationError: when they are not whole, or this machine lacks what it needs.
        """
        ...

    def receive(self, place: Listening, stack: contextlib.ExitStack) -> Reception:
        """The destination's side, open. :param stack: closes it.

        :raises MigrationError: when the address or port cannot be had, or this machine lacks what it needs.
        """
        ...


class Listening(Protocol):
    """Where to listen, and for whom: :class:`bench.migration.place.Place`."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def ticket(self) -> str: ...
    @property
    def link_timeout_ns(self) -> int: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def guest_log(self) -> str: ...


class Reception:
    """The destination's side of a carrier.

    :ivar port: what the source dials.
    :ivar hints: what the dialer must know beside that.
    """

    def __init__(self, door: Door, port: int, hints: Mapping[str, Any] | None = None) -> None:
        self.door = door
        self.port = port
        self.hints: Mapping[str, Any] = hints or {}

    def cost(self) -> dict[str, int]:
        """What other processes than the engine took: cpu_ns."""
        return {}


CARRIERS: Final[Mapping[str, str]] = {
    NONE: "bench.migration.plain:Plain",
    "tls": "bench.migration.tls:Tls",
    "ssh": "bench.migration.ssh:Ssh",
}


def load_carrier(name: str) -> Carrier:
    """The carrier of that name. :raises MigrationError: when there is none, or its library is missing."""
    if name not in CARRIERS:
        raise MigrationError(f"migration security {name!r} is unknown", f"use one of {', '.join(CARRIERS)}")
    module, _, attribute = CARRIERS[name].partition(":")
    try:
        carrier: Carrier = getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        raise MigrationError(f"migration security {name!r} needs a library: {error}", "run `make setup`") from error
    return carrier
