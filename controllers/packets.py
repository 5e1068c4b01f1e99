"""Reads the first bytes of an Ethernet frame: addresses, EtherType, and whether it announces where a machine is.

Layouts: Ethernet II and 802.1Q tags (IEEE 802.3, 802.1Q), ARP (RFC 826), RARP (RFC 903), ARP announcements (RFC 5227).
The bytes come from the network, so anything may be in them: a frame that is cut short or makes no sense is "not an
announcement", or no frame at all (``None``), never an exception.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ETH_ARP = 0x0806
ETH_RARP = 0x8035
_ETH_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_MAX_TAGS = 2

_ETHERNET_IPV4 = struct.Struct("!HHBBH")  # hardware type, protocol type, their address lengths, opcode
_ARP_REQUEST = 1
_ARP_REPLY = 2
_RARP_REQUEST = 3

BROADCAST = "ff:ff:ff:ff:ff:ff"
_NOBODY = bytes(6)
_NO_ADDRESS = bytes(4)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A frame by which a machine says "I am here".

    :param kind: ``rarp`` (what hypervisors send for a guest), ``garp`` (ARP request form) or ``garp-reply``.
    :param mac: the machine's MAC address.
    :param ip: its IPv4 address; empty for RARP, which does not carry one.
    """

    kind: str
    mac: str
    ip: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The head of an Ethernet frame; ``ethertype`` is the one after 802.1Q tags."""

    src: str
    dst: str
    ethertype: int
    announcement: Announcement | None = None


def format_mac(raw: bytes) -> str:
    """Six bytes to ``52:54:00:00:00:01``."""
    return raw.hex(":")


def is_unicast(mac: str) -> bool:
    """True when *mac* can be the address of one machine: not a group address, not all zero."""
    return not int(mac[:2], 16) & 1 and mac != "00:00:00:00:00:00"


def parse(data: bytes) -> Frame | None:
    """The frame that *data* begins with (the rest may be cut off); None when it is shorter than an Ethernet header."""
    if len(data) < 14:
        return None
    dst, src = data[:6], data[6:12]
    offset = 12
    ethertype = int.from_bytes(data[12:14], "big")
    for _ in range(_MAX_TAGS):
        if ethertype not in _ETH_TAGS or len(data) < offset + 6:
            break
        offset += 4
        ethertype = int.from_bytes(data[offset : offset + 2], "big")
    announcement = None
    if ethertype in (ETH_ARP, ETH_RARP):
        announcement = _announcement(src, ethertype, data[offset + 2 :])
    return Frame(format_mac(src), format_mac(dst), ethertype, announcement)


def _announcement(src: bytes, ethertype: int, body: bytes) -> Announcement | None:
    """What an ARP or RARP body announces.

    Only a machine that speaks for itself announces: the sender's hardware address must be the frame's source.
    Anything else (proxy ARP, a forgery) is no more than a data frame, that is learnt by its source address like any
    other.
    """
    if len(body) < 28:
        return None
    hardware, protocol, hardware_size, protocol_size, opcode = _ETHERNET_IPV4.unpack_from(body)
    if (hardware, protocol, hardware_size, protocol_size) != (1, 0x0800, 6, 4):
        return None
    sender_mac, sender_ip, target_mac, target_ip = body[8:14], body[14:18], body[18:24], body[24:28]
    if sender_mac != src or sender_mac == _NOBODY or sender_mac[0] & 1:
        return None
    if ethertype == ETH_RARP:
        # A reverse request in which a machine asks for its own address: sender and target are the same.
        if opcode != _RARP_REQUEST or target_mac != sender_mac:
            return None
        return Announcement("rarp", format_mac(sender_mac), "")
    if sender_ip != target_ip or sender_ip == _NO_ADDRESS:
        return None
    kind = {_ARP_REQUEST: "garp", _ARP_REPLY: "garp-reply"}.get(opcode)
    if kind is None:
        return None
    return Announcement(kind, format_mac(sender_mac), ".".join(str(byte) for byte in sender_ip))
