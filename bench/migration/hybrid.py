"""Hybrid: some rounds of pre-copy, then post-copy of what the guest wrote last: few faults, and a page
crosses at most once more than there were rounds (Sahni and Varma, CCEM 2012).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.migration.postcopy import switch_to_post_copy

if TYPE_CHECKING:
    from bench.migration.session import Session


class Hybrid:
    """See this module. ``migration.precopy_rounds`` says how many rounds."""

    name = "hybrid"

    def run(self, session: Session) -> None:
        session.pending.set_all()
        for _ in range(session.order.precopy_rounds):
            session.send_round()
        switch_to_post_copy(session, f"post-copy after {session.order.precopy_rounds} rounds of pre-copy")
