"""The frames that tell switches and neighbours where a guest is now, as bytes, and when they leave.

Runs in the runner (scapy is too heavy for an engine); engines and guests only carry the hex.

- ``rarp``: 60 bytes, EtherType 0x8035, RARP request reverse (opcode 3), sender and target hardware address the guest's,
  protocol addresses 0.0.0.0, as QEMU's net/announce.c builds it. Mends layer 2 only.
- ``garp``: ARP announcement in request form (RFC 5227 section 2.3, RFC 826): sender and target protocol address the
  guest's, target hardware address zero. Mends ARP caches as well.
- ``garp-reply``: the reply form: opcode 2, target hardware address broadcast.

All are broadcast and padded to Ethernet's least length without FCS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypedDict

from scapy.layers.l2 import ARP, Ether

from bench.clock import NS_PER_MS

FRAME_BYTES: Final = 60
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
ETHERTYPE_RARP: Final = 0x8035

# QEMU's announce parameters: initial 50 ms, step 100 ms, max 550 ms, 5 rounds; a wait is the one before plus the step.
_SCHEDULES_NS: Final = {
    "qemu": tuple(ms * NS_PER_MS for ms in (0, 50, 200, 450, 800)),
    "once": (0,),
    "none": (),
}


class AnnounceFrame(TypedDict):
    """One frame: its kind, and its bytes in hex."""

    kind: str
    hex: str


def _frame(kind: str, mac: str, address: str) -> bytes:
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
        raise ValueError(f"announce kind {kind!r}: 'rarp', 'garp' or 'garp-reply'")
    return bytes(ether / body).ljust(FRAME_BYTES, b"\0")


def frames(kinds: Iterable[str], mac: str, address: str) -> list[AnnounceFrame]:
    """One frame for each of *kinds* (``rarp``, ``garp``, ``garp-reply``), in that order.

    :param mac: the guest's, ``52:54:00:00:00:01``.
    :param address: the guest's IPv4 address without prefix length.
    :raises ValueError: for an unknown kind.
    """
    return [{"kind": kind, "hex": _frame(kind, mac, address).hex()} for kind in kinds]


def offsets_ns(schedule: str) -> list[int]:
    """When the frames leave, in ns after the port is wired: ``qemu``, ``once`` or ``none``.

    :raises ValueError: for an unknown schedule.
    """
    if schedule not in _SCHEDULES_NS:
        raise ValueError(f"announce schedule {schedule!r}: {', '.join(_SCHEDULES_NS)}")
    return list(_SCHEDULES_NS[schedule])
