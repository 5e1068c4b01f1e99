"""Where the pages of rounds leave: over the migration's one connection, or several (:mod:`bench.migration.streams`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bench.clock import Deadline
from bench.memory.image import WORDS_PER_PAGE, Words
from bench.migration import wire
from bench.migration.pieces import Part
from bench.migration.transport import Connection, TransportInfo


class Outlet(Protocol):
    """What a page sender and the rounds need of the connections below them.

    :ivar count: connections.
    """

    count: int

    def scratch(self) -> Words:
        """Room for :data:`wire.MAX_FRAME_PAGES` pages. What is gathered there may be part of the next :meth:`send`, and
        is not to be touched after it.
        """
        ...

    def send(self, parts: Sequence[Part], pages: int) -> int:
        """Send whole frames, which set *pages* pages. :returns: their bytes. :raises PeerLost: see Connection.send."""
        ...

    def pause(self, deadline: Deadline) -> None:
        """Send nothing new before *deadline*."""
        ...

    def end_round(self, number: int, pages: int) -> int:
        """All *pages* pages of this round were given to :meth:`send`: have the other side check that.

        Everything is with the kernel afterwards. :returns: the bytes that this took.
        """
        ...

    def set_link_timeout(self, link_timeout_ns: int) -> None:
        """See :meth:`Connection.set_link_timeout`."""
        ...

    def hurry(self) -> None:
        """See :meth:`Connection.hurry`."""
        ...

    def abandon(self) -> None:
        """No round goes on: close all connections but the first, and have that one between two frames again.

        :raises PeerLost: when that could not be done in time.
        """
        ...

    def info(self) -> TransportInfo:
        """Of all connections: sums, and the longest round trips."""
        ...

    @property
    def bytes_beside(self) -> int:
        """Sent so far over connections other than the first."""
        ...

    def cost(self) -> dict[str, Any]:
        """See :mod:`bench.migration.cost`."""
        ...

    def close(self) -> None:
        """Close all connections but the first. Idempotent."""
        ...


def new_scratch() -> Words:
    """See :meth:`Outlet.scratch`; what is not used of it takes no memory."""
    return np.empty((wire.MAX_FRAME_PAGES, WORDS_PER_PAGE), dtype=np.uint64)


class OneStream:
    """The one connection."""

    count = 1
    bytes_beside = 0

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._scratch = new_scratch()

    def scratch(self) -> Words:
        return self._scratch

    def send(self, parts: Sequence[Part], pages: int) -> int:
        del pages
        return self._connection.send(*parts)

    def pause(self, deadline: Deadline) -> None:
        self._connection.wait(0, deadline, "pacing")

    def end_round(self, number: int, pages: int) -> int:
        return self._connection.send(wire.encode_round_end(number, pages))

    def set_link_timeout(self, link_timeout_ns: int) -> None:
        self._connection.set_link_timeout(link_timeout_ns)

    def hurry(self) -> None:
        self._connection.hurry()

    def abandon(self) -> None:
        pass

    def info(self) -> TransportInfo:
        return self._connection.info()

    def cost(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
