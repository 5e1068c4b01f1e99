"""What a guest says of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.guest.disks import NoDisks
from bench.guest.port import GUEST_INTERFACE, mtu_of
from bench.guest.sockets import Sockets
from bench.guest.states import State
from bench.guest.vcpu_client import Vcpu
from bench.guest.vcpu_limits import VcpuLimits
from bench.memory.huge import mapped_bytes
from bench.memory.image import GuestMemory

ANSWER_NS: Final = 60 * NS_PER_S


def guest_stats(
    state: State, vcpus: Sequence[Vcpu], sockets: Sockets | None, disks: NoDisks, *, check: bool, quiet: bool
) -> dict[str, Any]:
    """For :meth:`bench.guest.lifecycle.ProcessGuest.stats`, whose parameters these are."""
    deadline = Deadline(ANSWER_NS)
    told = [vcpu.stats(deadline) for vcpu in vcpus]
    errors = sum(int(vcpu.check(deadline)["wrong"]) for vcpu in vcpus) if check else 0
    return {
        "state": state.value,
        "pages_written": sum(int(vcpu["writes"]) for vcpu in told),
        "connections": 0 if sockets is None else len(sockets),
        "embryonic": 0 if sockets is None else sockets.embryonic(),
        "services": {} if sockets is None else sockets.counters(),
        "vcpus": told,
        "self_check_errors": errors,
        "disks": disks.stats(quiet=quiet),
    }


def applied(huge_pages: bool, memory: GuestMemory, vcpus: Sequence[Vcpu], limits: VcpuLimits | None) -> dict[str, Any]:
    """What the kernel holds of what the guest was given, read back."""
    found: dict[str, Any] = {"card_mtu": mtu_of(GUEST_INTERFACE)}
    if huge_pages:
        found["huge_bytes"] = mapped_bytes(os.getpid(), memory.base)
        found["vcpus_huge_bytes"] = [mapped_bytes(vcpu.pid, vcpu.base) for vcpu in vcpus]
    if limits is not None and any(limits.applied):
        found["vcpus"] = limits.applied
    return found
