"""The load on one hypervisor by stress-ng: started within its limits, measured while guests move, told at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.host.cgroup import FULL_PPM, CpuGroup
from bench.host.commands import Process, spawn
from bench.load_meter import Reading, measured, memory_rate, take_reading, tree
from bench.scenario import LoadSpec

STRESS_S: Final = 24 * 3600
STOP_NS: Final = 3 * NS_PER_S
TOLERANCE: Final = 0.25


def stress_arguments(load: LoadSpec) -> list[str]:
    """stress-ng's for processors and disks; empty for none."""
    argv: list[str] = []
    if load.cpu:
        workers = max(1, -(-round(load.cpu * 1000) // 1000))
        argv += ["--cpu", str(workers), "--cpu-load", str(max(1, round(100 * load.cpu / workers)))]
        argv += ["--cpu-method", "int64"]
    if load.io:
        argv += ["--hdd", str(load.io), "--hdd-bytes", "16M"]
    return _whole(argv)


def memory_arguments(load: LoadSpec, metrics: Path) -> list[str]:
    """stress-ng's for memory; empty for none. Apart from the rest, as a share of a processor is held by a group."""
    if not load.memory:
        return []
    return _whole(["--stream", str(memory_workers(load)), "--metrics", "--yaml", str(metrics)])


def memory_workers(load: LoadSpec) -> int:
    """How many processes stream."""
    return max(1, round(load.memory))


def _whole(argv: list[str]) -> list[str]:
    return ["stress-ng", *argv, "--timeout", str(STRESS_S), "--temp-path", "/tmp"] if argv else []  # noqa: S108


class HostLoad:
    """Running from its making on; :meth:`stop` is idempotent.

    :ivar asked: what it is to be.
    :param place: puts a process under the hypervisor's limits.
    :param group: the control group that one for a share of memory's load is made in; empty where none is needed.

    :raises BenchError: stress-ng does not start, or cannot be limited.
    """

    def __init__(
        self, host: str, load: LoadSpec, logs: Path, netns_pid: int, place: Callable[[int], None], group: str
    ) -> None:
        self._host = host
        self.asked = load
        self._metrics = logs / f"stress.{host}.yaml"
        self._group: CpuGroup | None = None
        self._processes: list[Process] = []
        self._level: dict[str, Any] | None = None
        for kind, argv in (("", stress_arguments(load)), (".memory", memory_arguments(load, self._metrics))):
            if argv:
                log = logs / f"stress.{host}{kind}.log"
                process = spawn(argv, netns_pid=netns_pid, log=log, name=f"stress-ng on {host}")
                self._processes.append(process)
                place(process.pid)
        if 0 < load.memory < 1:
            self._group = CpuGroup(Path(group), "load")
            self._group.set_share(round(load.memory * FULL_PPM))
        self.begin()

    def begin(self) -> None:
        """Guests begin to move: measure from here."""
        if self._group is not None:  # its worker too, which it may have started before it was in the group
            for pid in tree(self._processes[-1].pid):
                self._group.add(pid)
        self._begin = [take_reading(process.pid) for process in self._processes]

    def check(self) -> None:
        """:raises HostError: when it has ended by itself."""
        for process in self._processes:
            process.require_alive()

    def stop(self) -> tuple[dict[str, Any], list[str]]:
        """End it. :returns: what was measured, and why not to trust the run."""
        if self._level is None:
            end = [take_reading(process.pid) for process in self._processes]
            for process in self._processes:
                process.stop(Deadline(STOP_NS))
            if self._group is not None:
                self._group.remove()
            self._level = self._measured(end)
        reasons = []
        shares = {"cpu": self.asked.cpu, "memory": self.asked.memory}
        for kind, asked in shares.items():
            got = float(self._level.get(f"{kind}_processors", 0.0))
            if asked and abs(got - asked) > TOLERANCE * asked:
                what = {"cpu": "load", "memory": "load of memory"}[kind]
                reasons.append(f"{what} on {self._host}: {got:g} processors' worth where {asked:g} were asked")
        return self._level, reasons

    def _measured(self, end: list[Reading]) -> dict[str, Any]:
        level: dict[str, Any] = {}
        for before, after in zip(self._begin, end, strict=True):
            level.update(measured(before, after))
        rate = memory_rate(self._metrics, memory_workers(self.asked))
        return level if rate is None else {**level, "memory_bytes_per_s": rate}
