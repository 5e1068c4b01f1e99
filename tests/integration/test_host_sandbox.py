"""Whatever ends a run, nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.clean import clean
from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import HostError, ScenarioError
from bench.host.commands import python_environment
from bench.host.kernel import start_ticks
from bench.host.ledger import read_ledger
from bench.host.sandbox import SAME_NOTICE_NS, call_in_sandbox, interrupt_answered, run_in_sandbox

pytestmark = pytest.mark.root

LONG = 30 * NS_PER_S

# A run as `bench run` makes it: ledger outside, everything else inside. It says what happens in a file.
RUN = """
import os, subprocess, sys, time
from pathlib import Path
from bench.host.ledger import RunDirectory
from bench.host.sandbox import run_in_sandbox

base, outside, notes, teardown_s = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])

def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")

def main():
    subprocess.run(["ip", "link", "add", "leak-one", "type", "veth", "peer", "name", "leak-two"], check=True)
    subprocess.Popen(["setsid", "sleep", "600"])
    subprocess.run(["unshare", "--net", "setsid", "--fork", "sleep", "600"], check=True)
    try:
        note("up")
        time.sleep(600)
    except KeyboardInterrupt as notice:
        note(f"notice {type(notice).__name__}")
        time.sleep(teardown_s)
        note("down")
        raise
    return 0

with RunDirectory.create(base) as run:
    run.record_file(outside).write_text("x")
    code = run_in_sandbox(main)
