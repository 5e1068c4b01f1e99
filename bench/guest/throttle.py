"""Holding the vCPUs of a guest back, as auto-converge and a dirty limit want it.

By the quota of a control group for each vCPU process, where such groups can be made; else each vCPU runs its loop for a
share of every 10 ms only (:meth:`bench.guest.vcpu.Vcpu._do_throttle`). Both limit CPU time, as QEMU's sleeping vCPUs
do: a vCPU that needs less than it is left is not slowed. For a dirty limit that is too coarse (a few ms of CPU time are
thousands of writes, and each change of a quota begins with a burst): there the loop caps the writes themselves.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, GuestError, HostError
from bench.guest.vcpu_client import Vcpu
from bench.guest.vcpu_limits import VcpuLimits
from bench.host.cgroup import FULL_PPM, CpuGroup

LEAST_PPM: Final = 1_000  # of one processor: 1 ms of each second
LOOP: Final = "loop"
_VCPU_NS: Final = 5 * NS_PER_S

log = logging.getLogger("guest")


class VcpuThrottle:
    """The throttle of some vCPUs; off at first.

    :param name: part of the groups' names, unique among those below one parent.
    :param limits: what the vCPUs are held to always: its groups are used, and left with its share.
    :ivar mechanism: ``cgroup-v2``, ``cgroup-v1`` or ``loop``; empty while it has never been on.
    """

    def __init__(self, vcpus: Sequence[Vcpu], name: str, limits: VcpuLimits | None = None) -> None:
        self.mechanism = ""
        self._vcpus = vcpus
        self._name = name
        self._full_ppm = FULL_PPM if limits is None else limits.share_ppm
        self._limited = [] if limits is None else limits.groups
        self._groups: list[CpuGroup] = []
        self._on = False
        self._loop_ppm, self._writes_per_s = FULL_PPM, 0

    def set_writes(self, writes_per_s: int) -> int:
        """Let each vCPU write no more often than that, by its loop; 0 is as often as it wants.

        :returns: the writes that all of them have done so far.
        """
        self._writes_per_s = writes_per_s
        return self._set_loops()

    def set_share(self, share_ppm: int, cgroup: str) -> str:
        """Leave each vCPU so much of one processor.

        :param cgroup: the parent for groups, used at the first call; empty for none.
        :returns: :attr:`mechanism`.
        :raises GuestError: for a share out of range.
        """
        if not LEAST_PPM <= share_ppm <= FULL_PPM:
            raise GuestError(f"a vCPU share of {share_ppm} ppm: allowed are {LEAST_PPM} to {FULL_PPM}")
        if share_ppm >= FULL_PPM:
            self._release_share()
            return self.mechanism
        if not self.mechanism:
            self.mechanism = self._choose(cgroup)
        self._on = True
        if self.mechanism == LOOP:
            self._loop_ppm = share_ppm
            self._set_loops()
        for group in self._groups:
            group.set_share(min(share_ppm, self._full_ppm))
        return self.mechanism

    def release(self) -> None:
        """Idempotent; each vCPU whatever becomes of the others. A held back one runs on at once."""
        self._release_share()  # first: a vCPU that is held back answers late
        if self._writes_per_s:
            self._writes_per_s = 0
            self._attempt(self._set_loops)

    def _release_share(self) -> None:
        if not self._on:
            return
        self._on = False
        for group in self._groups:
            self._attempt(functools.partial(group.set_share, self._full_ppm))
        if self._loop_ppm < FULL_PPM:
            self._loop_ppm = FULL_PPM
            self._attempt(self._set_loops)

    def _set_loops(self) -> int:
        deadline = Deadline(_VCPU_NS)
        return sum(vcpu.throttle(self._loop_ppm, self._writes_per_s, deadline) for vcpu in self._vcpus)

    def close(self) -> None:
        """After the vCPUs have ended: remove the groups. Idempotent."""
        for group in self._groups if not self._limited else ():
            group.remove()
        self._groups = []

    def _choose(self, cgroup: str) -> str:
        if self._limited:
            self._groups = self._limited
            return f"cgroup-v{self._groups[0].version}"
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
