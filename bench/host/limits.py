"""Control groups that hold a set of processes to processors and memory, versions 1 and 2, applied and read back.

Sources: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/memory.rst,
Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.errors import HostError, MachineError

PERIOD_US: Final = 50_000
_PAGE_BYTES: Final = 4096


def hierarchies(mountinfo: str) -> dict[str, tuple[Path, int]]:
    """Controller (``cpu``, ``memory``) -> where groups with it can be made, and the version; 2 where both have it."""
    found: dict[str, tuple[Path, int]] = {}
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        where = Path(fields.split()[4])
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                for controller in (where / "cgroup.controllers").read_text(encoding="ascii").split():
                    found[controller] = (where, 2)
        elif kind == "cgroup":
            for controller in options.split()[-1].split(","):
                if controller in ("cpu", "memory"):
                    found.setdefault(controller, (where, 1))
    return found


class Limits:
    """The control groups of one hypervisor.

    :param name: of the groups, unique on this machine.
    :param record: told the path of each before it is made.
    :ivar applied: what was read back.

    :raises MachineError: this machine has no such controller, or does not let us use it.
    """

    def __init__(self, name: str, cpu: float, memory_bytes: int, record: Callable[[Path], Path]) -> None:
        self.applied: dict[str, Any] = {}
        self._groups: list[Path] = []
        known = hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
        wanted = {"cpu": cpu, "memory": memory_bytes}
        for controller in (key for key, value in wanted.items() if value):
            if controller not in known:
                raise MachineError(
                    f"hosts: there is no control group with the controller {controller!r} on this machine",
                    f"leave hosts.*.{controller} out, or mount it",
                )
            root, version = known[controller]
            path = root / name
            try:
                if path not in self._groups:
                    record(path).mkdir(exist_ok=True)
                    self._groups.append(path)
                if version == 2:
                    (root / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
                self._apply(controller, path, version, cpu, memory_bytes)
            except OSError as error:
                raise MachineError(
                    f"hosts: the control group {path} cannot be limited: {error.strerror}",
                    f"leave hosts.*.{controller} out",
                ) from error

    def _apply(self, controller: str, path: Path, version: int, cpu: float, memory_bytes: int) -> None:
        """Write a limit and read it back. :raises MachineError: when the kernel holds another one."""
        quota = round(cpu * PERIOD_US)
        if controller == "cpu" and version == 2:
            (path / "cpu.max").write_text(f"{quota} {PERIOD_US}", encoding="ascii")
            held, asked = _read(path / "cpu.max"), f"{quota} {PERIOD_US}"
        elif controller == "cpu":
            (path / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
            (path / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
            held, asked = _read(path / "cpu.cfs_quota_us"), str(quota)
        else:
            file = path / ("memory.max" if version == 2 else "memory.limit_in_bytes")
            asked = str(memory_bytes // _PAGE_BYTES * _PAGE_BYTES)
            file.write_text(asked, encoding="ascii")
            held = _read(file)
        if held != asked:
            raise MachineError(f"hosts: {path}: {controller} is {held}, not {asked} as asked")
        self.applied[controller] = cpu if controller == "cpu" else int(held)
        self.applied["version"] = version

    def add(self, pid: int) -> None:
        """Put a process and all its descendants under the limits. :raises HostError: when the kernel refuses."""
        try:
            for path in (group / "cgroup.procs" for group in self._groups):
                for one in _tree(pid):
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        path.write_text(str(one), encoding="ascii")
        except OSError as error:
            raise HostError(f"control groups of process {pid}: {error.strerror}") from error


def _tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop(0)
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            todo += [int(word) for word in _read(task).split()]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
