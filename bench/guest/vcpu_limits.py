"""What each vCPU of a guest is held to: a share of a processor by a control group of its own, and processors.

As libvirt's ``vcpu_quota`` and ``vcpupin``. A vCPU whose share is used up waits for its next period wherever it is,
even when it is to be paused, as a hypervisor's vCPU thread does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import GuestError, HostError
from bench.guest.vcpu_client import Vcpu
from bench.host.cgroup import FULL_PPM, CpuGroup


@dataclass(frozen=True, slots=True)
class VcpuLimitsConfig:
    """:param share_ppm: of one processor, for each vCPU; :data:`FULL_PPM` for no limit.

    :param cores: vCPU *n* runs on processor ``cores[n % len(cores)]`` only; empty: wherever the host lets it.
    """

    share_ppm: int = FULL_PPM
    cores: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None) -> VcpuLimitsConfig:
        """:raises ValueError: for what is wrong."""
        share_ppm, cores = (raw or {}).get("share_ppm", FULL_PPM), (raw or {}).get("cores", [])
        if type(share_ppm) is not int or not 0 < share_ppm <= FULL_PPM:
            raise ValueError(f"vcpu_limits: a share of {str(share_ppm)[:40]} ppm")
        if not isinstance(cores, list) or not all(type(core) is int and 0 <= core < 1024 for core in cores):
            raise ValueError(f"vcpu_limits: cores {str(cores)[:80]}")
        return cls(share_ppm, tuple(cores))


NO_LIMITS: Final = VcpuLimitsConfig()


class VcpuLimits:
    """Those of all vCPUs of one guest process.

    :param parent: the control group to make theirs in; empty for none.
    :param name: part of the groups' names, unique among those below one parent.
    :ivar groups: one for each vCPU; none without a limit of their share.
    :ivar applied: for each vCPU what was read back: ``cpu`` in processors, ``cores``, ``version`` of its group.

    :raises GuestError: when the kernel refuses; nothing is left then.
    """

    def __init__(self, config: VcpuLimitsConfig, vcpus: Sequence[Vcpu], parent: str, name: str) -> None:
        self.share_ppm = config.share_ppm
        self.groups: list[CpuGroup] = []
        self.applied: list[dict[str, Any]] = []
        try:
            for vcpu in vcpus:
                self.applied.append({**self._share(vcpu, parent, name), **_pin(vcpu, config.cores)})
        except (HostError, OSError) as error:
            self.close()
            raise GuestError(f"a limit of vCPUs cannot be applied: {error}") from error

    def _share(self, vcpu: Vcpu, parent: str, name: str) -> dict[str, Any]:
        if self.share_ppm >= FULL_PPM:
            return {}
        if not parent:
            raise HostError("there is no control group for vCPUs")
        group = CpuGroup(Path(parent), f"{name}.{vcpu.index}")
        self.groups.append(group)
        group.set_share(self.share_ppm)
        group.add(vcpu.process.pid)
        held = group.share()
        if abs(held - self.share_ppm / FULL_PPM) > 0.001:
            raise HostError(f"a share of {held}, not {self.share_ppm / FULL_PPM} as asked")
        return {"cpu": round(held, 4), "version": group.version}

    def close(self) -> None:
        """After the vCPUs have ended: remove the groups. Idempotent."""
        for group in self.groups:
            group.remove()
        self.groups = []


def _pin(vcpu: Vcpu, cores: Sequence[int]) -> dict[str, Any]:
    if not cores:
        return {}
    core = cores[vcpu.index % len(cores)]
    os.sched_setaffinity(vcpu.process.pid, {core})
    held = sorted(os.sched_getaffinity(vcpu.process.pid))
    if held != [core]:
        raise HostError(f"vCPU {vcpu.index} runs on processors {held}, not on {core} as asked")
    return {"cores": held}
