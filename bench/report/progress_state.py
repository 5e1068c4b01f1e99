"""What is known of a run while it goes on, by its events: of each guest's migration, and of every flow. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.report.text import NOT_SEEN, PAGE_BYTES, clean, count, duration
from bench.timeline import Event
from bench.units import format_bit_rate, format_bytes

SPARKS: Final = 24
_SOURCE: Final = "engine.source"
_DESTINATION: Final = "engine.destination"
_STEPS = {
    (_SOURCE, "setup_begin"): "setting the migration up",
    (_SOURCE, "setup_end"): "set up: copying memory while the guest runs",
    (_SOURCE, "mirror_begin"): "copying the local disks while the guest runs",
    (_SOURCE, "mirror_close"): "the local disks are copied, and what is written goes on to the copies",
    (_SOURCE, "storage_settling"): "waiting until the disks are flushed, while the guest runs",
    (_SOURCE, "switchover_decided"): "switchover",
    (_SOURCE, "paused"): "the guest is paused: copying the rest",
    (_SOURCE, "device_state_sent"): "device state sent",
    (_SOURCE, "handover_confirmed"): "the destination has confirmed that the guest runs there",
    (_SOURCE, "resumed_at_source"): "rolled back: the guest goes on at its source",
    (_DESTINATION, "resumed"): "the guest runs at its destination",
    (_SOURCE, "postcopy_begin"): "post-copy: the guest gets the rest of its pages while it runs",
    (_SOURCE, "postcopy_paused"): "post-copy paused: the network between the hypervisors failed",
    (_SOURCE, "postcopy_recovered"): "post-copy goes on",
    (_SOURCE, "postcopy_end"): "post-copy: every page is at the destination",
    (_DESTINATION, "port_wired"): "the guest's port forwards at its destination",
}


def _whole(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with_reason(text: str, data: Mapping[str, Any]) -> str:
    return f"{text}: {data['reason']}" if data.get("reason") else text


@dataclass(slots=True)
class FlowState:
    """The last that was heard of a flow. ``longest_ns``: the longest that it said it was without an answer so far."""

    requests: int = 0
    last_reply_ns: int = 0
    alive: bool = True
    bytes: int | None = None
    heard_ns: int = 0
    longest_ns: int = 0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKS))

    def hear(self, t_ns: int, requests: int, carried: int | None) -> None:
        """Note how much came since it was last heard of: in bit/s where bytes are known, else in requests/s."""
        more = requests - self.requests if carried is None else (carried - (self.bytes or 0)) * 8
        if self.heard_ns and t_ns > self.heard_ns:
            self.rates.append(max(0, more) * NS_PER_S / (t_ns - self.heard_ns))
        self.heard_ns, self.requests, self.bytes = t_ns, requests, carried

    @property
    def rate(self) -> str:
        """Of the last moment, as text."""
        if not self.rates:
            return ""
        return f"{self.rates[-1]:,.0f}/s" if self.bytes is None else format_bit_rate(round(self.rates[-1]))


@dataclass(slots=True)
class MigrationState:
    """What is known of the migration of one guest.

    :param step: what it is doing; empty before it did anything.
    :param rate_bps: throughput of the current round, 0 before it is known.
    :param dirty_share: pages that were dirtied while a page was sent, over the last round; None before it is known.
    """

    step: str = ""
    round: int | None = None
    round_pages: int | None = None
    pages_left: int | None = None
    rate_bps: int = 0
    bytes_sent: int = 0
    dirty_share: float | None = None
    over: bool = False

    def apply(self, event: Event) -> str | None:
        """Take an event of an engine in; the line that tells of it when it changed what the migration is doing."""
        data = event.data
        if event.name == "round_progress":
            self._round_progress(data)
        elif event.name == "round_begin":
            self.round, self.pages_left, self.round_pages, self.rate_bps = _whole(data, "round"), None, None, 0
        elif event.name == "round_end":
            return self._round_end(data)
        elif (event.source, event.name) == (_SOURCE, "finished"):
            self.round = self.pages_left = self.dirty_share = None
            self.over = True
            return self._step(_with_reason(f"migration {data.get('outcome', 'ended')}", data))
        elif (event.source, event.name) in _STEPS:
            self.over = False
            if event.name == "paused":
                self.round = None
            return self._step(_with_reason(_STEPS[event.source, event.name], data))
        return None

    def _step(self, text: str) -> str | None:
        text = clean(text)
        if text == self.step:
            return None
        self.step = text
        return text

    def _round_progress(self, data: Mapping[str, Any]) -> None:
        left = _whole(data, "pages_left")
        if left is None:
            return
        self.round = _whole(data, "round") or self.round
        self.pages_left = left
        self.round_pages = max(left, self.round_pages or 0)
        self.bytes_sent = _whole(data, "bytes_sent") or self.bytes_sent
        self.rate_bps = _whole(data, "rate_bps") or self.rate_bps

    def _round_end(self, data: Mapping[str, Any]) -> str:
        pages, dirty = _whole(data, "pages") or 0, _whole(data, "dirty_pages_after") or 0
        sent, start, end = _whole(data, "bytes_sent"), _whole(data, "start_ns"), _whole(data, "end_ns")
        if pages:
            self.dirty_share = dirty / pages
        self.pages_left = dirty
        took = None if start is None or end is None else end - start
        shown = NOT_SEEN if sent is None else format_bytes(sent)
        which = "final copy" if data.get("paused") else f"round {data.get('round', '?')}"
        return f"{which}: {count(pages, 'page')}, {shown} in {duration(took)}, {dirty:,} dirty after"

    def remaining_ns(self) -> int | None:
        """How long the copying will go on if it goes on like this; None when that is not known, or it will not end.

        What is left goes at the current rate, and each page sent lets ``dirty_share`` further ones become dirty: a
        geometric series. Pages count as sent in full, so zero pages make it end sooner.
        """
        if self.pages_left is None or not self.rate_bps or (self.dirty_share or 0) >= 1:
            return None
        once_ns = self.pages_left * PAGE_BYTES * 8 * NS_PER_S // self.rate_bps
        return round(once_ns / (1 - (self.dirty_share or 0)))


@dataclass(slots=True)
class ProgressState:
    """What is known of the run.

    :param several: whether there are several guests: then a line names the one that it is about.
    :param step: the last that the run was said to do.
    :param migrations: by guest; with only one it may not be named.
    """

    several: bool = False
    step: str = "starting"
    migrations: dict[str, MigrationState] = field(default_factory=dict)
    flows: dict[str, FlowState] = field(default_factory=dict)

    def apply(self, event: Event) -> str | None:
        """Take an event in; the line that tells of it when it changed what the run is doing, else None."""
        if event.name == "flow_status":
            return self._flow(event.t_ns, event.data)
        if event.name == "step":
            return self._step(clean(str(event.data.get("text", ""))))
        if event.source not in (_SOURCE, _DESTINATION):
            return None
        line = self.migrations.setdefault(event.guest, MigrationState()).apply(event)
        if line is None:
            return None
        if event.name == "round_end":
            return self._named(event, line)
        return self._step(self._named(event, line))

    def _named(self, event: Event, line: str) -> str:
        return f"{clean(event.guest)}: {line}" if self.several and event.guest else line

    def _step(self, text: str) -> str | None:
        if not text or text == self.step:
            return None
        self.step = text
        return text

    def _flow(self, t_ns: int, data: Mapping[str, Any]) -> str | None:
        name = clean(str(data.get("name", "")))
        flow = self.flows.setdefault(name, FlowState())
        flow.hear(t_ns, _whole(data, "requests") or flow.requests, _whole(data, "bytes"))
        flow.last_reply_ns = _whole(data, "last_reply_ns") or flow.last_reply_ns
        if flow.last_reply_ns:  # by the flow's own clock: what it said may have waited for us
            flow.longest_ns = max(flow.longest_ns, t_ns - flow.last_reply_ns)
        was, flow.alive = flow.alive, data.get("alive") is not False
        return f"{name}: the flow is dead" if was and not flow.alive else None
