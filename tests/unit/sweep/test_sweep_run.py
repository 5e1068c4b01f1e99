from __future__ import annotations

import csv
import io
import signal
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_up import migration, result

from bench.cli import find_scenario
from bench.clock import NS_PER_S
from bench.errors import ResultError, ScenarioError
from bench.sweep import work
from bench.sweep.plan import Job, SweepPlan, load_sweep
from bench.sweep.run import run_sweep
from bench.sweep.store import SweepStore
from bench.sweep.work import Done, pack, unpack

TEXT = """
scenario = "smallest"
repeats = 2
order = "given"
[grid]
guest.memory = ["16MiB", "32MiB", "64MiB"]
"""


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    path = tmp_path / "sweep.toml"
    path.write_text(TEXT)
    return load_sweep(path, find_scenario)


class Pretended:
    """Writes made-up results; *fails* names runs that leave none, *stops* one that is stopped by a signal."""

    def __init__(self, fails: str = "", stops: str = "") -> None:
        self.fails, self.stops = fails, stops
        self.ran: list[str] = []

    def run(self, store: SweepStore, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        for job in jobs:
            self.ran.append(job.label)
            if job.label == self.stops:
                yield job, Done(130, "stopped", "", stopped=True)
            elif job.label == self.fails:
                yield job, Done(1, "no switch", "bench: no switch\n")
            else:
                store.place(job).mkdir()
                result(migrations=[migration(downtime_ns=23_000_000)]).write(store.place(job))
                yield job, Done(0, "", "")


def test_a_failed_run_is_a_row_and_not_the_end(plan: SweepPlan, tmp_path: Path) -> None:
    said: list[str] = []
    store = SweepStore(tmp_path / "out", plan)
    assert run_sweep(store, Pretended(fails="memory=32MiB.r1"), said.append) == 1
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[0]["guest.memory"] == "16MiB"
    assert rows[0]["downtime"] == "23000000"
    failed = next(row for row in rows if row["run"] == "memory=32MiB.r1")
    assert (failed["state"], failed["error"]) == ("failed", "no switch")
    assert "FAILED: no switch" in "".join(said)
    assert "left" in said[1]
    assert said[1].lstrip().startswith("1 of 6")


def test_it_resumes_where_it_stopped(plan: SweepPlan, tmp_path: Path) -> None:
    store = SweepStore(tmp_path / "out", plan)
    first = Pretended(fails="memory=16MiB.r1", stops="memory=32MiB.r1")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(store, first, lambda _line: None)
    store.place(plan.jobs[2]).mkdir()  # what the interrupted run left
    (store.place(plan.jobs[2]) / "scenario.json").write_text("{}")
    again = Pretended()
    run_sweep(SweepStore(tmp_path / "out", plan), again, lambda _line: None)
    assert again.ran == [job.label for job in plan.jobs[2:]]
    retried = Pretended()
    assert run_sweep(SweepStore(tmp_path / "out", plan), retried, lambda _line: None, retry=True) == 0
    assert retried.ran == ["memory=16MiB.r1"]


def test_another_sweep_s_directory_is_refused(plan: SweepPlan, tmp_path: Path) -> None:
    SweepStore(tmp_path / "out", plan)
    path = tmp_path / "other.toml"
    path.write_text(TEXT.replace("64MiB", "128MiB"))
    with pytest.raises(ScenarioError, match="the same sweep"):
        SweepStore(tmp_path / "out", load_sweep(path, find_scenario))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(ScenarioError, match="empty directory"):
        SweepStore(tmp_path / "full", plan)
    (tmp_path / "out" / "sweep.json").write_text("[")
    with pytest.raises(ResultError, match="not a sweep"):
        SweepStore(tmp_path / "out", plan)


STOPPED = """
import os, pathlib, signal, time
place = pathlib.Path(OUTPUT)
place.mkdir()
(place / "result.json").write_text("cut short")
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""


def test_nothing_of_a_run_is_left_that_was_stopped_with_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    told = STOPPED.replace("OUTPUT", repr(str(place)))
    monkeypatch.setattr(work, "command", lambda *_given: [sys.executable, "-c", told])

    def stop(_signum: int, _frame: object) -> None:
        assert place.exists()
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            work.run_here(tmp_path / "scenario.toml", (), place, 60 * NS_PER_S)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert not place.exists()


ENDED = """
import pathlib, sys, time
place = pathlib.Path(OUTPUT)
place.mkdir()
(place / "events.jsonl").touch()
(place / "result.json").write_text("cut short")
AND
"""


@pytest.mark.parametrize("code", [129, 130, 143])
def test_nothing_of_a_run_is_left_that_was_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    place = tmp_path / "run"
    told = ENDED.replace("OUTPUT", repr(str(place))).replace("AND", f"sys.exit({code})")
    monkeypatch.setattr(work, "command", lambda *_given: [sys.executable, "-c", told])
    assert work.run_here(tmp_path / "scenario.toml", (), place, 60 * NS_PER_S).stopped
    assert not place.exists()


def test_a_run_that_takes_too_long_has_no_result_and_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    waits = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\ntime.sleep(60)"
    told = ENDED.replace("OUTPUT", repr(str(place))).replace("AND", waits)
    monkeypatch.setattr(work, "command", lambda *_given: [sys.executable, "-c", told])
    done = work.run_here(tmp_path / "scenario.toml", (), place, NS_PER_S)
    assert "within 1 s" in done.error
    assert not done.stopped
    assert [path.name for path in place.iterdir()] == ["events.jsonl"]  # what it was at is worth reading


def test_a_run_that_broke_down_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "command", lambda *_given: [sys.executable, "-c", "raise SystemExit(139)"])
    done = work.run_here(tmp_path / "scenario.toml", (), tmp_path / "run", 60 * NS_PER_S)
    assert (done.error, done.stopped) == ("exit code 139", False)


def test_packed_directories_come_back_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(b"\0" * 100_000)
    unpack(pack(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b" / "deep" / "file").read_bytes() == b"\0" * 100_000


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ResultError, match="no plain file"):
        unpack(data.getvalue(), tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_or_garbage_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ResultError, match="no plain file"):
        unpack(data.getvalue(), tmp_path / "out")
    with pytest.raises(ResultError, match="broken"):
        unpack(b"garbage", tmp_path / "other")
