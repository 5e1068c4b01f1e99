"""The states of a migration in QEMU's words (MigrationStatus of qapi/migration.json), and which may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from bench.errors import MigrationError


class State(enum.Enum):
    """``device`` is the time from the guest's pause on: no way back by cancel, only by failure."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    DEVICE = "device"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

_NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.NONE: frozenset({State.SETUP, State.FAILED}),
    State.SETUP: frozenset({State.ACTIVE, State.FAILED, State.CANCELLED}),
    State.ACTIVE: frozenset({State.DEVICE, State.FAILED, State.CANCELLED}),
    State.DEVICE: frozenset({State.COMPLETED, State.FAILED}),
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
        """True until the final copy begins."""
        return self.state in (State.NONE, State.SETUP, State.ACTIVE)
