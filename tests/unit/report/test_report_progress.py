"""The progress display, driven by made-up events."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from bench.clock import NS_PER_MS, NS_PER_S
from bench.report.progress import MAX_FLOWS_SHOWN, Progress
from bench.report.progress_state import MigrationState
from bench.timeline import Event

SOURCE, DESTINATION = "engine.source", "engine.destination"


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * NS_PER_S

    def __call__(self) -> int:
        return self.now


def event(source: str, name: str, at_s: float = 1000.0, /, **data) -> Event:
    return Event(round(at_s * NS_PER_S), source, name, data)


MIGRATION = [
    event("runner", "step", 1000.5, text="migration 1 of 1: h1 to h2"),
    event(SOURCE, "setup_begin", 1001),
    event(SOURCE, "connected", 1001.1),
    event(SOURCE, "setup_end", 1001.2),
    event(SOURCE, "round_begin", 1001.2, round=1),
    event(SOURCE, "round_progress", 1001.4, round=1, pages_left=3000, bytes_sent=4 << 20, rate_bps=800_000_000),
    event(
        SOURCE,
        "round_end",
        1001.9,
        round=1,
        pages=4096,
        zero_pages=9,
        bytes_sent=16 << 20,
        dirty_pages_after=100,
        start_ns=0,
        end_ns=700 * NS_PER_MS,
        paused=False,
    ),
    event(SOURCE, "switchover_decided", 1001.9, reason="100 pages fit the limit"),
    event(SOURCE, "paused", 1002),
    event(
        SOURCE,
        "round_end",
        1002.1,
        round=2,
        pages=1,
        bytes_sent=4096,
        dirty_pages_after=0,
        start_ns=0,
        end_ns=5,
        paused=True,
    ),
    event(SOURCE, "device_state_sent", 1002.1, bytes=7),
    event(DESTINATION, "resumed", 1002.2),
    event(DESTINATION, "finished", 1002.3, outcome="completed"),
    event(SOURCE, "finished", 1002.5, outcome="completed", reason=""),
]


def plain(events: list[Event]) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console, Clock()) as progress:
        for item in events:
            progress.on_event(item)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_without_a_terminal_one_line_for_each_change():
    assert plain(MIGRATION) == [
        "    0.5 s  migration 1 of 1: h1 to h2",
        "    1.0 s  setting the migration up",
        "    1.2 s  set up: copying memory while the guest runs",
        "    1.9 s  round 1: 4,096 pages, 16 MiB in 700 ms, 100 dirty after",
        "    1.9 s  switchover: 100 pages fit the limit",
        "    2.0 s  the guest is paused: copying the rest",
        "    2.1 s  final copy: 1 page, 4 KiB in 5 ns, 0 dirty after",
        "    2.1 s  device state sent",
        "    2.2 s  the guest runs at its destination",
        "    2.5 s  migration completed",
    ]


def test_flows_are_told_of_when_they_die_only():
    status = {"name": "tcp", "requests": 5, "last_reply_ns": 7}
    events = [event("client.c1", "flow_status", **status, alive=alive) for alive in (True, True, False, False)]
    assert plain(events) == ["    0.0 s  tcp: the flow is dead"]


def test_what_means_nothing_is_ignored():
    odd = [
        event("probe", "whatever", x=1),
        event("guest.h1", "resumed"),
        event(SOURCE, "round_progress"),
        event(SOURCE, "round_progress", pages_left="many", rate_bps=True),
        event("runner", "step"),
        event("client.c1", "flow_status"),
    ]
    assert plain(odd) == []
    assert plain([event("runner", "step", text="a\x1b[2Jb\nc")]) == ["    0.0 s  a [2Jb c"]
    assert plain([event(SOURCE, "round_end")]) == ["    0.0 s  round ?: 0 pages, not seen in not seen, 0 dirty after"]


def test_the_estimated_end_is_a_geometric_series():
    state = MigrationState()
    assert state.remaining_ns() is None
    state.apply(event(SOURCE, "round_begin", round=1))
    state.apply(event(SOURCE, "round_progress", round=1, pages_left=1000, rate_bps=4096 * 8 * 1000))
    assert state.remaining_ns() == NS_PER_S
    state.apply(event(SOURCE, "round_end", round=1, pages=1000, dirty_pages_after=500))
    state.apply(event(SOURCE, "round_begin", round=2))
    assert state.remaining_ns() is None
    state.apply(event(SOURCE, "round_progress", round=2, pages_left=500, rate_bps=4096 * 8 * 1000))
    assert state.remaining_ns() == NS_PER_S  # 0.5 s for these, 0.25 s for those dirtied meanwhile, ...
    state.apply(event(SOURCE, "round_end", round=2, pages=500, dirty_pages_after=500))
    state.apply(event(SOURCE, "round_begin", round=3))
    state.apply(event(SOURCE, "round_progress", round=3, pages_left=500, rate_bps=4096 * 8 * 1000))
    assert state.remaining_ns() is None


def live(events: list[tuple[int, Event]], width: int = 80) -> str:
    """What a terminal was sent, without its escape sequences."""
    clock = Clock()
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with Progress(console, clock) as progress:
        for after_ns, item in events:
            clock.now += after_ns
            progress.on_event(item)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_sees_round_pages_rate_end_and_flows(width):
    last_ns = 1000 * NS_PER_S + 150 * NS_PER_MS
    shown = live(
        [
            (0, MIGRATION[0]),
            (0, event(SOURCE, "round_begin", round=1)),
            (
                200 * NS_PER_MS,
                event("client.c1", "flow_status", name="udp-echo", requests=9, last_reply_ns=last_ns, alive=True),
            ),
            (0, event("client.c1", "flow_status", name="new", requests=0, last_reply_ns=0, alive=True)),
            (
                200 * NS_PER_MS,
                event(SOURCE, "round_progress", round=1, pages_left=3000, rate_bps=4096 * 8 * 1000, bytes_sent=1),
            ),
        ],
        width,
    )
    folded = " ".join(shown.split())
    assert "migration 1 of 1: h1 to h2" in folded
    for part in ("round 1", "3,000 pages left", "32.77 Mbit/s", "ends in about 3.0 s"):
        assert part in folded
    assert re.search(r"udp-echo +9 +250 ms ago", folded)
    assert re.search(r"new +0 +none yet", folded)


def test_the_display_is_drawn_at_a_bounded_rate():
    status = event("client.c1", "flow_status", name="f", requests=1, last_reply_ns=1, alive=True)
    assert live([(NS_PER_MS, status)] * 1000).count("last reply") < 20


def test_of_a_great_many_flows_the_silent_ones_are_shown():
    events = [
        (
            NS_PER_S,
            event(
                "client.c1", "flow_status", name=f"flow{number:03}", requests=1, last_reply_ns=number + 1, alive=True
            ),
        )
        for number in reversed(range(60))
    ]
    last = live(events).rpartition("last reply")[2]
    assert [int(name) for name in re.findall(r"flow(\d+)", last)] == list(range(MAX_FLOWS_SHOWN))


def test_a_wide_terminal_sees_outages_and_throughput_live():
    def status(number: int, last_s: float) -> Event:
        sent = number * 2_500_000
        data = {"name": "tcp-download", "requests": number, "alive": True, "bytes": min(sent, 22_500_000)}
        return event("client.c1", "flow_status", 1000 + number / 5, last_reply_ns=round(last_s * NS_PER_S), **data)

    events = [(NS_PER_S // 5, status(number, 1000 + number / 5)) for number in range(1, 10)]
    events += [(NS_PER_S // 5, status(number, 1000 + 9 / 5)) for number in range(10, 15)]
    shown = live(events, 100)
    assert "100 Mbit/s" in shown
    assert "█" * 8 in shown
    assert re.search(r"1,\d00 ms ago +1,\d00 ms", shown)
    assert "█" not in live(events, 60)


def test_an_outage_is_what_the_flow_says_and_not_how_long_nobody_listened():
    def status(at_s: float) -> Event:
        data = {"name": "f", "requests": 1, "alive": True, "last_reply_ns": round((at_s - 0.001) * NS_PER_S)}
        return event("client.c1", "flow_status", at_s, **data)

    events = [(0, status(1000.0)), (5 * NS_PER_S, MIGRATION[0]), (0, status(1005.0))]
    assert not re.search(r"f +1 +\d+ ms ago +\d", live(events, 100))


def test_it_ends_whatever_happens():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with pytest.raises(RuntimeError), Progress(console):
        raise RuntimeError
    with Progress(console) as progress:  # the console is free again
        progress.on_event(MIGRATION[0])


def of(guest: str, item: Event) -> Event:
    return dataclasses.replace(item, guest=guest)


def test_with_several_guests_every_line_names_its_own() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console, Clock(), several=True) as progress:
        for item in MIGRATION:
            for guest in ("g1", "g2"):
                progress.on_event(of(guest, item) if item.source != "runner" else item)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[:3] == [
        "    0.5 s  migration 1 of 1: h1 to h2",
        "    1.0 s  g1: setting the migration up",
        "    1.0 s  g2: setting the migration up",
    ]
    assert sum("g1: " in line for line in lines) == sum("g2: " in line for line in lines) == 9


def test_several_guests_have_a_line_each_on_a_terminal() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with Progress(console, clock, several=True) as progress:
        progress.on_event(of("g1", event(SOURCE, "round_begin", round=1)))
        progress.on_event(of("g2", event(SOURCE, "setup_begin")))
        clock.now += NS_PER_S
        progress.on_event(of("g1", event(SOURCE, "round_progress", round=1, pages_left=3000, rate_bps=8_000_000)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"g1  round 1 .* 3,000 pages left", shown)
    assert re.search(r"g2  setting the migration up", shown)
