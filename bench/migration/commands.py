"""What the runner tells a source engine while its migration runs: ``cancel`` and ``recover``."""

from __future__ import annotations

import select
from collections.abc import Callable

from bench.host.channel import Channel, ChannelClosed, Message
from bench.migration.engine import RunnerGone
from bench.migration.states import State, StateMachine


class Cancelled(Exception):
    """The migration ends here, the guest stays; ``str()`` says why."""


class Commands:
    """The runner's channel during one migration.

    :ivar cancel_reason: why the migration is to be cancelled; empty while nobody asked for it.
    :ivar recover_wanted: the runner asked for it; only in ``postcopy-paused``.
    :ivar handed_over: the destination was told to take the guest: too late for a cancel.
    :ivar on_cancel: called once, when a cancel was accepted.
    """

    def __init__(self, channel: Channel, states: StateMachine) -> None:
        self.cancel_reason = ""
        self.recover_wanted = False
        self.handed_over = False
        self.on_cancel: Callable[[], None] = _nothing
        self._channel = channel
        self._states = states

    def fileno(self) -> int:
        return self._channel.fileno()

    def serve(self) -> None:
        """The channel is readable. :raises RunnerGone: when it has ended; Cancelled: when nothing is left to finish."""
        try:
            messages = self._channel.receive_ready()
        except ChannelClosed as error:
            raise RunnerGone from error
        for message in messages:
            self._serve(message)

    def wait(self) -> None:
        """Serve the runner's next command. :raises RunnerGone: when there will be none."""
        select.select([self._channel], [], [])
        self.serve()

    def check(self) -> None:
        """:raises Cancelled: when the runner asked for it."""
        if self.cancel_reason:
            raise Cancelled(self.cancel_reason)

    def _serve(self, message: Message) -> None:
        number = int(message.get("id", 0))
        if message.get("command") == "recover":
            self.recover_wanted = self._states.state is State.POSTCOPY_PAUSED
            self._channel.send_reply(number, {"accepted": self.recover_wanted})
            return
        if message.get("command") != "cancel":
            self._channel.send_error(number, "a migration is running: only 'cancel' and 'recover' now")
            return
        accepted = self._states.cancellable and not self.handed_over
        self._channel.send_reply(number, {"accepted": accepted})
        if accepted and not self.cancel_reason:
            self.cancel_reason = "cancelled by command"
            self.on_cancel()
            if self._states.state in (State.SETUP, State.DEVICE):  # nothing to finish first, or a guest that waits
                raise Cancelled(self.cancel_reason)


def _nothing() -> None:
    """Nobody wants to know yet."""
