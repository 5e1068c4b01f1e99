"""What every client flow is: a specification, a small state machine on the agent's loop, records and a report."""

from __future__ import annotations

import errno
import os
import random
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.clock import NS_PER_S, now_ns
from bench.errors import ProbeError
from bench.probe.flows.options import TcpOptions
from bench.probe.loop import Loop
from bench.probe.records import RecordBuffer
from bench.records import DUPLICATES_SHIFT, STATUS_CORRUPT, STATUS_REORDERED

GRACE_NS: Final = NS_PER_S
"""How long after its stop a flow waits for the answers that are still outstanding; then they are lost."""

FILLER_BYTES: Final = 1 << 17
_NAME: Final = re.compile(r"^[A-Za-z0-9_.-]{1,32}$")


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """One flow as the agent was told it; units in the names, ``rate_bps`` in bit/s with 0 for "as fast as it goes".

    :param guest_address: of the guest that it talks to; empty for the agent's.
    """

    name: str
    kind: str
    interval_ns: int = 1_000_000
    think_ns: int = 1_000_000
    size: int = 64
    rate_bps: int = 0
    timeout_ns: int = 60 * NS_PER_S
    command: tuple[str, ...] = ()
    guest_address: str = ""
    tcp: TcpOptions = field(default_factory=TcpOptions)
    retry: bool = False

    @classmethod
    def from_json(cls, raw: object) -> FlowSpec:
        """:raises ProbeError: naming the member that is missing or wrong."""
        if not isinstance(raw, Mapping):
            raise ProbeError(f"a flow must be an object, not {type(raw).__name__}")
        name, kind, command = raw.get("name"), raw.get("kind"), raw.get("command", ())
        if not isinstance(name, str) or not _NAME.match(name):
            raise ProbeError(f"a flow's name must be 1 to 32 letters, digits or _.-, not {str(name)[:80]!r}")
        if not isinstance(kind, str):
            raise ProbeError(f"flow {name}: kind must be text")
        if not isinstance(command, list | tuple) or not all(isinstance(word, str) for word in command):
            raise ProbeError(f"flow {name}: command must be a list of words")
        address = raw.get("guest_address", "")
        if not isinstance(address, str):
            raise ProbeError(f"flow {name}: guest_address must be text")
        retry = raw.get("retry", False)
        if not isinstance(retry, bool):
            raise ProbeError(f"flow {name}: retry must be true or false")
        options = TcpOptions.from_json(raw.get("tcp", {}), name)
        limits = {
            "interval_ns": (10_000, 3600 * NS_PER_S),
            "think_ns": (0, 3600 * NS_PER_S),
            "size": (16, 65536),
            "rate_bps": (0, 10**12),
            "timeout_ns": (1_000_000, 3600 * NS_PER_S),
        }
        numbers: dict[str, int] = {}
        for key, (least, most) in limits.items():
            value = raw.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ProbeError(f"flow {name}: {key} must be a whole number from {least} to {most}, not {value!r}")
            numbers[key] = value
        return cls(
            name=name,
            kind=kind,
            command=tuple(command),
            guest_address=address,
            tcp=options,
            retry=retry,
            **numbers,
        )


FlowEvent = Callable[..., object]
"""``on_event(name, **data)``: writes one event of this flow."""


class Flow(ABC):
    """One flow from this client to the guest.

    Life: made, :meth:`start`, :meth:`stop` (asks nothing more, waits at most a bounded time for what is outstanding),
    :attr:`done`, :meth:`report`; :meth:`close` at any time. A flow whose connection dies says so once
    (``alive`` false, ``error`` the errno's name); it connects anew only when its specification says ``retry``, because
    a client of a migrating guest should not have to.
    """

    kind: ClassVar[str]

    def __init__(self, spec: FlowSpec, guest_address: str, loop: Loop, directory: Path, on_event: FlowEvent) -> None:
        self.spec = spec
        self.guest_address = guest_address
        self.loop = loop
        self.directory = directory
        self.records = RecordBuffer()
        self.alive = True
        self.error: str | None = None
        self.done = False
        self.stopping = False
        self.last_reply_ns = 0
        self.ended_ns = 0
        self.retransmits: int | None = None
        self.local_port: int | None = None
        self._on_event = on_event

    @abstractmethod
    def start(self) -> None:
        """Begin. Errors of the network do not raise, they make the flow dead."""

    @abstractmethod
    def stop(self) -> None:
        """Ask nothing more; :attr:`done` becomes true by itself within a bounded time."""

    @abstractmethod
    def release(self) -> None:
        """Close descriptors and end processes; called once, by :meth:`close` or when the flow is done."""

    def check(self, now: int) -> None:  # noqa: B027  not every kind has a time limit
        """Called about five times a second: the place for time limits."""

    def extra(self) -> dict[str, Any]:
        """What the report of this kind says beyond the common members."""
        return {}

    def event(self, name: str, **data: Any) -> None:
        self._on_event(name, flow=self.spec.name, **data)

    def fail(self, error: Exception | str) -> None:
        """The flow is dead: note why, once, and stop it."""
        if self.done:
            return
        self.alive = False
        self.note_end()
        self.error = error_name(error) if isinstance(error, Exception) else error
        self.event("flow_dead", error=self.error, detail=str(error)[:500])
        self.finish()

    def note_end(self) -> None:
        """The flow was stopped or died now; what comes first counts."""
        self.ended_ns = self.ended_ns or now_ns()

    def finish(self) -> None:
        """Nothing more will happen: let go of what the flow holds."""
        if not self.done:
            self.done = True
            self.release()

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
            "error": self.error,
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


def error_name(error: Exception) -> str:
    """``"ECONNRESET"`` for an OSError, the class's name for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, os.strerror(error.errno))
    return type(error).__name__


def filler(name: str) -> bytes:
    """Pseudo-random content, the same for every flow of this name."""
    return random.Random(zlib.crc32(name.encode())).randbytes(FILLER_BYTES)
