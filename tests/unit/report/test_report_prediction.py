"""Prediction, dirty rate and several runs side by side: complete, with units, at any width."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.report.dirty_rate import print_dirty_rate
from bench.report.side_by_side import print_side_by_side
from bench.report.terminal import render
from bench.report.text import NOT_SEEN

sys.path.insert(0, str(Path(__file__).resolve().parent))

from made_up import MS, flow, prediction, result  # type: ignore[import-not-found]

FOUND = {
    "dirty_bytes_per_s": 40 << 20,
    "working_set_bytes": 57 << 20,
    "pages": 262_144,
    "zero_pages": 78_643,
    "sample_ns": 1000 * MS,
    "intervals": 20,
    "interval_ns": 50 * MS,
    "method": "pagemap-scan",
    "spans": [
        {"duration_ns": 50 * MS, "pages": 510.5, "model_pages": 512.0},
        {"duration_ns": 10_000 * MS, "pages": None, "model_pages": 21_526.2},
    ],
}


def printed(show, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def section(**changes) -> str:
    shown = printed(lambda console: render(result(**changes), console))
    return shown[shown.index("\nPrediction") :].split("\n\n")[0]


def row(shown: str, first: str) -> list[str]:
    (line,) = [line.strip() for line in shown.splitlines() if line.strip().startswith(first)]
    return re.split(r"\s{2,}", line[len(first) :].strip())


def test_prediction_stands_beside_measurement_and_lower_bound():
    shown = section()
    assert row(shown, "rounds") == ["4", "4"]
    assert row(shown, "sent") == ["880 MiB", "901 MiB", "717 MiB", "80%"]
    assert row(shown, "transfer") == ["5.3 s", "5.4 s", "5.005 s", "93%"]
    assert row(shown, "downtime") == ["21 ms", "23 ms", "17 ms", "74%"]
    assert "40 MiB/s dirtied, working set 63 MiB, goodput 881 Mbit/s, round trip 1.1 ms" in shown


def test_what_is_missing_is_said():
    assert "no prediction: the path is unshaped" in section(
        prediction={"transfer_ns": 5, "note": "the path is unshaped: there is no bandwidth"}
    )
    cancelled = section(outcome="cancelled", prediction=prediction(transfer_ns=None, efficiency={}))
    assert row(cancelled, "transfer") == ["5.3 s", NOT_SEEN, "5.005 s", NOT_SEEN]
    diverges = prediction()
    diverges["predicted"]["converged"] = False
    assert "not to be reached" in section(prediction=diverges)
    assert "from" not in section(prediction=prediction(inputs={"goodput_bps": "x", "round_trip_ns": True}))


def test_a_run_without_a_prediction_has_no_such_section():
    assert "Prediction" not in printed(lambda console: render(result(prediction=None), console))


def test_the_dirty_rate_is_shown_with_the_model_beyond_the_sample():
    shown = printed(lambda console: print_dirty_rate(FOUND, console))
    assert "40 MiB/s" in shown
    assert "57 MiB" in shown
    assert "30% zero pages" in shown
    assert row(shown, "50 ms") == ["510", "512", "1.99 MiB", "39.88 MiB/s"]
    assert re.search(r"10 s +21,526", shown)


def test_runs_stand_side_by_side():
    dead = result(flows=[flow("udp-echo"), flow("tcp-upload", alive=False)], outcome="failed")
    runs = [("1-precopy", result()), ("2-postcopy", dead), ("3-hybrid", None)]
    shown = printed(lambda console: print_side_by_side(runs, console))
    assert row(shown, "outcome") == ["completed", "failed", "no result"]
    assert row(shown, "downtime") == ["23 ms", "23 ms", "no result"]
    assert row(shown, "transfer")[0] == "5.4 s"
    assert row(shown, "tcp-request")[1] == NOT_SEEN
    assert row(shown, "tcp-upload")[1] == "DEAD"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_console(width):
    runs = [(f"{number}-stop-and-copy", result()) for number in range(1, 9)]
    for show in (
        lambda console: print_side_by_side(runs, console),
        lambda console: print_dirty_rate(FOUND, console),
        lambda console: render(result(), console),
    ):
        shown = printed(show, width)
        assert all(len(line) <= width for line in shown.splitlines())
        assert "…" not in shown
    assert all(label in printed(lambda console: print_side_by_side(runs, console)) for label, _ in runs)


def test_modes_of_different_names_fit_beside_each_other_on_eighty_columns():
    runs = [(label, result()) for label in ("1-stop-and-copy", "2-precopy", "3-hybrid", "4-postcopy")]
    shown = printed(lambda console: print_side_by_side(runs, console), width=80)
    assert shown.count("\noutcome") == 1
    assert printed(lambda console: print_side_by_side(runs, console), width=60).count("\noutcome") == 2
    assert printed(lambda console: print_side_by_side(runs, console), width=20).count("\noutcome") == 4
