"""The command line without a run: what is refused before anything else, and which exit code an outcome has."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bench import cli
from bench.errors import MachineError
from bench.host import sandbox
from bench.result import MemoryResult, MigrationResult, RelearnResult, RunResult


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["smallest", "--set", "guest.memry=16MiB"], "guest.memry"),
        (["smallest", "--set", "guest.memory=16"], "guest.memory"),
        (["smallest", "--set", "links.default.bandwidth=1ms"], "links.default.bandwidth"),
        (["smallest", "--set", "migration.downtime_limit=300"], "migration.downtime_limit"),
        (["smallest", "--set", "guest.content.zero=0.5"], "guest.content"),
        (["smallest", "--set", "nonsense"], "key=value"),
        (["nonsense"], "nonsense"),
        (["/proc"], "/proc"),
    ],
)
def test_a_wrong_scenario_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(monkeypatch, "run", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bench: ")
    assert named in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [["run", "--repeat", "0"], ["run", "--nonsense"], ["nonsense"], ["show"]])
def test_a_wrong_option_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    assert main(monkeypatch, *arguments) == 2


def test_no_root_is_exit_code_2_and_leaves_no_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    output = tmp_path / "result"
    assert main(monkeypatch, "run", "smallest", "-o", str(output)) == 2
    assert "sudo" in capsys.readouterr().err
    assert not output.exists()


def test_what_a_machine_lacks_is_exit_code_2_whatever_was_written_by_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lacking(_main: object) -> int:
        (output / "logs").mkdir()
        (output / "scenario.json").write_text("{}")
        raise MachineError("no switch", "install one")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandbox, "run_in_sandbox", lacking)
    monkeypatch.setattr("bench.host.ledger.RunDirectory.create", RunDirectoryStub)
    output = tmp_path / "new" / "result"
    assert main(monkeypatch, "run", "smallest", "-o", str(output)) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("notice", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_notice_outside_of_the_sandbox_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, notice: signal.Signals, code: int
) -> None:
    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandbox, "run_in_sandbox", lambda _main: signal.raise_signal(notice))
    directory = RunDirectoryStub()
    monkeypatch.setattr("bench.host.ledger.RunDirectory.create", lambda: directory)
    assert main(monkeypatch, "run", "smallest", "-o", str(tmp_path / "result")) == code
    assert directory.closed
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == former


class RunDirectoryStub:
    """A run directory that is none."""

    path = Path("/nowhere")
    closed = False

    def __enter__(self) -> RunDirectoryStub:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.closed = True


def result(outcome: str, identical: bool | None, *migrations: MigrationResult) -> RunResult:
    members = moved(outcome, identical).model_dump()
    return RunResult(**{**members, "guest": "g1"}, started_at="now", migrations=list(migrations))


def moved(outcome: str, identical: bool | None) -> MigrationResult:
    return MigrationResult.model_validate(
        {
            "outcome": outcome,
            "source": "h1",
            "destination": "h2",
            "start_ns": 1,
            "end_ns": 2,
            "total_ns": 1,
            "downtime_ns": 1,
            "memory": MemoryResult(bytes=4096, identical=identical, digest=None),
            "relearn": RelearnResult(announce_ns=None),
        }
    )


@pytest.mark.parametrize(
    ("outcome", "identical", "code"),
    [
        ("completed", True, 0),
        ("completed", None, 0),  # verify = "off"
        ("completed", False, 1),
        ("cancelled", None, 1),
        ("failed", None, 1),
    ],
)
def test_the_exit_code_of_a_result(outcome: str, identical: bool | None, code: int) -> None:
    assert cli.exit_code(result(outcome, identical)) == code


def test_one_bad_migration_among_good_ones_counts() -> None:
    good, bad = moved("completed", True), moved("failed", None)
    assert cli.exit_code(result("completed", True, good, good)) == 0
    assert cli.exit_code(result("completed", True, good, bad, good)) == 1


def test_shipped_scenarios_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.find_scenario("smallest").name == "smallest.toml"
    assert cli.find_scenario("smallest").is_file()
    assert cli.find_scenario("nothing.toml") == Path("nothing.toml")
    (tmp_path / "smallest").write_text("")
    assert cli.find_scenario("smallest") == Path("smallest")


def test_variables_take_one_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.host.sandbox.require_root", lambda: None)
    wanted = 'migration.mode=["precopy", "postcopy"]'
    assert main(monkeypatch, "variables", "smallest", "--set", wanted, "-o", str(tmp_path / "x")) == 2
    assert "one mode" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
