"""The states of a migration in QEMU's words (MigrationStatus of qapi/migration.json), and which may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from bench.errors import MigrationError


class State(enum.Enum):
    """``device`` is the time from the guest's pause on; in the ``postcopy`` states the destination owns the guest, and
    there is no way back any more.
    """

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    DEVICE = "device"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

_NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.NONE: frozenset({State.SETUP, State.FAILED}),
    State.SETUP: frozenset({State.ACTIVE, State.FAILED, State.CANCELLED}),
    State.ACTIVE: frozenset({State.DEVICE, State.FAILED, State.CANCELLED}),
    State.DEVICE: frozenset({State.POSTCOPY_ACTIVE, State.COMPLETED, State.FAILED, State.CANCELLED}),
    State.POSTCOPY_ACTIVE: frozenset({State.POSTCOPY_PAUSED, State.COMPLETED, State.FAILED}),
    State.POSTCOPY_PAUSED: frozenset({State.POSTCOPY_RECOVER, State.FAILED}),
    State.POSTCOPY_RECOVER: frozenset({State.POSTCOPY_ACTIVE, State.POSTCOPY_PAUSED, State.FAILED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class StateMachine:
    """Where a migration is; starts at ``none``."""

    def __init__(self) -> None:
        self.state = State.NONE

    def enter(self, state: State) -> None:
        """:raises MigrationError: when *state* cannot follow the present one."""
        if state not in _NEXT[self.state]:
            raise MigrationError(f"a migration cannot go from '{self.state.value}' to '{state.value}'")
        self.state = state

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    @property
    def cancellable(self) -> bool:
        """True while the source's guest runs or, in ``device``, can run again: until the handover is sent."""
        return self.state in (State.NONE, State.SETUP, State.ACTIVE, State.DEVICE)
