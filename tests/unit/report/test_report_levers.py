"""What each lever saved and cost: in the terminal and on the page, whatever a result says."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.report.html import tables
from bench.report.levers import HEAD, lever_rows, print_levers
from bench.report.terminal import render

sys.path.insert(0, str(Path(__file__).resolve().parent))

from made_up import MS, result  # type: ignore[import-not-found]

MIB = 1 << 20
COST = {
    "zero_pages": {"pages": 78_643, "saved_bytes": 307 * MIB, "cpu_ns": 90 * MS, "time_ns": 95 * MS},
    "compression": {
        "codec": "zstd",
        "level": 1,
        "threads": 0,
        "pages": 60_000,
        "plain_pages": 2000,
        "input_bytes": 240 * MIB,
        "output_bytes": 60 * MIB,
        "saved_bytes": 180 * MIB,
        "cpu_ns": 2000 * MS,
        "time_ns": 2100 * MS,
    },
    "delta": {
        "cache_bytes": 64 * MIB,
        "hits": 75,
        "misses": 25,
        "overflows": 3,
        "refused": 0,
        "hit_rate": 0.75,
        "saved_bytes": -4096,
        "cpu_ns": 12 * MS,
        "time_ns": 12 * MS,
    },
    "unpacking": {"cpu_ns": 400 * MS, "time_ns": 410 * MS},
    "streams": {
        "count": 2,
        "bytes": [10, 10],
        "pages": [60, 40],
        "retransmits": [1, 2],
        "window_limited_ns": [0, 7 * MS],
        "joined_ns": 3 * MS,
    },
    "throttle": {
        "mechanism": "cgroup",
        "percent": 40,
        "throttled_ns": 3000 * MS,
        "guest_cpu_ns": 900 * MS,
        "steps": [{"t_ns": 1, "percent": 20}],
    },
    "dirty_limit": {
        "limit_bytes_per_s": 8 * MIB,
        "most_bytes_per_s": 24 * MIB,
        "last_bytes_per_s": 7 * MIB,
        "capped_ns": 800 * MS,
    },
    "max_bandwidth": {"limit_bps": 10**8, "time_ns": 5000 * MS},
    "announce_delay": {"time_ns": 200 * MS},
    "security": {
        "carrier": "tls",
        "connections": 3,
        "handshake_ns": 9 * MS,
        "wire_bytes": 10**8,
        "overhead_bytes": 2 * MIB,
        "cpu_ns": 700 * MS,
        "time_ns": 800 * MS,
        "destination": {"cpu_ns": 300 * MS, "refused": 1},
    },
}


def printed(cost, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_levers(cost, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(name: str) -> list[str]:
    """The cells of a lever's row, and at the end what is said of it below the table."""
    (line,) = [line for line in printed(COST).splitlines() if line.startswith(f"{name} ")]
    (how,) = [line for line in printed(COST).splitlines() if line.startswith(f"{name}: ")]
    return [*re.split(r"\s{2,}", line[len(name) :].strip()), how[len(name) + 2 :]]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("zero pages", ["307 MiB", "90 ms", "95 ms", "78,643 pages as numbers"]),
        (
            "compression",
            ["180 MiB", "2 s", "2.1 s", "zstd 1, 240 MiB became 60 MiB (25%), 2,000 pages sent plain"],
        ),
        ("delta", ["0 B", "4 KiB", "12 ms", "12 ms", "75% hits, cache of 64 MiB, 3 pages changed too much"]),
        ("unpacking", ["400 ms", "410 ms", "at the destination, of compression and delta"]),
        ("auto-converge", ["3 s", "guest held back by up to 40 %, by its cgroup, 900 ms of its CPU time withheld"]),
        ("dirty limit", ["800 ms", "8 MiB/s asked, 24 MiB/s at most, 7 MiB/s at last"]),
        ("max bandwidth", ["5 s"]),
        ("announce delay", ["200 ms"]),
        ("TLS", ["2 MiB", "1 s", "800 ms", "3 connections, handshake 9 ms, 300 ms of the CPU time at the destination"]),
        ("streams", ["3 ms", "2 connections, the busiest carried 60%, 3 retransmits, windows full for up to 7 ms"]),
    ],
)
def test_each_lever_says_what_it_saved_and_cost(name, shown):
    found = [re.sub(r"(\d)\.00? ", r"\1 ", cell) for cell in cells(name)]
    found = [re.sub(r"(\d\.\d)0 ", r"\1 ", cell) for cell in found]
    for cell, wanted in zip(found, shown, strict=False):
        assert cell.startswith(wanted)


def test_the_summary_has_them_after_the_rounds_and_nothing_where_no_lever_was_on():
    console = Console(file=io.StringIO(), width=120)
    render(result(cost=COST), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.index("\nRounds") < shown.index("\nLevers")
    assert not printed({})
    assert not printed({"postcopy": {"faults": 3}})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_console(width):
    assert all(len(line) <= width for line in printed(COST, width).splitlines()[2:])


def test_the_page_has_the_same_rows():
    shown = tables.levers(lever_rows(COST))
    assert shown.count("<tr>") == len(COST) + 1
    assert all(f"{name}</th>" in shown for name in HEAD)


keys = sorted({key for item in COST.values() for key in item})  # type: ignore[attr-defined]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(0, 1) | st.text("aé\n<&", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(COST)), st.dictionaries(st.sampled_from(keys), json_values)))
def test_any_cost_of_any_result_can_be_shown(cost):
    assert len(lever_rows(cost)) == len(cost)
    printed(cost)
