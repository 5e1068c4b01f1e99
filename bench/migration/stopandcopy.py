"""Stop-and-copy (cold): the guest is paused first, then all its memory is copied. The least traffic, the most downtime:
the baseline of the other modes (VM save and restore over the network).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.migration.session import Session


class StopAndCopy:
    """See this module."""

    name = "stop-and-copy"

    def run(self, session: Session) -> None:
        session.approach_pause("stop-and-copy")
        session.pending.set_all()
        session.switch_over(paced=True)
