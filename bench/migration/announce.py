"""The frames that tell switches and neighbours where a guest is now, as bytes, and when they leave.

Runs in the runner (scapy is too heavy for an engine); engines and guests only carry the hex.

- ``rarp``: 60 bytes, EtherType 0x8035, RARP request reverse (opcode 3), sender and target hardware address the guest's,
  protocol addresses 0.0.0.0, as QEMU's net/announce.c builds it. Mends layer 2 only.
- ``garp``: ARP announcement in request form (RFC 5227 section 2.3, RFC 826): sender and target protocol address the
  guest's, target hardware address zero. Mends ARP caches as well.
- ``garp-reply``: the reply form: opcode 2, target hardware address broadcast.
- ``na``: IPv6 unsolicited neighbour advertisement (RFC 4861 sections 4.4 and 7.2.6): to all nodes (ff02::1, Ethernet
  33:33:00:00:00:01), hop limit 255, flags override only, with the target link-layer address option. 86 bytes. It
  tells the guest's own IPv6 address where it has one.

The first three are broadcast and padded to Ethernet's least length without FCS.

What is sent when is a list of *sends*: of which frame, how long after which moment, and whether it is to be lost. The
faults of the field (:class:`Faults`) are decided here, beforehand, so that a seed makes them repeatable.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from bench.clock import NS_PER_MS

FRAME_BYTES: Final = 60
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
ETHERTYPE_RARP: Final = 0x8035
ALL_NODES: Final = "ff02::1"
ALL_NODES_MAC: Final = "33:33:00:00:00:01"

# QEMU's announce parameters: initial 50 ms, step 100 ms, max 550 ms, 5 rounds; a wait is the one before plus the step.
# ESXi: "around 5 (max. 8) RARP packets", "usually < 1 second" after vMotion (Broadcom KB 343401); their spacing is not
# published, here it is even. Xen: netfront sends one gratuitous ARP when its back end is connected (Linux,
# drivers/net/xen-netfront.c).
_SCHEDULES_NS: Final = {
    "qemu": tuple(ms * NS_PER_MS for ms in (0, 50, 200, 450, 800)),
    "once": (0,),
    "esxi": tuple(ms * NS_PER_MS for ms in (0, 200, 400, 600, 800)),
    "xen": (0,),
    "none": (),
}


@dataclass(frozen=True, slots=True)
class Custom:
    """A schedule by QEMU's four announce parameters, in ns."""

    initial_ns: int
    max_ns: int
    rounds: int
    step_ns: int

    def offsets_ns(self) -> list[int]:
        """Round r (from 1) is followed by a wait of min(initial + (r - 1) step, max): QEMU, net/announce.c."""
        offsets = [0]
        for number in range(self.rounds - 1):
            offsets.append(offsets[-1] + min(self.initial_ns + number * self.step_ns, self.max_ns))
        return offsets


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with an announcement; see :class:`bench.scenario.announce.AnnounceFaultsSpec`."""

    lost_first: int = 0
    lost: float = 0.0
    seed: int = 1
    late_ns: int = 0
    wired_late_ns: int = 0
    before_wiring: bool = False
    reordered: bool = False


class _ByCard(TypedDict, total=False):
    card: int


class AnnounceFrame(_ByCard):
    """One frame: its kind, its bytes in hex, and by which of the guest's cards it leaves (by default the first)."""

    kind: str
    hex: str


class AnnounceSend(TypedDict):
    """One frame leaves, or is lost: when after the schedule's beginning, which one (an index), and whose it is."""

    at_ns: int
    frame: int
    sender: str
    lost: bool


