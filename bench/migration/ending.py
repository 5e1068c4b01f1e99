"""How a migration ends at its source: completed, cancelled or failed, always with exactly one guest running."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from bench.errors import BenchError
from bench.migration.commands import Commands
from bench.migration.departure import DepartingGuest
from bench.migration.engine import log, reason_of
from bench.migration.order import Order, Outcome
from bench.migration.peer import Peer, text
from bench.migration.states import State, StateMachine
from bench.migration.wire import Kind

BACKGROUND_NICE: Final = 10  # hashing after the switchover leaves the processors to the guest and its clients


class Ending:
    """The ends of one migration; each is called at most once, and none raises.

    :param guest: None while the guest was not reached.
    :ivar serve_pages: set once the destination could run the guest without all its pages: what to do, and with which
        reason, when it owns the guest and this side learns of it late.
    """

    def __init__(self, order: Order, states: StateMachine, commands: Commands, peer: Peer, outcome: Outcome) -> None:
        self.guest: DepartingGuest | None = None
        self.serve_pages: Callable[[str], None] | None = None
        self._order = order
        self._states = states
        self._commands = commands
        self._peer = peer
        self._outcome = outcome

    def finish(self) -> None:
        """The destination runs the guest: compare memories, then end the source's guest."""
        assert self.guest is not None
        with contextlib.suppress(OSError):
            os.nice(BACKGROUND_NICE)
        if self._order.verify == "background":
            try:
                self._outcome.digest_source = self.guest.digest()
                answer = self._peer.receive(Kind.DIGEST, self._order.answer_timeout_ns)
                self._outcome.digest_destination = text(answer, "digest")
            except (BenchError, OSError) as error:  # too late to fail: the guest runs there
                self._outcome.reason = f"memory could not be compared: {reason_of(error)}"
        try:
            self.guest.end()
        except (BenchError, OSError) as error:  # its dead man's switch ends it: the lease is not its own any more
            self._outcome.reason = f"the source's guest did not quit by itself: {reason_of(error)}"
        self._enter(State.COMPLETED, self._outcome.reason)

    def cancelled(self, reason: str) -> None:
        """The migration was cancelled: the guest runs on here."""
        if self._states.state is State.DEVICE and not (self.guest is not None and self.guest.resume()[0]):
            self._enter(State.FAILED, f"{reason}, but the guest could not be resumed at the source")
            return
        self._stay(Kind.CANCEL, reason)
        self._enter(State.CANCELLED, reason)

    def failed(self, error: Exception) -> None:
        """Something failed: the guest runs on where it may, which after the pause the lease says."""
        reason = reason_of(error)
        log(f"failed in state {self._states.state.value}: {reason}")
        if self._commands.cancel_reason and not self._commands.handed_over:  # a stuck link did not let it finish nicely
            self.cancelled(self._commands.cancel_reason)
            return
        if self._states.state is not State.DEVICE:
            self._stay(Kind.ERROR, reason)
        elif self._resume_or_concede(reason):
            return
        self._enter(State.FAILED, reason)

    def _resume_or_concede(self, reason: str) -> bool:
        """After the pause: have the guest run here again, unless the destination has it already.

        :returns: True when the destination has it.
        """
        assert self.guest is not None
        resumed, owner = self.guest.resume()
        if resumed:
            self._stay(Kind.ERROR, reason)
            return False
        if owner is None:
            return False
        if self.serve_pages is not None:
            try:
                self.serve_pages(reason)
                self.finish()
            except (BenchError, OSError) as error:
                self.failed(error)
            return True
        with contextlib.suppress(BenchError):
            self.guest.end()
        self._enter(State.COMPLETED, f"{owner} took the guest over, its confirmation was lost: {reason}")
        return True

    def _stay(self, kind: Kind, reason: str) -> None:
        self._peer.tell(kind, reason)
        if self.guest is not None:
            self.guest.let_be()

    def _enter(self, state: State, reason: str) -> None:
        self._states.enter(state)
        self._outcome.state = state
        self._outcome.reason = reason
