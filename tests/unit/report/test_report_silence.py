"""What is said of silences that are no part of an outage."""

from __future__ import annotations

from made_up import MS, migration

from bench.report.silence import other_silences
from bench.result import MigrationResult


def test_a_longer_silence_than_the_outage_is_told() -> None:
    flow = (
        MigrationResult.model_validate(migration())
        .flows[0]
        .model_copy(update={"outage_ns": 14 * MS, "typical_gap_ns": 2 * MS})
    )
    (told,) = other_silences([flow.model_copy(update={"longest_gap_ns": 3_700 * MS})])
    assert told.startswith(f"{flow.name} heard nothing for 3.7 s at another time")


def test_the_outage_itself_and_what_is_usual_are_not() -> None:
    flow = (
        MigrationResult.model_validate(migration())
        .flows[0]
        .model_copy(update={"outage_ns": 14 * MS, "typical_gap_ns": 2 * MS})
    )
    assert other_silences([flow.model_copy(update={"longest_gap_ns": gap}) for gap in (None, 14 * MS, 100 * MS)]) == []
    rare = {"typical_gap_ns": 500 * MS, "longest_gap_ns": 600 * MS}
    assert other_silences([flow.model_copy(update=rare)]) == []
    assert other_silences([flow.model_copy(update={"outage_ns": None, "longest_gap_ns": 3_700 * MS})]) == []
