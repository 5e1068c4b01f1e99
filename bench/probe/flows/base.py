"""What every client flow is: a specification, a small state machine on the agent's loop, records and a report."""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from bench.clock import now_ns
from bench.flows.ending import EndingFlow
from bench.flows.spec import FlowSpec
from bench.probe.loop import Loop
from bench.probe.records import RecordBuffer
from bench.records import DUPLICATES_SHIFT, STATUS_CORRUPT, STATUS_REORDERED

FlowEvent = Callable[..., object]
"""``on_event(name, **data)``: writes one event of this flow."""


class Flow(EndingFlow):
    """One flow from this client to the guest.

    Life: made, :meth:`start`, :meth:`stop` (asks nothing more, waits at most a bounded time for what is outstanding),
    :attr:`done`, :meth:`report`; :meth:`close` at any time. A flow whose connection dies says so once
    (``alive`` false, ``error`` the errno's name); it connects anew only when its specification says ``retry``, because
    a client of a migrating guest should not have to.
    """

    kind: ClassVar[str]

    def __init__(self, spec: FlowSpec, guest_address: str, loop: Loop, directory: Path, on_event: FlowEvent) -> None:
        super().__init__(spec)
        self.guest_address = guest_address
        self.loop = loop
        self.directory = directory
        self.records = RecordBuffer()
        self._on_event = on_event

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6, by how the guest's address is written."""
        return socket.AF_INET6 if ":" in self.guest_address else socket.AF_INET

    @abstractmethod
    def start(self) -> None:
        """Begin. Errors of the network do not raise, they make the flow dead."""

    @abstractmethod
    def stop(self) -> None:
        """Ask nothing more; :attr:`done` becomes true by itself within a bounded time."""

    @abstractmethod
    def release(self) -> None:
        """Close descriptors and end processes; called once, by :meth:`close` or when the flow is done."""

    def check(self, now: int) -> None:
        """Called about five times a second: the place for time limits."""

    def extra(self) -> dict[str, Any]:
        """What the report of this kind says beyond the common members."""
        return {}

    def event(self, name: str, **data: Any) -> None:
        self._on_event(name, flow=self.spec.name, **data)

    def close(self) -> None:
        """Idempotent."""
        self.finish()

    def status(self) -> dict[str, Any]:
        """For the live display."""
        return {
            "name": self.spec.name,
            "requests": len(self.records),
            "last_reply_ns": self.last_reply_ns,
            "alive": self.alive,
        }

    def report(self) -> dict[str, Any]:
        """The contract's reply for this flow, with what the kind adds."""
        records = self.records.array()
        status = records["status"]
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "requests": len(records),
            "lost": int((records["received_ns"] == 0).sum()),
            "duplicated": int((status >> DUPLICATES_SHIFT).sum()),
            "reordered": int(((status & STATUS_REORDERED) != 0).sum()),
            "corrupted": int(((status & STATUS_CORRUPT) != 0).sum()),
            "alive": self.alive,
            "error": self.error or None,
            "retransmits": self.retransmits,
            "local_port": self.local_port,
            "ended_ns": self.ended_ns,
            **self.extra(),
        }

    def _at(self, when_ns: int, call: Callable[[], None]) -> None:
        self.loop.at(when_ns, call, self.fail)

    def _finish_after(self, duration_ns: int) -> None:
        """Finish at the latest *duration_ns* from now."""
        self._at(now_ns() + duration_ns, self.finish)
