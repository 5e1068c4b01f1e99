"""The terminal summary: everything is in it, with units, at any width, on any kind of output."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.report.terminal import MAX_ROUNDS_SHOWN, render
from bench.report.text import NOT_SEEN, bar
from bench.result import RunResult

sys.path.insert(0, str(Path(__file__).resolve().parent))

from made_up import MS, RESUME, direction, flow, link, migration, result  # type: ignore[import-not-found]


def text(shown: RunResult, width: int = 120, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    render(shown, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def section(shown: str, name: str) -> str:
    """The lines from a heading up to the next one."""
    begin = re.search(rf"^{name}.*$", shown, re.MULTILINE)
    assert begin, f"no section {name}"
    return shown[begin.start() :].partition("\n\n")[0]


def row(shown: str, first: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if line.startswith(first)]
    return re.split(r"\s{2,}", line[len(first) :].strip())


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_line_is_wider_than_the_console_and_no_value_is_cut_off(width, terminal):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text(result(), width, terminal))
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown


def test_plain_output_has_neither_colours_nor_line_characters():
    assert text(result()).isascii()
    assert "\x1b" in text(result(), terminal=True)
    assert "─" in text(result(), terminal=True)


def test_the_header_says_what_moved_where_and_how_it_ended():
    shown = text(result())
    assert "reference: 1 GiB over 1 Gbit/s\ng1 moved from h1 to h2: completed\n" in shown
    failed = text(result(outcome="failed", reason="the link was cut\x1b[2J"))
    assert "g1 was to move from h1 to h2: failed: the link was cut [2J" in failed
    never = result(outcome="cancelled", reason="interrupted", source="", destination="", migrations=[])
    assert "g1 did not move: cancelled: interrupted" in text(never)


def test_downtime_and_outage_are_apart():
    shown = text(result())
    line = next(line for line in shown.splitlines() if line.startswith("downtime"))
    assert line.split()[1:3] == ["23", "ms"]
    assert "the guest was paused" in line
    assert row(section(shown, "Client flows"), "tcp-request")[-1] == "232.7 ms"


def test_memory_identity():
    assert "identical on both sides, digest 0123456789abcdef" in text(result())
    for memory, expected in (
        ({"identical": None, "digest": None, "verify": "off"}, "not compared (switched off)"),
        ({"identical": None, "digest": None}, "not compared (not seen)"),
        (
            {"identical": False, "digest": None, "digest_source": "a" * 64, "digest_destination": "b" * 64},
            f"DIFFERENT: source {'a' * 16}, destination {'b' * 16}",
        ),
    ):
        assert expected in text(result(memory={"bytes": 1 << 30, **memory}))


def test_phases_and_rounds():
    shown = text(result())
    assert row(section(shown, "Phases"), "stop-and-copy") == ["+1.4 s", "700 ms"]
    rounds = section(shown, "Rounds")
    assert row(rounds, "1 ") == ["262,144", "78,000", "700 MiB", "1 s", "5.87 Gbit/s", "16,384", "64 MiB/s"]
    assert row(rounds, "4 paused")[-1] == "none"


def test_a_great_many_rounds_are_abridged():
    one = migration()["rounds"][0]
    rounds = section(text(result(rounds=[one] * 300)), "Rounds")
    assert "... 280 more" in rounds
    assert len(rounds.splitlines()) == MAX_ROUNDS_SHOWN + 4
    assert row(rounds, "300 ")


def test_relearning_is_relative_to_the_resume():
    relearning = section(text(result()), "Relearning")
    assert "announce leaves the destination: +200 us, 10 frames in all" in relearning
    assert row(relearning, "s1") == ["+2 ms", "+6 ms", "+4 ms", "+31 ms", "5", "2", "once"]
    assert row(relearning, "s2") == [NOT_SEEN] * 4 + ["0", "0", "0 times"]
    assert row(section(text(result(resume_ns=None)), "Relearning"), "s1")[:4] == [NOT_SEEN] * 4


def test_flows_are_counted_and_their_errors_shown():
    dead = flow(
        "dead", alive=False, error="connection reset", corrupted=7, outage_ns=None, budget=[], budget_sum_ns=None
    )
    flows = section(text(result(flows=[flow("udp-echo", reordered=0), dead])), "Client flows")
    assert row(flows, "udp-echo") == ["c1", "5,903", "36", "1", "0", "0", NOT_SEEN, "alive", "232.7 ms"]
    assert row(flows, "dead ") == ["c1", "5,903", "36", "1", "2", "7", "3", "DEAD", NOT_SEEN]
    assert "dead: connection reset" in flows


def budget_values(shown: str, stage: str) -> list[str]:
    lines = [line for line in shown.splitlines() if line.startswith(stage + " ")]
    return [value for line in lines for value in re.findall(r"\d+(?:\.\d+)? (?:ns|us|ms|s)\b|not seen", line)]


@pytest.mark.parametrize("width", [80, 120])
def test_the_budget_of_every_flow_sums_beside_its_outage(width):
    names = [f"flow-{number}" for number in range(7)]
    shown = text(result(flows=[flow(name) for name in names]), width)
    begin = shown.index("Outage budget")
    budget = shown[begin : shown.index("Links", begin)]
    assert all(name in budget for name in names)
    assert budget_values(budget, "relearned") == ["7.4 ms"] * 7
    assert budget_values(budget, "storage") == ["0 ns"] * 7
    assert budget_values(budget, "sum") == budget_values(budget, "measured outage") == ["232.7 ms"] * 7
    assert budget.count("adds up") == 7


def test_a_doubtful_budget_says_why():
    flows = [
        flow("a", budget_ok=False, budget_note="the resume was not observed"),
        flow("b", budget_ok=False, budget_sum_ns=5 * MS),
        flow("none", outage_ns=None, budget=[], budget_sum_ns=None),
        flow("command", budget=[], budget_sum_ns=None),
    ]
    shown = text(result(flows=flows))
    assert shown.count("DOUBTFUL") == 2
    assert "a: the resume was not observed" in shown
    assert "b: the stages do not sum to the measured outage" in shown
    assert "none: no budget: no outage was seen" in shown
    assert "command: no budget: outage of 232.7 ms" in shown


def test_links_asked_applied_measured():
    shown = section(text(result()), "Links")
    assert "by htb+delay-line" in shown
    assert row(shown, "h1-s1") == ["1 Gbit/s, 200 us", "as asked", "944.59 / 941.14 Mbit/s", "997.2 us (800 us)"]
    odd = link("x-y") | {
        "mechanism": "netem",
        "asked": {"forward": direction(10**9, 0), "backward": direction(10**8, 5 * MS, jitter_ns=MS, loss=0.01)},
        "applied": {"forward": direction(0, 0), "backward": {}},
        "measured": {"note": "no path crosses it", "forward": {"rate_note": "unshaped"}},
        "ok": False,
    }
    shown = section(text(result(links=[odd, link("h1-s1")]), 200), "Links")
    assert row(shown, "x-y ") == [
        "netem",
        "1 Gbit/s, 0 ns / 100 Mbit/s, 5 ms ± 1 ms, loss 1.000%",
        "unshaped, 0 ns / not seen",
        NOT_SEEN,
        NOT_SEEN,
    ]
    assert "x-y: unshaped" in shown
    assert "x-y: no path crosses it" in shown


def test_environment_and_trust():
    shown = text(result())
    environment = " ".join(section(shown, "Environment").split())
    assert "kernel 6.18.44" in environment
    assert "CPU load 61% mean, 97% at most, 0.1% stolen" in environment
    assert "os-ken" not in environment
    assert shown.endswith("trust: no reason was seen to doubt these numbers\n")
    doubts = text(result(trust={"ok": False, "reasons": ["the machine was 99 % busy", "tcpdump dropped 3 frames"]}))
    lines = [line.rstrip() for line in doubts.splitlines()]
    assert lines[-3:] == [
        "trust: doubt these numbers, because",
        "  - the machine was 99 % busy",
        "  - tcpdump dropped 3 frames",
    ]


def test_repeated_migrations_are_listed():
    migrations = [
        migration(),
        migration(source="h2", destination="h1", downtime_ns=40 * MS),
        migration(outcome="failed", reason="cut", downtime_ns=None, total_ns=None, flows=[], rounds=[]),
    ]
    shown = text(result(**{**migrations[-1], "migrations": migrations}))
    assert "3 migrations, 2 completed." in shown
    listed = section(shown, "Migrations")
    assert row(listed, "2 ")[:3] == ["h2", "h1", "completed"]
    assert row(listed, "3 ")[3:5] == [NOT_SEEN, NOT_SEEN]
    assert "downtime: median 31.5 ms, from 23 ms to 40 ms" in listed
    assert "migration 3: failed: cut" in listed
    assert "Migrations" not in text(result())


def test_a_result_with_nothing_seen():
    empty = RunResult.model_validate(
        {
            "outcome": "cancelled",
            "source": "h1",
            "destination": "h2",
            "start_ns": RESUME,
            "end_ns": RESUME,
            "total_ns": None,
            "downtime_ns": None,
            "memory": {"bytes": 1 << 24, "identical": None, "digest": None},
            "relearn": {"announce_ns": None},
            "started_at": "",
            "guest": "g1",
        }
    )
    shown = text(empty)
    assert re.search(r"total time +not seen", shown)
    assert re.search(r"downtime +not seen", shown)
    for name in ("Phases", "Rounds", "Relearning", "Client flows", "Links"):
        assert name not in shown


def test_bars():
    assert bar(0, 10, 8, blocks=True) == ""
    assert bar(5, 10, 8, blocks=True) == "████"
    assert bar(10, 10, 8, blocks=False) == "########"
    assert bar(99, 10, 8, blocks=True) == "█" * 8
    assert (bar(1, 10**9, 8, blocks=True), bar(1, 10**9, 8, blocks=False)) == ("▏", ".")
    assert bar(3, 0, 8, blocks=True) == ""
