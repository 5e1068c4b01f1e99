"""What every flow of the guest's own is: told once, served by the guest's loop, frozen, moved and served again.

Its records are notes (:mod:`bench.flows.notes`) in a file of the process that the guest is in then; what a flow
needs to go on is its :meth:`~OutboundFlow.state`, which moves with the guest's device state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bench.flows.ending import EndingFlow
from bench.flows.notes import NoteFile, flow_number
from bench.flows.spec import FlowSpec
from bench.guest.connection import Connection
from bench.guest.loop import Loop, Timer
from bench.guest.services.base import StreamService, integer

CLIENT = "client"
"""The name of the service at the guest's end of its own connections."""


class Adopt(Protocol):
    """Make a connection of the guest of a connected socket."""

    def __call__(self, sock: Any, service: StreamService) -> Connection: ...


@dataclass(frozen=True, slots=True)
class Means:
    """What flows get from the guest.

    :param ip: the guest's address.
    :param event: ``event(name, **data)`` writes one of the guest's events.
    """

    ip: str
    loop: Loop
    notes: NoteFile
    adopt: Adopt
    event: Callable[..., None]


class OutboundFlow(EndingFlow):
    """One flow from the guest to a server outside.

    Life: made, :meth:`start` once (on the guest where it begins) or :meth:`load` (where it is moved to) and
    :meth:`serve`; :meth:`freeze`, :meth:`state` and again :meth:`serve` around each migration; :meth:`stop`, after
    which :attr:`done` becomes true within a second.
    """

    kind: ClassVar[str]

    def __init__(self, spec: FlowSpec, means: Means) -> None:
        super().__init__(spec)
        self.means = means
        self.number = flow_number(spec.name)
        self.count = 0
        self.reconnects = 0
        self._timer: Timer | None = None

    @classmethod
    def prepare(cls) -> None:
        """Ahead of a flow of this kind in this process: what takes long."""

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def stop(self) -> None:
        """Ask nothing more."""

    @abstractmethod
    def serve(self) -> None:
        """Go on after :meth:`freeze` or :meth:`load`."""

    @abstractmethod
    def release(self) -> None:
        """Let go of sockets that are not the guest's connections."""

    def freeze(self) -> None:
        """No timer runs until :meth:`serve`."""
        self.cancel()

    def look(self, now: int) -> None:
        """Called some times a second: the place for time limits."""

    def at(self, due_ns: int, call: Callable[[], object]) -> None:
        """The flow's one timer."""
        self.cancel()
        self._timer = self.means.loop.at(due_ns, call)

    def cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def note(self, seq: int, sent_ns: int, received_ns: int, size: int, status: int = 0) -> None:
        self.means.notes.note(self.number, seq, sent_ns, received_ns, size, status)

    def event(self, name: str, **data: Any) -> None:
        self.means.event(name, flow=self.spec.name, **data)

    def finish(self) -> None:
        if not self.done:
            self.cancel()
        super().finish()

    def state(self) -> dict[str, Any]:
        """JSON-able; what :meth:`load` needs at the destination."""
        return {
            "spec": self.spec.to_json(),
            "alive": self.alive,
            "error": self.error,
            "done": self.done,
            "stopping": self.stopping,
            "count": self.count,
            "last_reply_ns": self.last_reply_ns,
            "ended_ns": self.ended_ns,
            "reconnects": self.reconnects,
            "retransmits": self.retransmits,
            "local_port": self.local_port,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """:raises KeyError, TypeError, ValueError: *state* is none."""
        self.alive, self.done, self.stopping = bool(state["alive"]), bool(state["done"]), bool(state["stopping"])
        self.error = str(state["error"])[:64]
        self.count, self.reconnects = integer(state, "count"), integer(state, "reconnects")
        self.last_reply_ns, self.ended_ns = integer(state, "last_reply_ns"), integer(state, "ended_ns")
        self.retransmits = None if state["retransmits"] is None else integer(state, "retransmits")
        self.local_port = None if state["local_port"] is None else integer(state, "local_port")

    def report(self) -> dict[str, Any]:
        """What became of it; the records are in the notes."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "alive": self.alive,
            "error": self.error or None,
            "done": self.done,
            "requests": self.count,
            "last_reply_ns": self.last_reply_ns,
            "retransmits": self.retransmits,
            "reconnects": self.reconnects,
            "local_port": self.local_port,
            "ended_ns": self.ended_ns,
        }
