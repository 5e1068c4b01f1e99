"""The registry of migration modes: how a guest's memory gets to the destination.

A mode decides the order of what :class:`bench.migration.session.Session` offers: rounds, collecting dirty pages, the
switchover. A new mode is one new file with one class, and one line here. Post-copy has a part at the destination as
well (:mod:`bench.migration.postcopy_arrival`), which the ADVISE frame starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from bench.errors import MigrationError

if TYPE_CHECKING:
    from bench.migration.session import Session


class Mode(Protocol):
    """One way to migrate. Stateless: the session holds everything."""

    name: str

    def run(self, session: Session) -> None:
        """Move the guest; returns when the destination runs it.

        :raises Cancelled: when the session or the policy cancels before the final copy.
        :raises BenchError: when it failed; the session then rolls back.
        """
        ...


MODES: Final[Mapping[str, str]] = {
    "precopy": "bench.migration.precopy:PreCopy",
    "stop-and-copy": "bench.migration.stopandcopy:StopAndCopy",
    "postcopy": "bench.migration.postcopy:PostCopy",
    "hybrid": "bench.migration.hybrid:Hybrid",
}


def load_mode(name: str) -> Mode:
    """The mode of that name. :raises MigrationError: when there is none."""
    if name not in MODES:
        raise MigrationError(f"migration mode {name!r} is unknown", f"use one of {', '.join(MODES)}")
    module, _, attribute = MODES[name].partition(":")
    mode: Mode = getattr(importlib.import_module(module), attribute)()
    return mode
