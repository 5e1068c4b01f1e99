"""Where guests go when a hypervisor is emptied. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.moving.schedule import Order


@dataclass(frozen=True, slots=True)
class Placed:
    """A guest, its memory in bytes, and the hypervisor that it is on."""

    name: str
    memory_bytes: int
    host: str


class NoRoomError(ValueError):
    """No hypervisor has room for a guest that must go."""


def evacuation(
    host: str, guests: Sequence[Placed], hypervisors: Sequence[str], room: Mapping[str, int]
) -> tuple[Order, ...]:
    """Orders that empty *host*, in the order of *guests*.

    Destinations are chosen for the largest guest first: the hypervisor with the most memory free, those without a
    limit before all others; among equals the one whose guests have the least memory, then the one with the fewest, then
    the first.

    :param room: as of :class:`bench.moving.schedule.Limits`.
    :raises NoRoomError: one of them fits nowhere.
    """
    used = dict.fromkeys(hypervisors, 0)
    count = dict.fromkeys(hypervisors, 0)

    def place(guest: Placed, at: str) -> None:
        used[at] += guest.memory_bytes
        count[at] += 1

    for guest in guests:
        if guest.host != host:
            place(guest, guest.host)
    others = [name for name in hypervisors if name != host]
    chosen: dict[str, str] = {}
    for guest in sorted((guest for guest in guests if guest.host == host), key=lambda item: -item.memory_bytes):
        fitting = [name for name in others if used[name] + guest.memory_bytes <= room.get(name, math.inf)]
        if not fitting:
            shown = ", ".join(f"{name} {_free(room, used, name)}" for name in others) or "there is no other hypervisor"
            raise NoRoomError(f"guest {guest.name} of {guest.memory_bytes >> 20} MiB fits nowhere: {shown}")
        best = min(fitting, key=lambda name: (used[name] - room.get(name, math.inf), used[name], count[name]))
        place(guest, best)
        chosen[guest.name] = best
    return tuple(Order(guest.name, chosen[guest.name]) for guest in guests if guest.host == host)


def _free(room: Mapping[str, int], used: Mapping[str, int], name: str) -> str:
    return f"has {max(0, room[name] - used[name]) >> 20} MiB free"
