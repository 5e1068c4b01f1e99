"""Control groups that hold a hypervisor's processes to processors and memory, versions 1 and 2, applied and read back.

Of each hierarchy there is one group that carries the limits, and where groups of single vCPUs are to lie below it, or
version 2 demands it, another below that holds the processes (a group of version 2 that hands controllers down may hold
none itself: "no internal processes")::

    migration-bench-RUN-h1          the limits
    migration-bench-RUN-h1/all      the processes
    migration-bench-RUN-h1/g1.0     a vCPU with a limit of its own (bench.guest.vcpu_limits)

A quota of the processor says nothing of real-time processes, of which a hypervisor has one for each guest: what sends
its announcements on time. Where the kernel divides real time too, a group has none at first and takes no such process
in, so each is given a little.

Sources: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/{memory,cpusets}.rst,
Documentation/scheduler/{sched-bwc,sched-rt-group}.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.errors import HostError, MachineError

PERIOD_US: Final = 50_000
REAL_TIME_US: Final = 20_000  # of each second, on each processor
CONTROLLERS: Final = ("cpu", "memory", "cpuset")
_PAGE_BYTES: Final = 4096
_LEAF: Final = "all"


def hierarchies(mountinfo: str) -> dict[str, tuple[Path, int]]:
    """Controller (``cpu``, ``memory``, ``cpuset``) -> where groups with it can be made, and the version; 2 where both
    have it.
    """
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
                if controller in CONTROLLERS:
                    found.setdefault(controller, (where, 1))
    return found


def here() -> dict[str, tuple[Path, int]]:
    """:func:`hierarchies` of this process' mount namespace."""
    return hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))


def parse_cores(text: str) -> set[int]:
    """A list such as ``0-2,5`` as cpuset files hold it."""
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.strip():
            cores |= set(range(int(first), int(last or first) + 1))
    return cores


