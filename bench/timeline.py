"""What happened when: events of every process of a run on one clock.

An :class:`Event` is what a process saw; a :class:`Timeline` is all of them in order. On disk an event is one JSON
line::

    {"t": 123456789, "source": "engine.source", "name": "paused", "data": {...}, "guest": "g1"}

``t`` is CLOCK_MONOTONIC in ns (:mod:`bench.clock`). ``guest`` is there when the event is about one guest: guest
processes and engines do not write it, whoever collects their events knows whose they are.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.clock import now_ns
from bench.errors import ResultError

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """One observation.

    :param t_ns: CLOCK_MONOTONIC in ns.
    :param source: who saw it, dotted: ``runner``, ``engine.source``, ``guest``, ``controller``, ``probe.s1``.
    :param name: what, in snake_case.
    :param data: JSON-able details.
    :param guest: the guest that it is about, empty when it is about none or nobody has said so yet.
    """

    t_ns: int
    source: str
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    guest: str = ""

    def to_json(self) -> dict[str, Any]:
        whose = {"guest": self.guest} if self.guest else {}
        return {"t": self.t_ns, "source": self.source, "name": self.name, "data": dict(self.data), **whose}

    @classmethod
    def from_json(cls, raw: object) -> Event:
        """:raises ResultError: when *raw* is not an event."""
        if (
            isinstance(raw, dict)
            and isinstance(raw.get("t"), int)
            and isinstance(raw.get("source"), str)
            and isinstance(raw.get("name"), str)
            and isinstance(raw.get("data", {}), dict)
            and isinstance(raw.get("guest", ""), str)
        ):
            return cls(raw["t"], raw["source"], raw["name"], raw.get("data", {}), raw.get("guest", ""))
        raise ResultError(f"not an event: {str(raw)[:120]}")

    @classmethod
    def now(cls, source: str, name: str, **data: Any) -> Event:
        return cls(now_ns(), source, name, data)


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of time; both ends CLOCK_MONOTONIC ns."""

    name: str
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


class Timeline:
    """Events ordered by time. Adding out of order is allowed: processes report with a delay."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: list[Event] = sorted(events, key=lambda event: event.t_ns)

    def add(self, event: Event) -> None:
        if not self._events or self._events[-1].t_ns <= event.t_ns:
            self._events.append(event)
        else:
            bisect.insort(self._events, event, key=lambda item: item.t_ns)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def select(
        self,
        name: str | None = None,
        source: str | None = None,
        after_ns: int | None = None,
        before_ns: int | None = None,
    ) -> list[Event]:
        """Events in order with this *name*, from this *source*, in the half-open interval [after, before)."""
        return [
            event
            for event in self._events
            if (name is None or event.name == name)
            and (source is None or event.source == source)
            and (after_ns is None or event.t_ns >= after_ns)
            and (before_ns is None or event.t_ns < before_ns)
        ]

    def about(self, guest: str) -> Timeline:
        """What is about this guest, or about none in particular."""
        return Timeline(event for event in self._events if event.guest in (guest, ""))

    def first(self, name: str, source: str | None = None, after_ns: int | None = None) -> Event | None:
        found = self.select(name, source, after_ns)
        return found[0] if found else None

    def last(self, name: str, source: str | None = None, before_ns: int | None = None) -> Event | None:
        found = self.select(name, source, None, before_ns)
        return found[-1] if found else None

    def write(self, path: Path) -> None:
        """Write events.jsonl."""
        with path.open("w", encoding="utf-8") as file:
            for event in self._events:
                file.write(json.dumps(event.to_json(), separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """:raises ResultError: when a line is too long or no event."""
        events = []
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ResultError(f"{path}: line {number} is longer than {MAX_LINE_BYTES} bytes")
                try:
                    events.append(Event.from_json(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise ResultError(f"{path}: line {number} is not JSON: {error}") from error
                except ResultError as error:
                    raise ResultError(f"{path}: line {number} is {error.message}") from None
        return cls(events)


class EventWriter:
    """Appends events to a file of its own as they happen, one write each, so that a killed process loses none.

    :param path: the ``.jsonl`` file; :meth:`Timeline.read` reads it.
    :param source: the source of every event written.
    :param also: called with each event as well (a channel upwards, for the live display).
    """

    def __init__(self, path: Path, source: str, also: Callable[[Event], None] | None = None) -> None:
        self.source = source
        self._file = path.open("ab", buffering=0)
        self._also = also

    def __call__(self, name: str, t_ns: int | None = None, **data: Any) -> Event:
        """Write one event; *t_ns* is when it happened, now by default."""
        event = Event(now_ns() if t_ns is None else t_ns, self.source, name, data)
        self._file.write(json.dumps(event.to_json(), separators=(",", ":")).encode() + b"\n")
        if self._also is not None:
            self._also(event)
        return event

    def close(self) -> None:
        self._file.close()
