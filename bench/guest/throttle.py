"""Holding the vCPUs of a guest back, as auto-converge and a dirty limit want it.

By the quota of a control group for each vCPU process, where such groups can be made; else each vCPU runs its loop for a
share of every 10 ms only (:meth:`bench.guest.vcpu.Vcpu._do_throttle`). Both limit CPU time, as QEMU's sleeping vCPUs
do: a vCPU that needs less than it is left is not slowed.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, GuestError, HostError
from bench.guest.vcpu_client import Vcpu
from bench.host.cgroup import FULL_PPM, CpuGroup

LEAST_PPM: Final = 1_000  # of one processor: 1 ms of each second
LOOP: Final = "loop"
_VCPU_NS: Final = 5 * NS_PER_S

log = logging.getLogger("guest")


class VcpuThrottle:
    """The throttle of some vCPUs; off at first.

    :param name: part of the groups' names, unique among those below one parent.
    :ivar mechanism: ``cgroup-v2``, ``cgroup-v1`` or ``loop``; empty while it has never been on.
    """

    def __init__(self, vcpus: Sequence[Vcpu], name: str) -> None:
        self.mechanism = ""
        self._vcpus = vcpus
        self._name = name
        self._groups: list[CpuGroup] = []
        self._on = False

    def set_share(self, share_ppm: int, cgroup: str) -> str:
        """Leave each vCPU so much of one processor.

        :param cgroup: the parent for groups, used at the first call; empty for none.
        :returns: :attr:`mechanism`.
        :raises GuestError: for a share out of range.
        """
        if not LEAST_PPM <= share_ppm <= FULL_PPM:
            raise GuestError(f"a vCPU share of {share_ppm} ppm: allowed are {LEAST_PPM} to {FULL_PPM}")
        if share_ppm >= FULL_PPM:
            self.release()
            return self.mechanism
        if not self.mechanism:
            self.mechanism = self._choose(cgroup)
        self._on = True
        if self.mechanism == LOOP:
            for vcpu in self._vcpus:
                vcpu.throttle(share_ppm, Deadline(_VCPU_NS))
        for group in self._groups:
            group.set_share(share_ppm)
        return self.mechanism

    def release(self) -> None:
        """Idempotent; each vCPU whatever becomes of the others. A held back one runs on at once."""
        if not self._on:
            return
        self._on = False
        for group in self._groups:
            self._attempt(functools.partial(group.set_share, FULL_PPM))
        if self.mechanism == LOOP:
            for vcpu in self._vcpus:
                self._attempt(functools.partial(vcpu.throttle, FULL_PPM, Deadline(_VCPU_NS)))

    def close(self) -> None:
        """After the vCPUs have ended: remove the groups. Idempotent."""
        for group in self._groups:
            group.remove()
        self._groups = []

    def _choose(self, cgroup: str) -> str:
        if not cgroup:
            return LOOP
        try:
            for vcpu in self._vcpus:
                group = CpuGroup(Path(cgroup), f"{self._name}.{vcpu.index}")
                self._groups.append(group)
                group.add(vcpu.process.pid)
        except HostError as error:
            log.warning("vCPUs are throttled by their loop: %s", error)
            # those that are members already stay so: without a quota a group does nothing
            return LOOP
        return f"cgroup-v{self._groups[0].version}" if self._groups else LOOP

    def _attempt(self, release: Callable[[], object]) -> None:
        try:
            release()
        except BenchError:
            log.exception("a vCPU stays throttled")


def cpu_time_ns(pid: int) -> int:
    """CPU time that a process of one thread has used; 0 when it is gone (proc(5): schedstat, else stat)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    except OSError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) * NS_PER_S // os.sysconf("SC_CLK_TCK")