def link_local_address(mac: str) -> str:
    """The IPv6 address that a machine gives itself by its MAC address (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


def _frame(kind: str, mac: str, address: str, address6: str) -> bytes:
    if kind == "na":
        own = address6 or link_local_address(mac)
        ether = Ether(dst=ALL_NODES_MAC, src=mac)
        packet = IPv6(src=own, dst=ALL_NODES, hlim=255) / ICMPv6ND_NA(R=0, S=0, O=1, tgt=own)
        return bytes(ether / packet / ICMPv6NDOptDstLLAddr(lladdr=mac))
    if kind == "rarp":
        ether = Ether(dst=BROADCAST, src=mac, type=ETHERTYPE_RARP)
        body = ARP(op=3, hwsrc=mac, hwdst=mac, psrc="0.0.0.0", pdst="0.0.0.0")
    elif kind == "garp":
        ether = Ether(dst=BROADCAST, src=mac)
        body = ARP(op=1, hwsrc=mac, hwdst="00:00:00:00:00:00", psrc=address, pdst=address)
    elif kind == "garp-reply":
        ether = Ether(dst=BROADCAST, src=mac)
        body = ARP(op=2, hwsrc=mac, hwdst=BROADCAST, psrc=address, pdst=address)
    else:
        raise ValueError(f"announce kind {kind!r}: 'rarp', 'garp', 'garp-reply' or 'na'")
    return bytes(ether / body).ljust(FRAME_BYTES, b"\0")


def frames(kinds: Iterable[str], mac: str, address: str, *, address6: str = "", card: int = 0) -> list[AnnounceFrame]:
    """One frame for each of *kinds* (``rarp``, ``garp``, ``garp-reply``, ``na``), in that order.

    :param mac: the guest's, ``52:54:00:00:00:01``.
    :param address: the guest's IPv4 address without prefix length.
    :param address6: its IPv6 address, which an advertisement tells; empty: the link-local one that follows from *mac*.
    :param card: of the guest, from 0.
    :raises ValueError: for an unknown kind.
    """
    made: list[AnnounceFrame] = []
    for kind in kinds:
        frame = AnnounceFrame(kind=kind, hex=_frame(kind, mac, address, address6).hex())
        if card:
            frame["card"] = card
        made.append(frame)
    return made


def for_cards(planned: Sequence[AnnounceSend], kinds: int, cards: int) -> list[AnnounceSend]:
    """The same for each of the guest's *cards*; in the list of all frames there are *kinds* for each, card by card."""
    return [
        AnnounceSend(
            at_ns=send["at_ns"], frame=number * kinds + send["frame"], sender=send["sender"], lost=send["lost"]
        )
        for send in planned
        for number in range(cards)
    ]


def offsets_ns(schedule: str) -> list[int]:
    """When the frames leave, in ns after the port is wired: ``qemu``, ``once``, ``esxi``, ``xen`` or ``none``.

    :raises ValueError: for an unknown schedule.
    """
    if schedule not in _SCHEDULES_NS:
        raise ValueError(f"announce schedule {schedule!r}: {', '.join(_SCHEDULES_NS)}")
    return list(_SCHEDULES_NS[schedule])


def sends(
    kinds: Sequence[str], offsets: Sequence[int], *, sender: str = "hypervisor", guest_delay_ns: int = 0
) -> list[AnnounceSend]:
    """What leaves when, in order of time, without faults.

    :param sender: ``hypervisor``, ``guest``, or ``both``: then RARP is the hypervisor's, the rest the guest's.
    :param guest_delay_ns: how much later the guest's own frames leave.
    """
    planned = []
    for offset_ns in offsets:
        for index, kind in enumerate(kinds):
            by_guest = sender == "guest" or (sender == "both" and kind != "rarp")
            at_ns = offset_ns + guest_delay_ns if by_guest else offset_ns
            who = "guest" if by_guest else "hypervisor"
            planned.append(AnnounceSend(at_ns=at_ns, frame=index, sender=who, lost=False))
    return sorted(planned, key=lambda send: send["at_ns"])


def with_faults(planned: Sequence[AnnounceSend], faults: Faults) -> list[AnnounceSend]:
    """The same sends, with what goes wrong with them."""
    frames_in_order = [(send["frame"], send["sender"]) for send in planned]
    if faults.reordered:
        frames_in_order = _reordered(planned)
    chance = random.Random(faults.seed)
    result = []
    for number, (send, (frame, sender)) in enumerate(zip(planned, frames_in_order, strict=True)):
        lost = number < faults.lost_first or (faults.lost > 0 and chance.random() < faults.lost)
        result.append(AnnounceSend(at_ns=send["at_ns"] + faults.late_ns, frame=frame, sender=sender, lost=lost))
    return result


def _reordered(planned: Sequence[AnnounceSend]) -> list[tuple[int, str]]:
    """Of each time the frames in reverse order, and those of the first two times in each other's place."""
    times: dict[int, list[tuple[int, str]]] = {}
    for send in planned:
        times.setdefault(send["at_ns"], []).append((send["frame"], send["sender"]))
    groups = [group[::-1] for group in times.values()]
    if len(groups) > 1:
        groups[0], groups[1] = groups[1], groups[0]
    return [item for group in groups for item in group]


def order(
    announced: Sequence[AnnounceFrame], planned: Sequence[AnnounceSend], faults: Faults | None = None
) -> dict[str, Any]:
    """What the guest's ``start`` and ``take`` are told: see :class:`bench.guest.announcer.Announcement`."""
    faults = faults or Faults()
    told = with_faults(planned, faults)
    return {
        "frames": list(announced),
        "offsets_ns": sorted({send["at_ns"] for send in told}),
        "sends": told,
        "wire_after_ns": faults.wired_late_ns,
        "before_wiring": faults.before_wiring,
    }
