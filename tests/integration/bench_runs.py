"""`bench` as a user calls it, for tests: whole runs, watched while they go on, attacked, and searched for leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import forking

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import HostError
from bench.host.kernel import start_ticks
from bench.host.ledger import is_locked, read_ledger, run_directories
from bench.result import MigrationResult, RunResult
from bench.timeline import Event, Timeline

BENCH = Path(sys.executable).with_name("bench")
LONG_NS = 180 * NS_PER_S
# Not about links: a busy machine delays frames, which must not fail these tests.
LENIENT = ("calibration.delay_tolerance=100ms", "calibration.rate_tolerance=0.9")
# A third of what a short run costs is its delay line, and a tenth is measuring its links.
WITHOUT_DELAY = "links.default.delay=0ms"
PLAIN_LINKS = ("calibration.enabled=false", WITHOUT_DELAY)
QUICK = (*PLAIN_LINKS, "run.warmup=300ms", "run.settle=300ms", "run.pause_between=100ms")
CALM = ("clients.0.interval=5ms", "clients.2.rate=2Mbit", "clients.3.rate=2Mbit")  # smallest, with less to carry


def settings(*values: str) -> list[str]:
    """``--set`` for each of *values*."""
    return [word for value in values for word in ("--set", value)]


def interfaces() -> set[str]:
    """Of this network namespace."""
    return {path.name for path in Path("/sys/class/net").iterdir()}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process ended
        return ""


def _children() -> dict[int, list[int]]:
    """Parent -> children, of all processes."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = _read(entry / "stat").rpartition(")")[2].split()
            if fields:
                found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


@dataclass
class Bench:
    """One ``bench`` process, the leader of a process group of its own.

    :param seen: every process of its that was seen, by pid and start time.
    """

    child: forking.Forked
    directory: Path
    output: Path
    seen: set[tuple[int, int]] = field(default_factory=set)
    run_directory: Path | None = None

    # what it says

    @property
    def stdout(self) -> str:
        return _read(self.directory / "stdout")

    @property
    def stderr(self) -> str:
        return _read(self.directory / "stderr")

    def wait(self) -> int:
        """Its exit status, minus the signal that killed it."""
        return self.child.wait(LONG_NS / NS_PER_S)

    def ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)
        return self._ended()

    def result(self) -> RunResult:
        return RunResult.read(self.output)

    # watching it

    def processes(self) -> dict[int, str]:
        """Pid -> command line of all its descendants, noted in :attr:`seen`."""
        children = _children()
        todo, found = [self.child.pid], {}
        while todo:
            pid = todo.pop()
            todo += children.get(pid, [])
            ticks = start_ticks(pid)
            if ticks is not None:
                self.seen.add((pid, ticks))
                found[pid] = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
        return found

    def process(self, part: str) -> int:
        """Waits for its process whose command line holds *part*, and returns the oldest one's pid."""
        found: list[int] = []

        def there() -> bool:
            found[:] = sorted(pid for pid, line in self.processes().items() if part in line)
            return bool(found) or self._ended()

        wait_until(there, Deadline(LONG_NS), f"a process {part}")
        assert found, f"bench ended before there was a process {part}: {self.stdout}{self.stderr}"
        return found[0]

    def only_child(self, pid: int) -> int:
        (child,) = _children()[pid]
        return child

    def runner(self, init: int) -> int:
        """The first child of the sandbox's init: orphans that it adopted come later."""
        return min(_children()[init])

    def _ended(self) -> bool:
        return self.child.poll() is not None

    def wait_for_output(self, text: str) -> None:
        wait_until(lambda: text in self.stdout or self._ended(), Deadline(LONG_NS), text)
        assert text in self.stdout, f"bench ended before it said {text!r}: {self.stdout}{self.stderr}"
        self.processes()

    def wait_for_run_directory(self) -> Path:
        """Where its sockets, logs and events are."""

        def known() -> bool:
            for run in run_directories():
                with contextlib.suppress(HostError):
                    if read_ledger(run).pid == self.child.pid:
                        self.run_directory = run
            return self.run_directory is not None or self._ended()

        wait_until(known, Deadline(LONG_NS), "a run directory")
        assert self.run_directory is not None, self.stderr
        return self.run_directory

    # attacking it

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT to the foreground process group."""
        os.killpg(self.child.pid, signal.SIGINT)

    def kill(self, part: str) -> None:
        """SIGKILL its process whose command line holds *part*."""
        os.kill(self.process(part), signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What is left of it besides its run directory: processes, by pid and start time."""

        def living() -> list[str]:
            return [
                f"{pid}: {_read(Path(f'/proc/{pid}/cmdline'))}" for pid, ticks in self.seen if start_ticks(pid) == ticks
            ]

        with contextlib.suppress(Exception):
            wait_until(lambda: not living(), Deadline(10 * NS_PER_S), "its processes have ended")
        return living()


@contextlib.contextmanager
def started(
    directory: Path, *arguments: str, scenario: str | Path = "smallest", env: dict[str, str] | None = None
) -> Iterator[Bench]:
    """``bench run SCENARIO ARGUMENTS -o DIRECTORY/result``; ended with the context if it is not by then."""
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / "result"
    with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as stderr:
        child = forking.start_bench(
            ["run", str(scenario), *arguments, "-o", str(output)],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        yield Bench(child, directory, output)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def completed(directory: Path, *arguments: str, scenario: str | Path = "smallest") -> Bench:
    """A run that must succeed, after its end."""
    with started(directory, *arguments, scenario=scenario) as run:
        assert run.wait() == 0, run.stdout + run.stderr
    return run


def call(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Any other ``bench`` command, to its end."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        child = forking.start_bench(
            [str(argument) for argument in arguments],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
        )
        try:
            status = child.wait(LONG_NS / NS_PER_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(child.args, status, stdout.read(), stderr.read())


def events_of(output: Path) -> list[Event]:
    return list(Timeline.read(output / "events.jsonl"))


def flow_records(output: Path, flow: str) -> Path:
    """What the agent of *flow* kept, without its suffix."""
    return next((output / "requests").rglob(f"{flow}.*")).with_suffix("")


def require_moved(migration: MigrationResult) -> None:
    """Everything that a good migration promises whatever its scenario is."""
    assert migration.outcome == "completed", migration.reason
    assert migration.memory.identical is True
    assert migration.memory.digest_source == migration.memory.digest_destination != ""
    for flow in migration.flows:
        assert flow.alive, (flow.name, flow.error)
        assert flow.corrupted == flow.duplicated == 0, flow.name


def dead_runs() -> list[str]:
    """Runs that left something below /run though nothing of them lives. (Other runs may go on at the same time.)"""
    found = []
    for run in run_directories():
        with contextlib.suppress(HostError, OSError):
            if not read_ledger(run).owner_lives() and not is_locked(run):
                found.append(run.name)
    return found


def lines_of_json(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
