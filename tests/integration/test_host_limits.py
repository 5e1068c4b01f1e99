"""Control groups of a hypervisor as this kernel has them: what they hold a process to, and version 2 by a hierarchy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import HostError, MachineError
from bench.host import limits
from bench.host.cgroup import CpuGroup
from bench.host.limits import Limits, here

pytestmark = pytest.mark.root

MIB = 1 << 20
NAME = f"migration-bench-test-{os.getpid()}"
GROW = """
import sys
sys.stdin.read(1)
held = [bytearray(b"x" * (1 << 20)) for _ in range(int(sys.argv[1]))]
print(len(held))
"""


@pytest.fixture
def made() -> Iterator[list[Path]]:
    """Groups that are removed at the end, those below them first."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        for group in (*path.glob("*/"), path):
            with contextlib.suppress(FileNotFoundError):
                group.rmdir()


def grow(held: Limits, mib: int) -> subprocess.CompletedProcess[bytes]:
    """A process under the limits that takes so much memory."""
    process = subprocess.Popen([sys.executable, "-c", GROW, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    held.add(process.pid)
    out, _err = process.communicate(b"!", 60)
    return subprocess.CompletedProcess(process.args, process.returncode, out)


def test_processes_are_held_to_the_memory_of_their_hypervisor(made: list[Path]) -> None:
    def record(path: Path) -> Path:
        made.append(path)
        return path

    held = Limits(NAME, 0, 64 * MIB, record)
    assert held.applied["memory"] == 64 * MIB
    assert grow(held, 24).stdout == b"24\n"
    assert held.memory_used()["memory_kills"] == 0
    assert grow(held, 96).returncode == -signal.SIGKILL
    used = held.memory_used()
    assert used["memory_kills"] == 1
    assert 24 * MIB < used["memory_peak"] <= 64 * MIB


REAL_TIME = """
import os, sys
from bench.host.timer import be_woken_on_time
print(be_woken_on_time(2), flush=True)
sys.stdin.read(1)
print(be_woken_on_time(2), flush=True)
"""


def test_what_keeps_time_may_be_real_time_below_a_limit(made: list[Path]) -> None:
    """It comes in while it is, and may become so there: the announcements of a guest, before and after a limit."""

    def record(path: Path) -> Path:
        made.append(path)
        return path

    held = Limits(NAME, 0.5, 0, record, divided=True)
    process = subprocess.Popen([sys.executable, "-c", REAL_TIME], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    before = process.stdout.readline()
    held.add(process.pid)
    after, _err = process.communicate(b"!", 60)
    assert (process.returncode, after) == (0, before)


@pytest.fixture
def version_2() -> Iterator[tuple[Path, str]]:
    """A mounted hierarchy of version 2, and a controller that it has."""
    found = [(path, name) for name, (path, version) in here().items() if version == 2]
    if not found:
        pytest.skip("no control groups of version 2 with a controller are mounted")
    root, controller = found[0]
    before = (root / "cgroup.subtree_control").read_text().split()
    yield root, controller
    if controller not in before:
        (root / "cgroup.subtree_control").write_text(f"-{controller}")


def test_groups_of_version_2_are_made_as_it_demands(
    version_2: tuple[Path, str], made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controllers are handed down, processes are in the leaf alone; by whichever controller this kernel's has."""
    root, controller = version_2

    def record(path: Path) -> Path:
        made.append(path)
        return path

    def limit(self: Limits, path: Path, version: int, _bytes: int) -> None:
        assert version == 2
        assert controller in (path / "cgroup.subtree_control").read_text().split()

    monkeypatch.setattr(limits, "here", lambda: {"memory": (root, 2)})
    monkeypatch.setattr(Limits, "_limit_memory", limit)
    make = Limits._make
    monkeypatch.setattr(Limits, "_make", lambda self, _asked, *rest: make(self, controller, *rest))
    held = Limits(NAME, 0, MIB, record)
    process = subprocess.Popen(["sleep", "60"])
    try:
        held.add(process.pid)
        leaf = root / NAME / "all"
        assert (leaf / "cgroup.procs").read_text().split() == [str(process.pid)]
        assert (root / NAME / "cgroup.procs").read_text() == ""
        assert controller in (leaf / "cgroup.controllers").read_text().split()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("key", "asked"), [("memory", {"memory_bytes": MIB}), ("cpu", {"cpu": 0.5}), ("cores", {"cores": [0]})]
)
def test_what_version_2_does_not_offer_is_refused_by_its_key(
    version_2: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, key: str, asked: dict[str, object]
) -> None:
    """With version 2 alone, as in a container; and the hypervisor is left without groups."""
    root, _controller = version_2
    offered = (root / "cgroup.controllers").read_text().split()
    if {"cores": "cpuset"}.get(key, key) in offered:
        pytest.skip(f"version 2 has the controller for {key} here")
    monkeypatch.setattr(limits, "here", lambda: dict.fromkeys(offered, (root, 2)))
    with pytest.raises(MachineError, match="no control group with the controller") as caught:
        Limits(NAME, **{"cpu": 0, "memory_bytes": 0, **asked, "record": pytest.fail})  # type: ignore[arg-type]
    assert f"hosts.*.{key}" in caught.value.remedy
    assert not (root / NAME).exists()


def test_a_group_without_a_cpu_controller_is_refused_and_removed(version_2: tuple[Path, str]) -> None:
    root, _controller = version_2
    if "cpu" in (root / "cgroup.controllers").read_text().split():
        pytest.skip("version 2 has the cpu controller here")
    with pytest.raises(HostError, match="no CPU controller"):
        CpuGroup(root, NAME)
    assert not (root / NAME).exists()
