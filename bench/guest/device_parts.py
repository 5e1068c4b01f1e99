"""The parts of a guest that its device state describes: taken down from a paused guest, put up in a skeleton.

What the state looks like between the two is :mod:`bench.guest.device_state`'s; when which happens, and what becomes of
a guest whose parts fail, :mod:`bench.guest.lifecycle`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.clock import Deadline
from bench.errors import GuestError
from bench.guest import device_state
from bench.guest.cards import GuestCards
from bench.guest.config import GuestConfig
from bench.guest.device_state import DeviceState
from bench.guest.disks import NoDisks
from bench.guest.sockets import Sockets
from bench.guest.vcpu_client import VCPU_NS, Vcpu, loading


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """All that is a guest but its memory."""

    config: GuestConfig
    cards: GuestCards
    sockets: Sockets
    vcpus: Sequence[Vcpu]
    disks: NoDisks

    def dump(self, registers: Sequence[dict[str, Any]], generation: int) -> DeviceState:
        """The sockets are in repair afterwards; memory does not change.

        :param registers: of the vCPUs, which stand still.
        :param generation: of the lease, which this guest's hypervisor holds.
        """
        config, sockets = self.config, self.sockets
        streams, datagrams = sockets.dump()
        return DeviceState(
            name=config.name,
            memory_bytes=config.memory_bytes,
            mac=config.mac,
            address=config.address,
            owner=config.lease_me,
            generation=generation,
            registers=tuple(registers),
            neighbours=self.cards.neighbours(),
            streams=streams,
            datagrams=datagrams if config.keep_unread else (),
            counters=sockets.counters(),
            flows=sockets.outbound.dump(),
            disks=self.disks.export(),
        )

    def restore(self, state: DeviceState) -> None:
        """Put up everything, while memory may still change. The disks are told last, when nothing can fail any more.

        :raises GuestError: when a part refuses what it is given; the sockets are of no use then.
        """
        try:
            with loading(self.vcpus, state.registers, Deadline(VCPU_NS)):
                self.cards.set_neighbours(state.neighbours)
                self.sockets.outbound.restore(state.flows)
                self.sockets.restore(state.streams, state.datagrams, state.counters)
        except OSError as error:
            raise GuestError(f"device state: {error}") from error
        self.disks.load(state.disks)


def decode_own(blob: bytes, config: GuestConfig) -> DeviceState:
    """:raises GuestError: when the state is broken or not this guest's."""
    state = device_state.decode(blob)
    same = (state.name, state.memory_bytes, state.mac, state.address, len(state.registers))
    if same != (config.name, config.memory_bytes, config.mac, config.address, config.vcpus):
        raise GuestError(f"device state: of guest {state.name!r} {same[1:]}, which is another one")
    return state
