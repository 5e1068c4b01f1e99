from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

sys.path.insert(0, str(Path(__file__).parent / "report"))

from made_up import result

from bench.errors import ResultError
from bench.export import export
from bench.probe.records import RecordBuffer
from bench.recording import Recording, find_recordings, read_points
from bench.timeline import Event, Timeline


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run's directory, made up."""
    place = tmp_path / "run"
    (place / "requests" / "c1").mkdir(parents=True)
    result().write(place)
    Timeline([Event(5, "runner", "step", {"text": 'a, "b"\n'}), Event(7, "guest", "resumed")]).write(
        place / "events.jsonl"
    )
    buffer = RecordBuffer()
    for number in range(1000):
        buffer.append(number * 10, number * 10 + 3 if number % 10 else 0, 64, 0)
    buffer.save(place / "requests" / "c1" / "udp-echo.npy")
    return place


def test_tables_are_whole(directory: Path, tmp_path: Path) -> None:
    files = dict(export(Recording(directory), tmp_path / "out", "csv"))
    assert list(files.values()) == [2, 1000, 4]
    with (tmp_path / "out" / "events.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads(rows[0]["data"]) == {"text": 'a, "b"\n'}
    export(Recording(directory), tmp_path / "out", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "requests.parquet")
    assert table["received_ns"].null_count == 100
    assert table["flow"][0].as_py() == "udp-echo"
    assert np.array_equal(table["sent_ns"].to_numpy(), np.arange(1000) * 10)


def test_a_directory_of_runs_is_found(directory: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name in ("a.r1", "a.r2", "b.r1"):
        (sweep / name).mkdir(parents=True)
        result().write(sweep / name)
    assert [one.label for one in find_recordings([sweep, directory])] == ["a.r1", "a.r2", "b.r1", "run"]
    assert {label: len(found) for label, found in read_points(sweep).items()} == {"a": 2, "b": 1}


def _break(directory: Path, what: str) -> None:
    if what == "json":
        (directory / "result.json").write_text('{"schema": ')
    elif what == "deep":
        (directory / "result.json").write_text("[" * 100_000)
    elif what == "newer":
        (directory / "result.json").write_text('{"schema": "migration-bench/result/2"}')
    elif what == "huge":
        with (directory / "result.json").open("wb") as file:
            file.truncate(1 << 40)
    elif what == "list":
        (directory / "result.json").write_text("[]")
    elif what == "member":
        raw = json.loads((directory / "result.json").read_text()) | {"invented": 1}
        (directory / "result.json").write_text(json.dumps(raw))
    elif what == "missing":
        (directory / "result.json").unlink()


@pytest.mark.parametrize("what", ["json", "deep", "newer", "huge", "list", "member", "missing"])
def test_a_broken_result_is_one_message(directory: Path, what: str) -> None:
    _break(directory, what)
    with pytest.raises(ResultError) as caught:
        _ = find_recordings([directory])[0].result
    assert str(directory) in caught.value.message
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("file", "content"),
    [("events.jsonl", "{"), ("events.jsonl", "[1]"), ("scenario.json", "[]"), ("requests/c1/udp-echo.npy", "x")],
)
def test_broken_other_files_are_one_message(directory: Path, tmp_path: Path, file: str, content: str) -> None:
    (directory / file).write_text(content)
    with pytest.raises(ResultError, match=file.rsplit("/", 1)[-1]):
        _ = Recording(directory).scenario or export(Recording(directory), tmp_path / "out", "csv")
