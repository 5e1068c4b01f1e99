"""Migrations back and forth in one run: no connection and no acknowledged write is lost, every outage is explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_runs import PLAIN_LINKS, Bench, completed, flow_records, lines_of_json, require_moved, settings
from test_run_smallest import require_budgets

from bench.result import RunResult

pytestmark = pytest.mark.root

MIGRATIONS = 4
CLIENTS = Path(__file__).with_name("redis_clients.py")
SCENARIO = f"""
[links.default]
bandwidth = "1Gbit"
delay = "0.2ms"
[guest]
memory = "16MiB"
store_memory = "4MiB"
vcpus = 2
[guest.workload]
rate = "4MiB/s"
working_set = "2MiB"
[[clients]]
kind = "udp-echo"
[[clients]]
kind = "tcp-request"
[[clients]]
kind = "tcp-download"
rate = "10Mbit"
[[clients]]
kind = "tcp-upload"
rate = "10Mbit"
[[clients]]
kind = "command"
name = "writer"
command = ["{sys.executable}", "{CLIENTS}", "acknowledged", "{{guest}}"]
[[clients]]
kind = "command"
name = "redis-benchmark"
command = ["{sys.executable}", "{CLIENTS}", "benchmark", "{{guest}}"]
[run]
warmup = "500ms"
settle = "1s"
pause_between = "100ms"
repeat = {MIGRATIONS}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    directory = tmp_path_factory.mktemp("repeat")
    scenario = directory / "repeat.toml"
    scenario.write_text(SCENARIO)
    return completed(directory, *settings(*PLAIN_LINKS), scenario=scenario)


@pytest.fixture(scope="module")
def result(run: Bench) -> RunResult:
    return run.result()


def test_it_moves_back_and_forth_with_identical_memory(result: RunResult) -> None:
    ends = [(item.source, item.destination) for item in result.migrations]
    assert ends == [("h1", "h2"), ("h2", "h1")] * (MIGRATIONS // 2)
    assert [item.outcome for item in result.migrations] == ["completed"] * MIGRATIONS


@pytest.mark.parametrize("number", range(MIGRATIONS))
def test_no_connection_is_lost_and_every_outage_is_explained(result: RunResult, number: int) -> None:
    migration = result.migrations[number]
    require_moved(migration)
    require_budgets(migration)
    for flow in migration.flows:
        if flow.kind.startswith("tcp-"):
            assert flow.lost == 0, flow.name
    assert migration.connections >= 4  # three flows and the writer; redis-benchmark opens others again and again
    assert [phase.name for phase in migration.phases][-1] == "announce"


def test_no_acknowledged_write_is_lost(run: Bench) -> None:
    (report,) = lines_of_json(flow_records(run.output, "writer").with_suffix(".out"))
    assert report["wrong"] == []
    assert int(str(report["acknowledged"])) > 100
    assert int(str(report["reads"])) > int(str(report["acknowledged"]))


def test_redis_benchmark_survives_a_migration_without_an_error(run: Bench, result: RunResult) -> None:
    times = lines_of_json(flow_records(run.output, "redis-benchmark").with_suffix(".out"))
    assert all(item["status"] == 0 for item in times), times
    assert not [line for item in times for line in item["said"] if "rror" in line]  # type: ignore[attr-defined]
    pauses = [(item.pause_ns, item.resume_ns) for item in result.migrations]
    across = [
        item
        for item in times
        for pause_ns, resume_ns in pauses
        if item["begin_ns"] < pause_ns and resume_ns < item["end_ns"]  # type: ignore[operator]
    ]
    assert across, (pauses, times)


def test_the_guests_own_check_of_its_memory_finds_nothing(result: RunResult) -> None:
    assert result.environment["guest"]["self_check_errors"] == 0
    assert result.environment["guest"]["pages_written"] > 0


def test_the_summary_lists_them_all(run: Bench) -> None:
    assert f"{MIGRATIONS} migrations, {MIGRATIONS} completed" in run.stdout
