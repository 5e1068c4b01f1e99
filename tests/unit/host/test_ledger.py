from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.clean import clean
from bench.errors import HostError, MachineError
from bench.host.ledger import LEDGER, Ledger, RunDirectory, is_locked, read_ledger, run_directories


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def leave_dead_run(base: Path, *files: Path, status: int = 0) -> str:
    """A run whose process ended without closing it."""
    program = (
        "import os, sys; from pathlib import Path; from bench.host.ledger import RunDirectory\n"
        "run = RunDirectory.create(Path(sys.argv[1]))\n"
        "for name in sys.argv[2:]: run.record_file(Path(name)).write_text('x')\n"
        "print(run.run_id, flush=True)\n"
        f"os._exit({status})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(base), *map(str, files)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_directory_is_private_and_goes_with_its_files(base: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    with RunDirectory.create(base) as run:
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert base.stat().st_mode & 0o022 == 0
        assert run.events.is_dir()
        assert run.logs.is_dir()
        run.record_file(outside).write_text("x")
        (run.path / "deep").mkdir()
        (run.path / "deep" / "file").write_text("x")
        assert read_ledger(run.path).files == (str(outside),)
    assert not outside.exists()
    assert list(base.iterdir()) == []
    run.close()


def test_ids_differ_and_cannot_be_guessed_from_another(base: Path) -> None:
    with RunDirectory.create(base) as one, RunDirectory.create(base) as two:
        assert one.run_id != two.run_id
        assert list(run_directories(base)) == sorted([one.path, two.path])


def test_ledger_is_written_before_the_thing_exists(base: Path, tmp_path: Path) -> None:
    with RunDirectory.create(base) as run:
        path = run.record_file(tmp_path / "later")
        assert not path.exists()
        assert str(path) in json.loads((run.path / LEDGER).read_text())["files"]


def test_untrusted_base_is_refused(base: Path, tmp_path: Path) -> None:
    base.symlink_to(tmp_path)
    with pytest.raises(MachineError, match="not a directory"):
        RunDirectory.create(base)
    base.unlink()
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(MachineError, match="others may write"):
        RunDirectory.create(base)
    with pytest.raises(MachineError, match="others may write"):
        clean(base)


def test_paths_that_a_ledger_must_not_hold(base: Path, tmp_path: Path) -> None:
    with RunDirectory.create(base) as run:
        for path in (Path("relative"), Path("/tmp/../etc/passwd")):
            with pytest.raises(HostError, match="must not hold"):
                run.record_file(path)
        with pytest.raises(HostError, match="must not hold"):
            run.record_cgroup(tmp_path)


def test_socket_paths_are_bounded(base: Path) -> None:
    with RunDirectory.create(base) as run:
        assert run.socket("a").parent == run.path
        with pytest.raises(HostError, match="107 bytes"):
            run.socket("x" * 107)


def test_fork_does_not_close(base: Path) -> None:
    with RunDirectory.create(base) as run:
        pid = os.fork()
        if pid == 0:
            run.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert run.path.exists()
        assert is_locked(run.path)


def test_clean_removes_dead_runs_only(base: Path, tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    kept.write_text("x")
    with RunDirectory.create(base) as live:
        dead = leave_dead_run(base, gone)
        foreign = base / "notes.txt"
        foreign.write_text("mine")
        assert gone.exists()
        report = clean(base)
        assert (report.removed, report.live, report.broken) == ([dead], [live.run_id], [])
        assert report.ok
        assert live.path.exists()
        assert foreign.exists()
    assert not gone.exists()
    assert kept.exists()
    assert clean(base).text() == "nothing to clean"


def test_clean_without_any_run(base: Path) -> None:
    assert clean(base).removed == []
    assert not base.exists()


def test_reused_pid_is_not_taken_for_the_owner(base: Path) -> None:
    run_id = leave_dead_run(base)
    path = base / run_id / LEDGER
    raw = json.loads(path.read_text())
    raw["pid"] = os.getpid()  # alive, but started at another time
    path.write_text(json.dumps(raw))
    assert clean(base).removed == [run_id]


def test_another_boot_means_dead(base: Path) -> None:
    mine = Ledger.of_this_process("0" * 12)
    assert mine.owner_lives()
    raw = json.loads(mine.to_json())
    raw["boot_id"] = "another"
    assert not Ledger.from_json(json.dumps(raw).encode()).owner_lives()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"schema": "other"}',
        '{"schema": "migration-bench/ledger/1"}',
        "x" * (2 << 20),
    ],
    ids=["empty", "cut", "list", "deep", "other", "bare", "large"],
)
def test_broken_ledgers_are_reported_and_left_alone(base: Path, text: str) -> None:
    run_id = leave_dead_run(base)
    (base / run_id / LEDGER).write_text(text)
    report = clean(base)
    assert report.removed == []
    assert [run for run, _problem in report.broken] == [run_id]
    assert LEDGER in report.broken[0][1]
    assert not report.ok
    assert (base / run_id).exists()


def test_ledger_with_foreign_paths_removes_nothing(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    run_id = leave_dead_run(base)
    path = base / run_id / LEDGER
    raw = json.loads(path.read_text())
    for key, value in (("cgroups", [str(precious)]), ("files", ["relative"]), ("files", "text")):
        path.write_text(json.dumps({**raw, key: value}))
        assert [run for run, _problem in clean(base).broken] == [run_id]
    path.write_text(json.dumps({**raw, "files": [str(precious)]}))  # a directory is never removed
    assert "not removed" in clean(base).broken[0][1]
    assert precious.exists()


def test_run_killed_before_its_ledger(base: Path) -> None:
    with RunDirectory.create(base):
        starting = base / ("a" * 12)
        starting.mkdir()
        (starting / f"{LEDGER}.1234").touch()
        assert [run for run, _problem in clean(base).broken] == [starting.name]
        os.utime(starting, (0, 0))
        assert clean(base).removed == [starting.name]
