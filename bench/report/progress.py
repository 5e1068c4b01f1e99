"""What a run is doing, while it does it: a live display on a terminal, plain lines elsewhere. Driven by events alone.

No thread of its own: the display is drawn when an event comes, at most every :data:`REDRAW_NS` (the flows' status comes
about five times a second). What is known is a :class:`~bench.report.progress_state.ProgressState`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.report.progress_state import SPARKS, FlowState, MigrationState, ProgressState
from bench.report.text import bar, clean, count, fancy, sparkline, table
from bench.timeline import Event
from bench.units import format_bit_rate

REDRAW_NS = 100 * NS_PER_MS
SILENT_NS = 500 * NS_PER_MS
MAX_FLOWS_SHOWN = 20
MAX_MIGRATIONS_SHOWN = 12
_ROOMY = 72
_BAR_WIDTH = 30


class Progress:
    """Shows a run's progress on *console*; a context manager.

    :param clock_ns: CLOCK_MONOTONIC, replaced in tests only.
    :param several: whether there are several guests.
    """

    def __init__(self, console: Console, clock_ns: Callable[[], int] = now_ns, *, several: bool = False) -> None:
        self.state = ProgressState(several)
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
        going_on = [(name, item) for name, item in state.migrations.items() if state.several or item.round is not None]
        width = max((len(name) for name, _item in going_on), default=0)
        for name, item in going_on[:MAX_MIGRATIONS_SHOWN]:
            line = Text(f"{clean(name).ljust(width)}  " if state.several else "")
            line.append(self._round_line(item) if item.round is not None else Text(item.step, style="dim"))
            parts.append(line)
        if len(going_on) > MAX_MIGRATIONS_SHOWN:
            parts.append(Text(f"and {len(going_on) - MAX_MIGRATIONS_SHOWN} more", style="dim"))
        if state.flows:
            parts.append(self._flow_table())
        return Group(*parts)

    def _round_line(self, state: MigrationState) -> Text:
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
        roomy = self._console.width >= _ROOMY
        rows = table(self._console, "flow", "requests", "last reply", *(["outage", "throughput"] if roomy else []))
        if roomy:
            rows.add_column("", no_wrap=True)
        blocks = fancy(self._console)
        now = self._clock_ns()
        for name, flow in _most_telling(self.state.flows):
            age_ns = now - flow.last_reply_ns if flow.last_reply_ns else None
            style = "" if age_ns is not None and age_ns < SILENT_NS else "yellow"
            if not flow.alive:
                shown, style = "dead", "bold red"
            else:
                shown = "none yet" if age_ns is None else f"{max(0, age_ns) // NS_PER_MS:,} ms ago"
            more: list[str | Text] = []
            if roomy:
                outage = "" if flow.longest_ns < SILENT_NS // 10 else f"{flow.longest_ns // NS_PER_MS:,} ms"
                sparks = Text(sparkline(flow.rates, blocks=blocks).rjust(SPARKS), style="cyan")
                more = [Text(outage, style=style), flow.rate, sparks]
            rows.add_row(name, f"{flow.requests:,}", Text(shown, style=style), *more)
        return rows


def _most_telling(flows: Mapping[str, FlowState]) -> list[tuple[str, FlowState]]:
    """In the order in which they were first heard of; of a great many those that are dead or silent for longest."""
    items = list(flows.items())
    if len(items) <= MAX_FLOWS_SHOWN:
        return items
    return sorted(items, key=lambda item: (item[1].alive, item[1].last_reply_ns))[:MAX_FLOWS_SHOWN]
