"""Where results go: never over others, and without a trace when there was no run."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import ScenarioError, of_full_disk
from bench.output import OutputDirectory


def test_it_is_made_with_what_lies_above(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "one" / "two")
    assert output.path.is_dir()
    assert output.empty
    assert not output.has_result


def test_what_is_taken_back_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    output = OutputDirectory(tmp_path / "one" / "two" / "three")
    (output.path / "logs").mkdir()
    (output.path / "logs" / "a.log").write_text("x")
    (output.path / "link").symlink_to(tmp_path)
    output.take_back()
    assert [path.name for path in tmp_path.rglob("*")] == ["one"]


def test_an_empty_directory_stays_when_its_content_is_taken_back(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path)
    (tmp_path / "scenario.json").write_text("{}")
    output.take_back()
    assert list(tmp_path.iterdir()) == []


def test_another_runs_result_beside_it_stays(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "runs" / "one")
    OutputDirectory(tmp_path / "runs" / "two")
    output.take_back()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]


def test_an_occupied_or_impossible_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ScenarioError, match="overwritten"):
        OutputDirectory(tmp_path)
    with pytest.raises(ScenarioError, match="can be made"):
        OutputDirectory(tmp_path / "file")
    with pytest.raises(ScenarioError, match="can be made"):
        OutputDirectory(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


def test_without_a_wish_every_run_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [OutputDirectory.choose(None, Path("scenarios/smallest.toml")).path for _ in range(4)]
    assert len(set(paths)) == 4
    assert all(path.parent == Path("runs") and "-smallest" in path.name for path in paths)


def test_a_place_without_room_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.output.shutil.disk_usage", lambda _path: SimpleNamespace(free=12 << 10))
    with pytest.raises(ScenarioError, match=r"at least 8 MiB of room \(12 KiB are free\)"):
        OutputDirectory(tmp_path / "one" / "two")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_and_other_errors_are_not_it(tmp_path: Path) -> None:
    full = of_full_disk(OSError(errno.ENOSPC, "No space left on device", str(tmp_path)))
    assert full is not None
    assert full.message == f"cannot write {tmp_path}: No space left on device"
    assert of_full_disk(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None
