"""How long a guest waited for its pages: counts, quantiles and a histogram, whatever a result says."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.report.html import tables
from bench.report.postcopy import post_copy, print_post_copy
from bench.report.side_by_side import print_side_by_side

sys.path.insert(0, str(Path(__file__).resolve().parent))

from made_up import MS, result  # type: ignore[import-not-found]

LATENCY = {
    "count": 12,
    "p50_ns": 2 * MS,
    "p99_ns": 8 * MS,
    "max_ns": 9 * MS,
    "histogram": [[1 << 21, 8], [1 << 23, 3], [1 << 24, 1]],
}
COST = {
    "postcopy": {
        "pages_pushed": 4000,
        "pages_on_demand": 12,
        "duplicates": 0,
        "zero_pages": 900,
        "pauses": 1,
        "fault_latency": LATENCY,
    }
}


def printed(show) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_pages_waits_and_histogram():
    shown = printed(lambda console: print_post_copy(COST, console))
    assert "4,000 pages pushed, 12 pages asked for by a fault, 0 pages crossed twice, 900 pages of zeros" in shown
    assert "1 pause for want of a network" in shown
    assert "median 2 ms, 99th percentile 8 ms, longest 9 ms" in shown.replace(".00 ", " ").replace(".0 ", " ")
    bars = [line for line in shown.splitlines() if "#" in line]
    assert [line.split()[2] for line in bars] == ["8", "3", "1"]
    assert [line.count("#") for line in bars] == [30, 11, 4]


def test_a_guest_that_never_waited_and_a_migration_without_post_copy():
    nothing = {"postcopy": {"fault_latency": {"count": 0, "p50_ns": None, "histogram": []}}}
    assert "never waited" in printed(lambda console: print_post_copy(nothing, console))
    assert not printed(lambda console: print_post_copy({}, console))


def test_the_page_has_the_same():
    shown = tables.post_copy(post_copy(COST))
    assert "4,000 pages pushed" in shown
    assert shown.count("<tr>") == 4


def test_runs_side_by_side_say_how_long_their_guests_waited():
    runs = [("1-precopy", result()), ("2-postcopy", result(cost=COST))]
    shown = printed(lambda console: print_side_by_side(runs, console))
    assert shown.count("fault, median") == 1
    assert "fault" not in printed(lambda console: print_side_by_side(runs[:1], console))


values = st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.just("x") | st.lists(st.integers(-1, 9), max_size=3)
latencies = st.dictionaries(st.sampled_from(sorted(LATENCY)), values | st.lists(values, max_size=3))


@given(st.dictionaries(st.sampled_from(sorted(COST["postcopy"])), values | latencies) | values)
def test_any_cost_of_any_result_can_be_shown(cost):
    printed(lambda console: print_post_copy({"postcopy": cost}, console))
