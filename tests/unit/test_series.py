from __future__ import annotations

import pytest

from bench.errors import ResultError, ScenarioError
from bench.result import MemoryResult, RelearnResult, RunResult
from bench.series import MAX_RUNS, labels, load_scenarios, read_labels, read_series


@pytest.fixture
def load(tmp_path):
    def run(text: str, *settings: str):
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return load_scenarios(path, settings)

    return run


def made_up() -> RunResult:
    return RunResult(
        outcome="completed",
        source="h1",
        destination="h2",
        start_ns=1,
        end_ns=9,
        total_ns=8,
        downtime_ns=2,
        memory=MemoryResult(bytes=4096, identical=True, digest="00"),
        relearn=RelearnResult(announce_ns=5),
        started_at="2026-01-01T00:00:00Z",
        guest="g1",
    )


def test_one_mode_is_one_scenario(load):
    (scenario,) = load('title = "one"\n[migration]\nmode = "precopy"\n')
    assert (scenario.title, scenario.migration.mode) == ("one", "precopy")
    assert len(load("")) == 1


def test_a_list_of_modes_is_one_scenario_for_each(load):
    scenarios = load('[migration]\nmode = ["precopy", "precopy"]\nmax_rounds = 7\n')
    assert [scenario.migration.max_rounds for scenario in scenarios] == [7, 7]
    assert labels(scenarios) == ["1-precopy", "2-precopy"]
    assert len(load("", 'migration.mode=["precopy", "precopy", "precopy"]')) == 3


@pytest.mark.parametrize("modes", ["[]", f"{['precopy'] * (MAX_RUNS + 1)}", '["precopy", "by-pigeon"]', "[1]"])
def test_a_bad_list_is_refused_by_name(load, modes):
    with pytest.raises(ScenarioError) as caught:
        load(f"[migration]\nmode = {modes}\n")
    assert caught.value.key == "migration.mode"


def test_results_are_read_back_in_order(tmp_path):
    for label in ("10-precopy", "2-precopy", "1-postcopy", "logs", "x-y"):
        (tmp_path / label).mkdir()
    made_up().write(tmp_path / "2-precopy")
    (tmp_path / "3-precopy").write_text("a file")
    assert read_labels(tmp_path) == ["1-postcopy", "2-precopy", "10-precopy"]
    assert read_series(tmp_path) == [("1-postcopy", None), ("2-precopy", made_up()), ("10-precopy", None)]
    (tmp_path / "10-precopy" / "result.json").write_text("{")
    with pytest.raises(ResultError, match="10-precopy"):
        read_series(tmp_path)


def test_what_is_no_series_has_no_runs(tmp_path):
    assert read_series(tmp_path) == []
    assert read_series(tmp_path / "missing") == []
