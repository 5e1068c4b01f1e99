"""The network cards of guests and what hosts have beside the topology's address: VLANs and IPv6."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from bench.scenario.values import Spec

MAX_VLAN: Final = 4094
MAX_MORE_CARDS: Final = 7


def _interface4(value: str) -> str:
    try:
        made = ipaddress.IPv4Interface(value)
    except ValueError:
        made = ipaddress.IPv4Interface("0.0.0.0/32")
    if "/" not in value or made.network.num_addresses < 4 or made.ip in (made.network[0], made.network[-1]):
        raise ValueError("an IPv4 address of a host with its prefix length, such as '10.20.0.1/24'")
    return str(made)


def _interface6(value: str) -> str:
    try:
        made = ipaddress.IPv6Interface(value)
    except ValueError:
        made = ipaddress.IPv6Interface("::/128")
    if "/" not in value or made.network.prefixlen > 126 or made.ip == made.network[0] or made.is_link_local:
        raise ValueError("an IPv6 address of a host with its prefix length, such as 'fd00::1:1/64'")
    return str(made)


Interface4 = Annotated[str, AfterValidator(_interface4)]
Interface6 = Annotated[str, AfterValidator(_interface6)]
MacAddress = Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
Vlan = Annotated[int, Field(ge=0, le=MAX_VLAN)]


class CardSpec(Spec):
    """A further network card of a guest, which has an IPv4 network of its own: ``address`` with its prefix length, such
    as "10.20.0.1/24". ``address6``: its IPv6 address, likewise; without it the card has no IPv6. ``vlan``: of its port
    at the hypervisor; 0 for none. ``mac``: by default the guest's, with the card's number added to the fourth byte.
    """

    address: Interface4
    address6: Interface6 | None = None
    mac: MacAddress | None = None
    vlan: Vlan = 0


def further_mac(first: str, number: int) -> str:
    """The MAC address of a card that was given none. :param number: from 1."""
    parts = [int(part, 16) for part in first.split(":")]
    parts[3] = (parts[3] + number) % 256
    return ":".join(f"{part:02x}" for part in parts)