sys.exit(code)
"""


@dataclass
class Victim:
    """A run under attack; ``outer`` leads a process group of its own."""

    outer: subprocess.Popen[bytes]
    base: Path
    outside: Path
    notes: Path

    def lines(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), Deadline(LONG), line)

    def wait(self) -> int:
        return self.outer.wait(LONG / NS_PER_S)


def names(directory: str) -> list[str]:
    path = Path(directory)
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []


def namespace(kind: str) -> str:
    return str(Path(f"/proc/self/ns/{kind}").readlink())


def children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    victims: list[Victim] = []

    def begin(teardown_s: float = 0.0) -> Victim:
        number = len(victims)
        base, outside, notes = tmp_path / "runs", tmp_path / f"outside{number}", tmp_path / f"notes{number}"
        outer = subprocess.Popen(
            [sys.executable, "-c", RUN, str(base), str(outside), str(notes), str(teardown_s)],
            env={**os.environ, **python_environment()},
            start_new_session=True,
        )
        victim = Victim(outer, base, outside, notes)
        victims.append(victim)
        victim.wait_for("up")
        return victim

    yield begin
    for victim in victims:
        if victim.outer.poll() is None:
            victim.outer.kill()
            victim.outer.wait()


def everything(victim: Victim) -> list[tuple[int, int]]:
    """(pid, start time) of all processes of a run, in our pid namespace."""
    pids = descendants(victim.outer.pid)
    assert len(pids) >= 4, "init, runner and two sleepers"
    return [(pid, start_ticks(pid) or 0) for pid in pids]


def require_gone(processes: list[tuple[int, int]]) -> None:
    for pid, started in processes:
        wait_until(lambda pid=pid, started=started: start_ticks(pid) != started, Deadline(LONG), f"{pid} is gone")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "leak-" not in links


def test_sigkill_of_the_outer_process_and_clean(start: Callable[..., Victim]) -> None:
    victim, other = start(), start()
    processes = everything(victim)
    victim.outer.kill()
    assert victim.wait() == -signal.SIGKILL
    require_gone(processes)
    assert victim.outside.exists()
    wait_until(lambda: bool(clean(victim.base).removed), Deadline(LONG), "the dead run is found")
    assert not victim.outside.exists()
    assert other.outer.poll() is None, "the parallel run goes on"
    assert len(everything(other)) == len(processes)
    assert [read_ledger(run).pid for run in victim.base.iterdir()] == [other.outer.pid]


@pytest.mark.parametrize("who", ["init", "runner"])
def test_sigkill_inside(start: Callable[..., Victim], who: str) -> None:
    victim = start()
    processes = everything(victim)
    init = children(victim.outer.pid)[0]
    os.kill(init if who == "init" else children(init)[0], signal.SIGKILL)
    assert victim.wait() == 128 + signal.SIGKILL
    require_gone(processes)
    assert list(victim.base.iterdir()) == []
    assert not victim.outside.exists()


@pytest.mark.parametrize(
    ("signum", "name"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated"), (signal.SIGHUP, "Terminated")],
)
def test_one_notice_to_the_whole_group(start: Callable[..., Victim], signum: signal.Signals, name: str) -> None:
    victim = start()
    processes = everything(victim)
    os.killpg(victim.outer.pid, signum)  # what a terminal does for Ctrl-C
    os.killpg(victim.outer.pid, signum)  # what a wrapper may add to it
    assert victim.wait() == 128 + signum
    assert victim.lines() == ["up", f"notice {name}", "down"]
    require_gone(processes)
    assert list(victim.base.iterdir()) == []


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    base, outside, notes = tmp_path / "runs", tmp_path / "outside", tmp_path / "notes"
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, **python_environment()}
        os.execve(sys.executable, [sys.executable, "-c", RUN, str(base), str(outside), str(notes), "0"], environment)
    try:
        wait_until(lambda: notes.exists() and "up" in notes.read_text(), Deadline(LONG), "up")
        processes = [(child, start_ticks(child) or 0) for child in descendants(pid)]
        os.write(terminal, b"\x1a")  # Ctrl-Z: must not stop the outer process alone
        os.write(terminal, b"\x03")  # Ctrl-C
        _pid, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT
        assert notes.read_text().split("\n") == ["up", "notice KeyboardInterrupt", "down", ""]
        require_gone(processes)
        assert list(base.iterdir()) == []
    finally:
        os.close(terminal)


def test_second_notice_kills(start: Callable[..., Victim]) -> None:
    victim = start(teardown_s=600)
    processes = everything(victim)
    os.killpg(victim.outer.pid, signal.SIGINT)
    victim.wait_for("notice KeyboardInterrupt")
    time.sleep(2 * SAME_NOTICE_NS / NS_PER_S)  # a later key press is told from the first one by its distance alone
    os.killpg(victim.outer.pid, signal.SIGINT)
    assert victim.wait() == 128 + signal.SIGKILL
    assert "down" not in victim.lines()
    require_gone(processes)
    assert list(victim.base.iterdir()) == []


def test_endless_teardown_is_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert run_in_sandbox(main) == 128 + signal.SIGTERM
    # from inside the sandbox the outer process has no number: a helper that stays outside sends it the signal
    ready, tell = os.pipe()
    helper = subprocess.Popen(["sh", "-c", f"read line; kill -TERM {os.getpid()}"], stdin=ready)

    def waiting() -> int:
        try:
            os.write(tell, b"now\n")
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(600)
        return 0

    assert run_in_sandbox(waiting, grace_ns=NS_PER_S // 5) == 128 + signal.SIGKILL
    assert helper.wait() == 0
    os.close(ready)
    os.close(tell)
    assert "not torn down within 0.2 s" in capfd.readouterr().err


def test_ctrl_c_that_was_for_something_else_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """As on a command line: it goes on, for longer than a tear-down may take, and the next one is the first again."""
    ready, tell = os.pipe()
    press = f"while read line; do kill -INT {os.getpid()}; done"
    helper = subprocess.Popen(["sh", "-c", press], stdin=ready)
    grace_ns = NS_PER_S // 5

    def command_line() -> int:
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt):
                os.write(tell, b"now\n")
                time.sleep(600)
            interrupt_answered()
        time.sleep(3 * grace_ns / NS_PER_S)
        return 7

    try:
        assert run_in_sandbox(command_line, grace_ns=grace_ns) == 7
    finally:
        os.close(tell)
        os.close(ready)
        helper.wait()
    assert "killed" not in capfd.readouterr().err


def test_what_the_sandbox_looks_like() -> None:
    def look() -> dict[str, object]:
        ping = subprocess.run(["ping", "-c", "1", "-W", "2", "127.0.0.1"], capture_output=True, check=False)
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "processes": [int(name) for name in names("/proc") if name.isdecimal()],
            "interfaces": names("/sys/class/net"),
            "cgroups": bool(names("/sys/fs/cgroup")) == bool(outside_cgroups),
            "ipv6": [
                Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").read_text().strip()
                for scope in ("all", "default")
                if Path("/proc/sys/net/ipv6").exists()
            ],
            "loopback": ping.returncode,
            "network": namespace("net"),
            "mask": [int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        }

    outside_cgroups = names("/sys/fs/cgroup")
    before = (namespace("net"), namespace("mnt"), signal.getsignal(signal.SIGINT))
    seen = call_in_sandbox(look)
    assert seen["parent"] == 1
    assert seen["processes"] == [1, seen["pid"]]
    assert seen["interfaces"] == ["lo"]
    assert seen["cgroups"]
    assert set(seen["ipv6"]) <= {"1"}
    assert seen["loopback"] == 0
    assert seen["mask"] == []
    after = (namespace("net"), namespace("mnt"), signal.getsignal(signal.SIGINT))
    assert before == after
    assert seen["network"] != after[0]
    child = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True, check=True).stdout
    assert child.strip() == namespace("pid"), "later children stay outside"


def test_errors_and_statuses_come_out(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise ScenarioError("file.toml", "key", 3, "4")

    def leave() -> int:
        sys.exit(5)

    def break_down() -> int:
        raise ZeroDivisionError

    with pytest.raises(ScenarioError, match=r"file\.toml: key: got 3; allowed: 4"):
        run_in_sandbox(refuse)
    assert run_in_sandbox(leave) == 5
    assert run_in_sandbox(lambda: 7) == 7
    assert run_in_sandbox(break_down) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    with pytest.raises(HostError):
        call_in_sandbox(break_down)


def test_orphans_are_reaped() -> None:
    def main() -> list[int]:
        subprocess.run(["setsid", "--fork", "true"], check=True)
        me = os.getpid()
        wait_until(lambda: [p for p in names("/proc") if p.isdecimal()] == ["1", str(me)], Deadline(LONG), "reaped")
        return []

    assert call_in_sandbox(main) == []


def test_unprivileged_is_one_message(tmp_path: Path) -> None:
    program = (
        "import os; os.setresuid(65534, 65534, 65534)\nfrom bench.host.sandbox import run_in_sandbox\n"
        "from bench.errors import MachineError\n"
        "try: run_in_sandbox(lambda: 0)\nexcept MachineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "Permission denied" in done.stderr:
        pytest.skip("an unprivileged user cannot read this checkout")
    assert "must run as root" in done.stdout


def test_container_without_privileges_is_one_message() -> None:
    """Root without CAP_SYS_ADMIN, as in an ordinary container."""
    program = (
        "import ctypes; assert ctypes.CDLL(None).prctl(24, 21, 0, 0, 0) == 0\n"  # PR_CAPBSET_DROP CAP_SYS_ADMIN
        "import os, sys; os.execv(sys.executable, [sys.executable, '-c', '''\n"
        "from bench.host.sandbox import run_in_sandbox\nfrom bench.errors import MachineError\n"
        "try: run_in_sandbox(lambda: 0)\nexcept MachineError as error: print(error)'''])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **python_environment()},
        check=False,
    )
    assert "does not let us make a pid namespace: unshare: Operation not permitted" in done.stdout, done.stderr
    assert "--privileged" in done.stdout
