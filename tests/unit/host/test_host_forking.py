from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.forking import Forked, fork
from bench.host.kernel import start_ticks


def test_one_may_die_with_its_parent(tmp_path: Path) -> None:
    """Whether the parent is there when it asks, or gone already."""
    said = tmp_path / "said"
    parent = os.fork()
    if parent == 0:
        with said.open("wb", buffering=0) as output:
            child = fork(acts, ["sleep"], output=output.fileno(), dies_with_parent=True)
        said.with_suffix(".pid").write_text(str(child.pid))
        os._exit(0)
    os.waitpid(parent, 0)
    child = int(said.with_suffix(".pid").read_text())
    wait_until(lambda: start_ticks(child) is None, Deadline(30 * NS_PER_S), "the child's end")


def started(words: list[str], path: Path, *, pass_fds: tuple[int, ...] = (), new_session: bool = False) -> Forked:
    with path.open("wb", buffering=0) as output:
        return fork(acts, words, pass_fds=pass_fds, output=output.fileno(), start_new_session=new_session)


def acts(words: list[str]) -> int:
    """What the children of these tests do."""
    if words[0] == "tell":
        listed = list(Path("/proc/self/fd").iterdir())
        told = {
            "fds": sorted(int(path.name) for path in listed if path.is_symlink()),  # not that of the listing itself
            "stdin": str(Path("/proc/self/fd/0").readlink()),
            "session": os.getsid(0) == os.getpid(),
            "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            "sigusr1": signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN,
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "handlers": len(logging.getLogger().handlers),
            "cmdline": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"),
        }
        print(json.dumps(told))
    if words[0] == "write":
        os.write(int(words[1]), b"here")
    if words[0] == "raise":
        raise RuntimeError("as it was told")
    if words[0] == "sleep":
        time.sleep(60)
    if words[0] == "exit":
        sys.exit(int(words[1]))
    return 0


def test_a_child_has_what_an_exec_would_have_given_it(tmp_path: Path) -> None:
    former = {signum: signal.signal(signum, lambda *_: None) for signum in (signal.SIGTERM, signal.SIGINT)}
    former[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    read, write = os.pipe()
    try:
        child = started(["tell", "x"], tmp_path / "said", pass_fds=(write,), new_session=True)
        assert child.wait(30) == 0
    finally:
        os.close(read)
        os.close(write)
        for signum, handler in former.items():
            signal.signal(signum, handler)
    told = json.loads((tmp_path / "said").read_text())
    cmdline = told.pop("cmdline")
    assert told == {
        "fds": [0, 1, 2, write],
        "stdin": "/dev/null",
        "session": True,
        "sigterm": True,
        "sigusr1": True,
        "sigint": True,
        "handlers": 0,
    }
    wanted = f"{sys.executable} -m {__name__} tell x"
    shown = " ".join(cmdline)
    assert shown
    assert wanted.startswith(shown)  # as far as there is room


def test_it_inherits_the_descriptors_it_is_given_and_ends_with_what_it_returns(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = started(["write", str(write)], tmp_path / "said", pass_fds=(write,))
    os.close(write)
    assert os.read(read, 100) == b"here"
    assert os.read(read, 100) == b""  # nobody else holds it
    os.close(read)
    assert child.wait(30) == 0
    assert child.poll() == 0
    child.kill()  # of one that has ended: nothing
    assert started(["exit", "7"], tmp_path / "said").wait(30) == 7


def test_what_it_raises_is_told_and_it_never_comes_back_into_the_parents_code(tmp_path: Path) -> None:
    pid = os.getpid()
    child = started(["raise"], tmp_path / "said")
    assert os.getpid() == pid
    assert child.wait(30) == os.EX_SOFTWARE
    assert "RuntimeError: as it was told" in (tmp_path / "said").read_text()


def test_one_that_goes_on_is_waited_for_so_long_and_ended(tmp_path: Path) -> None:
    child = started(["sleep"], tmp_path / "said")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.terminate()
    assert child.wait(30) == -signal.SIGTERM
    child = started(["sleep"], tmp_path / "said")
    child.kill()
    assert child.wait() == -signal.SIGKILL
