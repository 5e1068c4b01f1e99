"""What ``configure`` tells a guest process, checked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import GuestError
from bench.guest.cards import MAX_CARDS, CardConfig
from bench.guest.disks import DisksConfig
from bench.guest.port import card_interface
from bench.guest.store import MIN_REGION_BYTES
from bench.guest.vcpu_limits import NO_LIMITS, VcpuLimitsConfig
from bench.memory.image import PAGE_BYTES

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
MAX_VCPUS = 64


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """One guest at one hypervisor.

    :param name: of the guest; *host* is the hypervisor's.
    :param store_bytes: of the key-value store at the end of memory.
    :param content: shares of zero, text and random pages; *image*, if there is one, takes its place.
    :param mac: in lower case; *address* with its prefix length.
    :param workload: of the vCPUs, see :func:`bench.guest.workload.split`.
    :param skeleton: memory is not filled; pages and a state will be loaded.
    :param populate: of a skeleton: allocate memory while it waits; off where pages are to be missing until they come.
    :param gateway: of its default route; empty for none.
    :param sysctls: kernel parameters of its namespace, by name.
    :param chatter_ns: how often the guest broadcasts something by itself; 0: it is silent and only answers.
    :param mtu: what it sends at most, and *accepts_mtu* what its card lets in.
    :param huge_pages: whether memory that is made here lies in huge pages.
    :param vcpu_limits: what each vCPU is held to, and *vcpu_group* the control group at this hypervisor for theirs.
    :param keep_unread: datagrams that were not read at the pause move with the guest.
    :param disks: None for a guest without.
    :param cards: all network cards, the first with *mac* and *address*.
    :param own_flows: kinds of the flows that the guest will run itself.
    :param lease_path: the lease's file, and *lease_me* under which name this hypervisor claims it.
    """

    name: str
    host: str
    memory_bytes: int
    vcpus: int
    store_bytes: int
    content: Mapping[str, float]
    image: Path | None
    seed: int
    mac: str
    address: str
    bridge: str
    workload: Mapping[str, Any]
    skeleton: bool
    lease_path: Path
    lease_me: str
    populate: bool = True
    chatter_ns: int = 0
    keep_unread: bool = True
    gateway: str = ""
    sysctls: Mapping[str, str | int] = field(default_factory=dict)
    mtu: int = 1500
    accepts_mtu: int = 1500
    huge_pages: bool = False
    vcpu_limits: VcpuLimitsConfig = NO_LIMITS
    vcpu_group: str = ""
    disks: DisksConfig | None = None
    cards: tuple[CardConfig, ...] = ()
    own_flows: tuple[str, ...] = ()

    @property
    def ips(self) -> tuple[str, ...]:
        """All addresses of all cards."""
        return tuple(address for card in self.cards for address in card.addresses)

    def card_of(self, ip: str) -> str:
        """The interface that one of them is at. :raises StopIteration: when it is none of them."""
        return card_interface(next(number for number, card in enumerate(self.cards) if ip in card.addresses))

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> GuestConfig:
        """:raises GuestError: naming what is missing or wrong."""
        try:
            return cls._parse(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise GuestError(f"guest configuration: {type(error).__name__}: {error}") from error

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> GuestConfig:
        memory_bytes = _integer(raw, "memory_bytes", PAGE_BYTES, 1 << 48)
        store_bytes = _integer(raw, "store_bytes", MIN_REGION_BYTES, memory_bytes)
        if memory_bytes % PAGE_BYTES or store_bytes % PAGE_BYTES or store_bytes >= memory_bytes:
            raise ValueError(
                f"memory of {memory_bytes} and store of {store_bytes} bytes: whole pages, the store smaller"
            )
        mac = _mac(raw)
        cards = [CardConfig.from_json(raw, mac)]
        cards += [CardConfig.from_json(card, _mac(card)) for card in raw.get("cards") or ()]
        if len(cards) > MAX_CARDS or len({card.mac for card in cards}) < len(cards):
            raise ValueError(f"at most {MAX_CARDS} cards, with different MAC addresses")
        lease = raw["lease"]
        image = raw.get("image")
        return cls(
            name=_name(raw, "name"),
            host=_name(raw, "host"),
            memory_bytes=memory_bytes,
            vcpus=_integer(raw, "vcpus", 1, MAX_VCPUS),
            store_bytes=store_bytes,
            content={str(kind): float(share) for kind, share in dict(raw["content"]).items()},
            image=None if image is None else Path(str(image)),
            seed=_integer(raw, "seed", 0, (1 << 63) - 1),
            mac=mac,
            address=cards[0].address,
            cards=tuple(cards),
            bridge=str(raw["bridge"]),
            workload=dict(raw["workload"]),
            skeleton=bool(raw["skeleton"]),
            lease_path=Path(str(lease["path"])),
            lease_me=_name(lease, "me"),
            populate=bool(raw.get("populate", True)),
            gateway=str(ipaddress.IPv4Address(raw["gateway"])) if raw.get("gateway") else "",
            sysctls={str(name): value for name, value in dict(raw.get("sysctls") or {}).items()},
            keep_unread=bool(raw.get("keep_unread", True)),
            chatter_ns=_integer({"chatter_ns": 0, **raw}, "chatter_ns", 0, 60 * 10**9),
            huge_pages=raw.get("huge_pages") is True,
            vcpu_limits=VcpuLimitsConfig.from_json(raw.get("vcpu_limits")),
            vcpu_group=str(raw.get("vcpu_group", "")),
            mtu=_integer({"mtu": 1500, **raw}, "mtu", 576, 65535),
            accepts_mtu=_integer({"accepts_mtu": 1500, **raw}, "accepts_mtu", 576, 65535),
            own_flows=tuple(map(str, raw.get("own_flows") or ())),
            disks=DisksConfig.from_json(raw.get("storage"), _name(raw, "host")),
        )


def _mac(raw: Mapping[str, Any]) -> str:
    mac = str(raw["mac"]).lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise ValueError(f"mac {mac!r} is no unicast address")
    return mac


def _integer(raw: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{key} {value!r} is no integer in {least} … {most}")
    return value


def _name(raw: Mapping[str, Any], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{key} {value!r}: 1 to 32 letters, digits, dots, dashes")
    return value
