"""What a run is doing, while it does it: a live display on a terminal, plain lines elsewhere. Driven by events alone.

No thread of its own: the display is drawn when an event comes, at most every :data:`REDRAW_NS` (the flows' status comes
about five times a second). :class:`ProgressState` is what is known, and pure; :class:`Progress` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.report.text import NOT_SEEN, PAGE_BYTES, bar, clean, count, duration, fancy, table
from bench.timeline import Event
from bench.units import format_bit_rate, format_bytes

REDRAW_NS = 100 * NS_PER_MS
SILENT_NS = 500 * NS_PER_MS
MAX_FLOWS_SHOWN = 20
_BAR_WIDTH = 30
_SOURCE, _DESTINATION = "engine.source", "engine.destination"
_STEPS = {
    (_SOURCE, "setup_begin"): "setting the migration up",
    (_SOURCE, "setup_end"): "set up: copying memory while the guest runs",
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
    """The last that was heard of a flow."""

    requests: int = 0
    last_reply_ns: int = 0
    alive: bool = True


@dataclass(slots=True)
class ProgressState:
    """What is known of the run by its events.

    :param rate_bps: throughput of the current round, 0 before it is known.
    :param dirty_share: pages that were dirtied while a page was sent, over the last round; None before it is known.
    """

    step: str = "starting"
    round: int | None = None
    round_pages: int | None = None
    pages_left: int | None = None
    rate_bps: int = 0
    bytes_sent: int = 0
    dirty_share: float | None = None
    flows: dict[str, FlowState] = field(default_factory=dict)

    def apply(self, event: Event) -> str | None:
        """Take an event in; the line that tells of it when it changed what the run is doing, else None."""
        data = event.data
        if event.name == "flow_status":
            return self._flow(data)
        if event.name == "step":
            return self._step(str(data.get("text", "")))
        if event.name == "round_progress":
            self._round_progress(data)
        elif event.name == "round_begin":
            self.round, self.pages_left, self.round_pages, self.rate_bps = _whole(data, "round"), None, None, 0
        elif event.name == "round_end":
            return self._round_end(data)
        elif (event.source, event.name) == (_SOURCE, "finished"):
            self.round = self.pages_left = self.dirty_share = None
            return self._step(_with_reason(f"migration {data.get('outcome', 'ended')}", data))
        elif (event.source, event.name) in _STEPS:
            if event.name == "paused":
                self.round = None
            return self._step(_with_reason(_STEPS[event.source, event.name], data))
        return None

    def _step(self, text: str) -> str | None:
        text = clean(text)
        if not text or text == self.step:
            return None
        self.step = text
        return text

    def _flow(self, data: Mapping[str, Any]) -> str | None:
        name = clean(str(data.get("name", "")))
        flow = self.flows.setdefault(name, FlowState())
        flow.requests = _whole(data, "requests") or flow.requests
        flow.last_reply_ns = _whole(data, "last_reply_ns") or flow.last_reply_ns
        was, flow.alive = flow.alive, data.get("alive") is not False
        return f"{name}: the flow is dead" if was and not flow.alive else None

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


class Progress:
    """Shows a run's progress on *console*; a context manager.

    :param clock_ns: CLOCK_MONOTONIC, replaced in tests only.
    """

    def __init__(self, console: Console, clock_ns: Callable[[], int] = now_ns) -> None:
        self.state = ProgressState()
        self._console = console
        self._clock_ns = clock_ns
        self._began_ns = clock_ns()
        self._drawn_ns = 0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        self._began_ns = self._clock_ns()
        if self._console.is_terminal:
            self._live = Live(
                self._picture(),
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_event(self, event: Event) -> None:
        """Take an event of any process in; those that mean nothing here are ignored."""
        line = self.state.apply(event)
        if line is not None:
            self._say(event.t_ns, line)
        if self._live is None:
            return
        now = self._clock_ns()
        if line is not None or now - self._drawn_ns >= REDRAW_NS:
            self._drawn_ns = now
            self._live.update(self._picture(), refresh=True)

    def _say(self, t_ns: int, line: str) -> None:
        since_s = max(0, t_ns - self._began_ns) / NS_PER_S
        self._console.print(Text(f"{since_s:7.1f} s  {line}"), soft_wrap=True)

    # the live display

    def _picture(self) -> RenderableType:
        state = self.state
        parts: list[RenderableType] = [Text(state.step, style="bold")]
        if state.round is not None:
            parts.append(self._round_line())
        if state.flows:
            parts.append(self._flow_table())
        return Group(*parts)

    def _round_line(self) -> Text:
        state = self.state
        line = Text(f"round {state.round}  ")
        if state.pages_left is None:
            line.append("begins")
            return line
        if state.round_pages:
            done = state.round_pages - state.pages_left
            drawn = bar(done, state.round_pages, _BAR_WIDTH, blocks=fancy(self._console))
            line.append(drawn.ljust(_BAR_WIDTH), style="cyan")
        line.append(f"  {count(state.pages_left, 'page')} left")
        if state.rate_bps:
            line.append(f"  {format_bit_rate(state.rate_bps)}")
        remaining_ns = state.remaining_ns()
        if remaining_ns is not None:
            line.append(f"  ends in about {remaining_ns / NS_PER_S:.1f} s")
        elif (state.dirty_share or 0) >= 1:
            line.append("  does not converge", style="yellow")
        return line

    def _flow_table(self) -> RenderableType:
        rows = table(self._console, "flow", "requests", "last reply")
        now = self._clock_ns()
        for name, flow in _most_telling(self.state.flows):
            age_ns = now - flow.last_reply_ns if flow.last_reply_ns else None
            style = "" if age_ns is not None and age_ns < SILENT_NS else "yellow"
            if not flow.alive:
                shown, style = "dead", "bold red"
            else:
                shown = "none yet" if age_ns is None else f"{max(0, age_ns) // NS_PER_MS:,} ms ago"
            rows.add_row(name, f"{flow.requests:,}", Text(shown, style=style))
        return rows


def _most_telling(flows: Mapping[str, FlowState]) -> list[tuple[str, FlowState]]:
    """In the order in which they were first heard of; of a great many those that are dead or silent for longest."""
    items = list(flows.items())
    if len(items) <= MAX_FLOWS_SHOWN:
        return items
    return sorted(items, key=lambda item: (item[1].alive, item[1].last_reply_ns))[:MAX_FLOWS_SHOWN]
