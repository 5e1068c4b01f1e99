from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import find_scenario
from bench.errors import ScenarioError
from bench.scenario import load_scenario
from bench.scenario.loading import tomllib
from bench.sweep.plan import SweepPlan, flat, load_sweep, toml_value


def plan(tmp_path: Path, text: str) -> SweepPlan:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return load_sweep(path, find_scenario)


GRID = """
scenario = "smallest"
repeats = 2
[set]
run.settle = "300ms"
[grid]
migration.downtime_limit = ["100ms", "300ms"]
links.default.bandwidth = ["100Mbit", "1Gbit"]
announce.kinds = [["rarp"], ["rarp", "garp"]]
"""


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    found = plan(tmp_path, GRID)
    assert len(found.points) == 8
    assert len(found.jobs) == 16
    assert len({job.label for job in found.jobs}) == 16
    job = next(job for job in found.jobs if job.label == "downtime_limit=100ms,bandwidth=1Gbit,kinds=rarp+garp.r2")
    scenario = load_scenario(found.scenario, job.settings)
    assert scenario.migration.downtime_limit == 100_000_000
    assert scenario.links["default"].bandwidth == 10**9
    assert scenario.announce.kinds == ("rarp", "garp")
    assert scenario.run.settle == 300_000_000
    assert scenario.guest.workload.seed == 2


def test_the_order_is_random_and_the_same_again(tmp_path: Path) -> None:
    labels = [job.label for job in plan(tmp_path, GRID).jobs]
    assert labels == [job.label for job in plan(tmp_path, GRID).jobs]
    given = [job.label for job in plan(tmp_path, 'order = "given"' + GRID).jobs]
    assert labels != given
    assert sorted(labels) == sorted(given)
    assert given[0].endswith(".r1")


def test_a_list_is_crossed_with_the_grid(tmp_path: Path) -> None:
    text = """
    scenario = "smallest"
    [grid]
    guest.memory = ["16MiB", "32MiB"]
    [[points]]
    name = "plain"
    [[points]]
    migration = { mode = "hybrid", precopy_rounds = 2 }
    """
    labels = [point.label for point in plan(tmp_path, text).points]
    assert labels == [
        "plain,memory=16MiB",
        "plain,memory=32MiB",
        "mode=hybrid,precopy_rounds=2,memory=16MiB",
        "mode=hybrid,precopy_rounds=2,memory=32MiB",
    ]


def test_another_plan_has_another_digest(tmp_path: Path) -> None:
    assert plan(tmp_path, GRID).digest == plan(tmp_path, GRID).digest
    assert plan(tmp_path, GRID).digest != plan(tmp_path, GRID.replace("100ms", "101ms")).digest


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('scenario = "nothing"', "nothing"),
        ('scenario = "smallest"\nrepeat = 1', "repeats"),
        ('scenario = "smallest"\nrepeats = 0', "greater than or equal to 1"),
        ('scenario = "smallest"\n[grid]\nguest.memory = "16MiB"', "a list of values"),
        ('scenario = "smallest"\n[grid]\nguest.memory = []', "a list of values"),
        ('scenario = "smallest"\n[grid]\nguest.memry = ["16MiB"]', "guest.memry"),
        ('scenario = "smallest"\n[grid]\nguest.memory = ["16MiB", "17"]', "guest.memory"),
        ('scenario = "smallest"\nrepeats = 1000\n[grid]\nguest.workload.seed = [1,2,3,4,5,6,7,8,9,10,11]', "10000"),
        ("=", "TOML"),
    ],
)
def test_a_wrong_sweep_is_one_message_before_anything_runs(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        plan(tmp_path, text)
    assert named in str(caught.value)


@pytest.mark.parametrize("value", ['a"b\\c\n', 1, 0.5, True, ["x", 1], {"a-b": [True], "c": {"d": "e"}}])
def test_values_survive_as_toml(value: object) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_tables_become_keys() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": []}, "e.f": 2}) == {"a.b.c": 1, "a.d": [], "e.f": 2}


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("scenarios/sweeps").glob("*.toml")))
def test_the_shipped_sweeps_are_valid(project: Path, name: str) -> None:
    found = load_sweep(project / "scenarios" / "sweeps" / f"{name}.toml", find_scenario)
    assert len(found.points) > 1
