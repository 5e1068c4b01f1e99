from __future__ import annotations

import json

import pytest

from bench.errors import ResultError
from bench.result import SCHEMA, MemoryResult, RelearnResult, RunResult


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


def test_a_result_round_trips_and_has_the_promised_members(tmp_path):
    made_up().write(tmp_path)
    assert RunResult.read(tmp_path) == made_up()
    raw = json.loads((tmp_path / "result.json").read_text())
    assert raw["schema"] == SCHEMA
    promised = "outcome reason total_ns downtime_ns phases rounds memory flows relearn links environment trust"
    assert set(promised.split()) <= set(raw)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "schema None"),
        ('{"schema": "migration-bench/result/999"}', "result/999"),
        (json.dumps({"schema": SCHEMA}), "Field required"),
    ],
)
def test_a_hostile_directory_gives_one_clear_error(tmp_path, content, says):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ResultError, match=says):
        RunResult.read(tmp_path)


def test_a_missing_result_says_what_to_name(tmp_path):
    with pytest.raises(ResultError, match="bench run -o"):
        RunResult.read(tmp_path)
