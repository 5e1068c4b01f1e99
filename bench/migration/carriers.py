"""The registry of carriers: what the connections between the two engines go through.

Every connection of a migration is dialled by the source with the carrier's :class:`Dialer` and comes in at the
destination through its :class:`Door`: the first one, those of post-copy, further ones. A new carrier is one new file
with one class, and one line here; engines, modes and the wire format know nothing of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, Protocol

from bench.clock import Deadline
from bench.errors import MigrationError
from bench.migration.transport import Connection

NONE: Final = "none"


class Dialer(Protocol):
    """The source's side: makes the connections of one migration."""

    def dial(self, deadline: Deadline) -> Connection:
        """A connection to the destination engine. :raises PeerLost: when nobody answers there in time."""
        ...

    def close(self) -> None:
        """Give up what dialling needs; connections made live on. Idempotent."""
        ...


class Door(Protocol):
    """The destination's side: where the connections of one migration come in.

    :ivar port: what the source dials.
    """

    port: int

    def fileno(self) -> int:
        """Readable when somebody is at the door; negative once it is closed."""
        ...

    def accept(self, link_timeout_ns: int, deadline: Deadline | None = None) -> tuple[Connection, str]:
        """The next connection, and who it is from, for reports and the log.

        :param deadline: None waits for ever.
        :raises TimeoutError: when nobody came in time; OSError: when the door cannot be used.
        """
        ...

    def close(self) -> None:
        """Nobody gets in any more. Idempotent."""
        ...


class Carrier(Protocol):
    """One way to connect the engines. Stateless."""

    name: str

    def dialer(self, address: str, port: int, link_timeout_ns: int) -> Dialer:
        """:raises MigrationError: when this machine lacks what it needs."""
        ...

    def door(self, address: str, port: int) -> Door:
        """:param port: 0 for a free one. :raises MigrationError: when the address or port cannot be had."""
        ...


CARRIERS: Final[Mapping[str, str]] = {
    NONE: "bench.migration.plain:Plain",
}


def load_carrier(name: str) -> Carrier:
    """The carrier of that name. :raises MigrationError: when there is none."""
    if name not in CARRIERS:
        raise MigrationError(f"migration security {name!r} is unknown", f"use one of {', '.join(CARRIERS)}")
    module, _, attribute = CARRIERS[name].partition(":")
    carrier: Carrier = getattr(importlib.import_module(module), attribute)()
    return carrier