class Limits:
    """The control groups of one hypervisor.

    :param name: of the groups, unique on this machine.
    :param cpu: processors' worth of time; 0: no limit.
    :param memory_bytes: 0: no limit.
    :param cores: the processors; empty: all.
    :param divided: groups of single vCPUs will be made below, whether or not all together are limited.
    :param record: told the path of each before it is made.
    :ivar applied: what was read back; ``versions``: of the control groups, by controller.
    :ivar vcpu_parent: where groups of vCPUs belong; None without a limit of the CPU and without *divided*.

    :raises MachineError: this machine has no such controller, or does not let us use it.
    """

    def __init__(
        self,
        name: str,
        cpu: float,
        memory_bytes: int,
        record: Callable[[Path], Path],
        *,
        cores: Sequence[int] = (),
        divided: bool = False,
    ) -> None:
        self.applied: dict[str, Any] = {}
        self.vcpu_parent: Path | None = None
        self._name = name
        self._record = record
        self._leaves: dict[Path, Path] = {}  # a group with limits -> the one that holds the processes
        known = here()
        wanted = {"cpu": cpu or divided, "memory": memory_bytes, "cpuset": cores}
        for controller in (key for key, value in wanted.items() if value):
            key = {"cpuset": "cores"}.get(controller, controller)
            if controller not in known:
                raise MachineError(
                    f"hosts: there is no control group with the controller {controller!r} on this machine",
                    f"leave hosts.*.{key} out, or mount it",
                )
            root, version = known[controller]
            path = root / name
            try:
                self._make(controller, root, version)
                if controller == "cpu":
                    self.vcpu_parent = path
                    if cpu:
                        self._limit_cpu(path, version, cpu)
                elif controller == "memory":
                    self._limit_memory(path, version, memory_bytes)
                else:
                    self._limit_cores(path, version, cores)
            except OSError as error:
                raise MachineError(
                    f"hosts: the control group {path} cannot be limited: {error.strerror}", f"leave hosts.*.{key} out"
                ) from error
            self.applied.setdefault("versions", {})[controller] = self.applied["version"] = version

    def _make(self, controller: str, root: Path, version: int) -> None:
        path = root / self._name
        if path not in self._leaves:
            self._record(path).mkdir(exist_ok=True)
            own = version == 2 or controller == "cpu"
            self._leaves[path] = path / _LEAF if own else path
            self._leaves[path].mkdir(exist_ok=True)
            if version == 1 and controller == "cpu":
                for group in (path, self._leaves[path]):
                    _allow_real_time(group)
        if version == 2:
            for group in (root, path):
                (group / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")

    def _limit_cpu(self, path: Path, version: int, cpu: float) -> None:
        quota = round(cpu * PERIOD_US)
        if version == 2:
            asked = f"{quota} {PERIOD_US}"
            (path / "cpu.max").write_text(asked, encoding="ascii")
            held = _read(path / "cpu.max")
        else:
            (path / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
            (path / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
            held, asked = _read(path / "cpu.cfs_quota_us"), str(quota)
        _require("cpu", path, held, asked)
        self.applied["cpu"] = cpu

    def _limit_memory(self, path: Path, version: int, memory_bytes: int) -> None:
        file = path / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        asked = str(memory_bytes // _PAGE_BYTES * _PAGE_BYTES)
        file.write_text(asked, encoding="ascii")
        held = _read(file)
        _require("memory", path, held, asked)
        self.applied["memory"] = int(held)

    def _limit_cores(self, path: Path, version: int, cores: Sequence[int]) -> None:
        text = ",".join(map(str, cores))
        if version == 1:  # no process may enter a group without memory nodes
            (path / "cpuset.mems").write_text(_read(path.parent / "cpuset.mems"), encoding="ascii")
        (path / "cpuset.cpus").write_text(text, encoding="ascii")
        held = _read(path / ("cpuset.cpus.effective" if version == 2 else "cpuset.cpus"))
        _require("cores", path, str(sorted(parse_cores(held))), str(sorted(cores)))
        self.applied["cores"] = sorted(parse_cores(held))

    def memory_used(self) -> dict[str, int]:
        """``memory_peak``: the most that all processes together had, in bytes (their share of the page cache is part
        of it); ``memory_kills``: how many the kernel ended because the limit left them none. Empty without a limit.
        """
        if "memory" not in self.applied:
            return {}
        version = self.applied["versions"]["memory"]
        group = here()["memory"][0] / self._name
        peak = _read(group / ("memory.peak" if version == 2 else "memory.max_usage_in_bytes"))
        told = _read(group / ("memory.events" if version == 2 else "memory.oom_control"))
        counts = dict(line.split() for line in told.splitlines())
        used = {"memory_peak": peak, "memory_kills": counts.get("oom_kill", "")}
        return {name: int(value) for name, value in used.items() if value}

    def add(self, pid: int) -> None:
        """Put a process and all its descendants under the limits. :raises HostError: when the kernel refuses."""
        try:
            for path in (group / "cgroup.procs" for group in self._leaves.values()):
                for one in _tree(pid):
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        path.write_text(str(one), encoding="ascii")
        except OSError as error:
            raise HostError(f"control groups of process {pid}: {error.strerror}") from error


def _allow_real_time(group: Path) -> None:
    """Where the kernel has that (CONFIG_RT_GROUP_SCHED), and the group above has some left; else nobody needs it, or
    announcements come as late as the load makes them.
    """
    file = group / "cpu.rt_runtime_us"
    with contextlib.suppress(OSError):
        if file.exists():
            file.write_text(str(REAL_TIME_US), encoding="ascii")


def _require(what: str, path: Path, held: str, asked: str) -> None:
    """:raises MachineError: when the kernel holds something else than was asked."""
    if held != asked:
        raise MachineError(f"hosts: {path}: {what} is {held}, not {asked} as asked")


def _tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop(0)
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            todo += [int(word) for word in _read(task).split()]
    return found


def cores_here() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
