"""How a flow ends, whoever's it is: the guest's own or a client host's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from bench.clock import now_ns
from bench.flows.spec import FlowSpec, error_name


class EndingFlow(ABC):
    """A flow that goes on until it is stopped or dies, which it says once.

    :ivar alive: false once it died.
    :ivar error: of what it died: an errno's name or a word of the kind; empty while it lives.
    :ivar done: nothing more will happen.
    :ivar stopping: it was told to stop.
    :ivar last_reply_ns: when the last answer came, 0 before the first.
    :ivar ended_ns: when it was stopped or died, 0 before.
    """

    def __init__(self, spec: FlowSpec) -> None:
        self.spec = spec
        self.alive = True
        self.error = ""
        self.done = False
        self.stopping = False
        self.last_reply_ns = 0
        self.ended_ns = 0
        self.retransmits: int | None = None
        self.local_port: int | None = None

    @abstractmethod
    def event(self, name: str, **data: Any) -> None:
        """Write one event of this flow."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what the flow holds; called once, when it is done."""

    def fail(self, error: Exception | str) -> None:
        """The flow is dead: say why, once."""
        if self.done:
            return
        self.alive = False
        self.error = error_name(error) if isinstance(error, Exception) else error
        self.note_end()
        self.event("flow_dead", error=self.error, detail=str(error)[:500])
        self.finish()

    def note_end(self) -> None:
        """It was stopped or died now; what comes first counts."""
        self.ended_ns = self.ended_ns or now_ns()

    def finish(self) -> None:
        """Nothing more will happen. Idempotent."""
        if not self.done:
            self.done = True
            self.release()
