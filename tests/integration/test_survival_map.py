"""A survival map on the real kernel, its timers shrunk so that it takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bench_runs import LENIENT

from bench.clock import NS_PER_MS
from bench.survival.result import SurvivalResult

pytestmark = pytest.mark.root

BENCH = [sys.executable, "-c", "from bench.cli import main; main()"]
SETTINGS = [
    'survival.outages=["40ms", "150ms", "1400ms"]',
    'survival.rto_min=["20ms"]',
    "survival.retries2=[15, 1]",
    'survival.user_timeout=["0s", "300ms"]',
    'survival.patterns=["stream", "request", "connect"]',
    'survival.congestion=["cubic"]',
    "survival.keepalive=[]",
    "survival.warmup=1s",
    "survival.interval=15ms",
]


def bench(project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=project, capture_output=True, text=True, timeout=120, check=False)


def test_a_map_of_shrunk_timers_is_measured_and_set_against_theory(project, tmp_path):
    output = tmp_path / "map"
    arguments = [word for setting in [*LENIENT, *SETTINGS] for word in ("--set", setting)]
    done = bench(project, "survival", *arguments, "-o", str(output))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "Stall by outage" in done.stdout
    assert "Theory and measurement agree" in done.stdout
    result = SurvivalResult.read(output)
    assert {cell.fate for cell in result.cells} == {"survived", "died"}
    for cell in result.cells:
        if cell.fate == "survived":
            assert cell.stall_ns >= cell.outage_ns
        else:
            assert cell.error == "ETIMEDOUT"
            assert cell.stall_ns < cell.outage_ns
        if cell.theory is not None:
            assert cell.fate == cell.theory.fate, cell
    # One retry stands for 200 (2^2 - 1) = 600 ms, whatever the timer: 1400 ms are too long for both.
    dead = {cell.variant for cell in result.cells if cell.fate == "died"}
    assert dead == {
        f"{end}: stream, {limit}" for end in ("client", "guest") for limit in ("tcp_retries2 1", "user timeout 300 ms")
    }
    assert all(cell.outage_ns == 1400 * NS_PER_MS for cell in result.cells if cell.fate == "died")


def test_a_map_that_is_too_large_is_refused_before_anything_is_built(project, tmp_path):
    done = bench(project, "survival", "--set", "survival.max_cells=5", "-o", str(tmp_path / "map"))
    assert done.returncode == 2
    assert "max_cells" in done.stderr
    assert not (tmp_path / "map").exists()
