"""Pre-copy: all memory while the guest runs, then what it wrote meanwhile, round after round, until the rest fits the
downtime limit (Clark et al., NSDI 2005).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.migration.policy import Action
from bench.migration.postcopy import switch_to_post_copy

if TYPE_CHECKING:
    from bench.migration.session import Session


class PreCopy:
    """See this module."""

    name = "precopy"

    def run(self, session: Session) -> None:
        session.pending.set_all()
        while True:
            session.send_round()
            step = session.decide()
            if step.action is Action.CANCEL:
                session.cancel(step.reason)
            if step.action is Action.POST_COPY:
                switch_to_post_copy(session, step.reason)
                return
            if step.action is Action.SWITCHOVER:
                break
        session.approach_pause(step.reason)
        session.switch_over()
