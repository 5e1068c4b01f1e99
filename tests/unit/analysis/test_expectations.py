from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_up import MS, flow, migration, result

from bench.analysis.expectations import check, describe
from bench.errors import ScenarioError
from bench.result import RunResult
from bench.scenario import parse_scenario, restore_scenario


def repeated(*downtimes_ms: float | None) -> RunResult:
    return result(migrations=[migration(downtime_ns=None if ms is None else round(ms * MS)) for ms in downtimes_ms])


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("downtime < 300ms", True),
        ("downtime < 23ms", False),
        ("downtime <= 23ms", True),
        ("downtime > 22ms", True),
        ("flows.died == 0", True),
        ("flows.died != 0", False),
        ("relearn.max < 50ms", True),
        ("outage.p99 < 1s", True),
        ("outage.p99 < 100ms", False),
        ("sent < 1GiB", True),
        ("prediction.efficiency.total > 90%", True),
        ("memory.identical == true", True),
    ],
)
def test_a_bound_is_held_against_the_result(text: str, ok: bool) -> None:
    (found,) = check([text], result())
    assert found.ok is ok
    assert found.value is not None


def test_every_migration_has_to_hold_it() -> None:
    (found,) = check(["downtime < 30ms"], repeated(20, 40, 25))
    assert not found.ok
    assert found.value == 40 * MS
    assert "1 of 3 are wrong" in describe(found)


def test_a_mean_may_hold_what_one_migration_does_not() -> None:
    (found,) = check(["mean(downtime) < 30ms"], repeated(20, 40, 25))
    assert found.ok
    assert found.low is not None
    assert found.low < 30 * MS < (found.high or 0)
    assert "more repeats would tell" in found.note


def test_what_was_not_observed_fails() -> None:
    assert not check(["downtime < 300ms"], repeated(None))[0].ok
    assert not check(["downtime < 300ms"], repeated(20, None))[0].ok
    assert not check(["mean(downtime) < 300ms"], repeated(20, None))[0].ok


def test_a_dead_flow_is_counted() -> None:
    dead = result(migrations=[migration(flows=[flow("udp-echo"), flow("tcp-request", alive=False)])])
    (found,) = check(["flows.died == 0"], dead)
    assert not found.ok
    assert describe(found) == "1"


def test_a_scenario_s_table_becomes_a_list_and_is_restored() -> None:
    raw = {"expect": {"downtime": ["> 1ms", "< 300ms"], "flows": {"died": "== 0"}, "mean(outage.p99)": "< 1s"}}
    scenario = parse_scenario(raw, "test")
    assert scenario.expect == ("downtime > 1ms", "downtime < 300ms", "flows.died == 0", "mean(outage.p99) < 1s")
    assert restore_scenario(scenario.model_dump_json(), "stored") == scenario


@pytest.mark.parametrize(
    ("expect", "named"),
    [
        ({"downtime": "< 300"}, "a duration with its unit"),
        ({"downtime": 300}, "a bound as text"),
        ({"downtime": "300ms"}, "a bound such as"),
        ({"nothing": "< 1"}, "one of total"),
        ({"flows": {"udp-echo": {"nothing": "< 1"}}}, "one of name"),
        ({"best(downtime)": "< 1s"}, "p0 to p100"),
        ({"flows.died": "< 1s"}, "plain number"),
    ],
)
def test_a_wrong_expectation_is_a_scenario_error(expect: dict[str, object], named: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario({"expect": expect}, "test")
    assert caught.value.key == "expect"
    assert named in str(caught.value)
