from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import ResultError
from bench.timeline import MAX_LINE_BYTES, Event, EventWriter, Timeline


@given(st.lists(st.integers(min_value=0, max_value=100)))
def test_events_are_in_order_however_they_come(times):
    timeline = Timeline()
    for t_ns in times:
        timeline.add(Event(t_ns, "a", "b"))
    assert [event.t_ns for event in timeline] == sorted(times)


def test_selecting_by_name_source_and_time():
    timeline = Timeline([Event(1, "a", "x"), Event(2, "b", "x"), Event(3, "a", "y"), Event(4, "a", "x")])
    assert [event.t_ns for event in timeline.select("x")] == [1, 2, 4]
    assert [event.t_ns for event in timeline.select("x", "a", after_ns=2)] == [4]
    assert timeline.first("x", after_ns=2) == Event(2, "b", "x")
    assert timeline.last("x", before_ns=4) == Event(2, "b", "x")
    assert timeline.first("z") is None


def test_a_writer_loses_nothing_and_reads_back(tmp_path):
    seen = []
    writer = EventWriter(tmp_path / "events.jsonl", "me", seen.append)
    writer("begin", round=1)
    writer("end", t_ns=5)
    assert Timeline.read(tmp_path / "events.jsonl").first("end") == Event(5, "me", "end")
    assert [event.name for event in seen] == ["begin", "end"]
    writer.close()


@pytest.mark.parametrize("line", [b"x", b"[]", b'{"t":"1"}', json.dumps("x" * (MAX_LINE_BYTES + 1)).encode()])
def test_a_broken_file_is_one_error(tmp_path, line):
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(ResultError):
        Timeline.read(path)
