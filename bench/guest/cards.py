"""All network cards of a guest: made, cut and wired together, each a :class:`~bench.guest.port.GuestPort`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.guest.port import GuestPort, card_interface
from bench.host.vlan_tags import MAX_VLAN

MAX_CARDS: Final = 8


@dataclass(frozen=True, slots=True)
class CardConfig:
    """One card.

    :param mac: in lower case. :param address: with its prefix length; *address6* likewise, empty for no IPv6.
    :param vlan: 0 for none.
    """

    mac: str
    address: str
    address6: str = ""
    vlan: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Without prefix lengths, IPv4 first."""
        return tuple(text.partition("/")[0] for text in (self.address, self.address6) if text)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], mac: str) -> CardConfig:
        """:param mac: checked already. :raises ValueError: naming what is wrong."""
        vlan = raw.get("vlan", 0)
        if not isinstance(vlan, int) or isinstance(vlan, bool) or not 0 <= vlan <= MAX_VLAN:
            raise ValueError(f"vlan {vlan!r} is none from 0 to {MAX_VLAN}")
        address6 = raw.get("address6") or ""
        return cls(
            mac=mac,
            address=str(ipaddress.IPv4Interface(raw["address"])),
            address6=str(ipaddress.IPv6Interface(address6)) if address6 else "",
            vlan=vlan,
        )


class GuestCards:
    """Make it in the hypervisor's namespace, before unsharing.

    :raises GuestError: when the guest's name is too long or the bridge is missing.
    """

    def __init__(self, name: str, bridge: str, cards: Sequence[CardConfig]) -> None:
        self._cards = tuple(cards)
        self._ports = [GuestPort(name, bridge, number) for number in range(len(cards))]

    @property
    def interfaces(self) -> list[str]:
        """In the guest."""
        return [card_interface(number) for number in range(len(self._cards))]

    def create(self, namespace_fd: int, gateway: str, mtu: int, accepts: int) -> None:
        """In the guest's namespace; the default route is by the first card. See :meth:`GuestPort.create`."""
        for number, (port, card) in enumerate(zip(self._ports, self._cards, strict=True)):
            port.create(
                card.mac,
                card.address,
                namespace_fd,
                gateway if number == 0 else "",
                mtu,
                accepts,
                address6=card.address6,
                vlan=card.vlan,
            )

    def cut(self) -> None:
        """Black-hole all of them. Idempotent. :raises OSError: when the kernel refuses."""
        for port in self._ports:
            port.cut()

    def wire(self) -> None:
        """Let all of them forward. :raises OSError: when the kernel refuses."""
        for port in self._ports:
            port.wire()

    def neighbours(self) -> tuple[tuple[str, str], ...]:
        """See :meth:`GuestPort.neighbours`."""
        return tuple(pair for port in self._ports for pair in port.neighbours())

    def set_neighbours(self, neighbours: Sequence[tuple[str, str]]) -> None:
        """Each where it belongs. :raises OSError: when the kernel refuses."""
        for port in self._ports:
            port.set_neighbours(neighbours)

    def remove(self) -> None:
        """Idempotent. :raises OSError: when the kernel refuses."""
        for port in self._ports:
            port.remove()
