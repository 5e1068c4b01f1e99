"""A capture file of Linux "cooked" frames to numpy records: the parser of what the frame watcher's tcpdump wrote. Pure.

File: classic pcap (https://www.tcpdump.org/manpages/pcap-savefile.5.html) in this machine's byte order with nanosecond
stamps (magic 0xa1b23c4d) and link type LINUX_SLL2 (276, https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html)::

    file    magic u32, major u16, minor u16, zone i32, accuracy u32, snap length u32, link type u32
    frame   seconds u32, nanoseconds u32, captured u32, original u32, then "captured" bytes:
    SLL2    EtherType u16, reserved u16, interface index u32, ARPHRD u16, packet type u8, address length u8, address 8
            (big endian), then the frame behind its Ethernet header

Only the walk from frame to frame is a Python loop (their lengths chain); everything else is gathered by numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.errors import ProbeError
from bench.records import (
    DIRECTION_IN,
    DIRECTION_OUT,
    FRAME,
    IPV6_KEY,
    KIND_ARP,
    KIND_IP,
    KIND_OTHER,
    KIND_RARP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    StructuredArray,
    ip_to_int,
    mac_to_int,
)

SNAP_BYTES: Final = 96
"""What of each frame is needed: 20 (SLL2) + up to 60 for IP and TCP's first 16, with room."""

_FILE_HEADER: Final = struct.Struct("=IHHiIII")
_MAGIC_NS: Final = 0xA1B23C4D
_LINKTYPE_SLL2: Final = 276
_RECORD_BYTES: Final = 16
_SLL2_BYTES: Final = 20
_PACKET_OUTGOING: Final = 4

_ETHERTYPE_IP: Final = 0x0800
_ETHERTYPE_ARP: Final = 0x0806
_ETHERTYPE_RARP: Final = 0x8035
_ETHERTYPE_IPV6: Final = 0x86DD
_ETHERTYPE_8021Q: Final = 0x8100
_ICMPV6: Final = 58
_NEIGHBOUR_ADVERTISEMENT: Final = 136

_Ints = npt.NDArray[np.int64]


def parse_frames(
    data: bytes | memoryview, guest_addresses: Sequence[str], guest_macs: Sequence[str]
) -> tuple[StructuredArray, _Ints]:
    """All whole frames of a capture file.

    :param guest_addresses: IP addresses of the guests, for ``dst_is_guest`` and ``is_announce``.
    :param guest_macs: their MAC addresses, for ``is_announce``.
    :returns: records of :data:`bench.records.FRAME` in the file's order, whose ``t_ns`` is still CLOCK_REALTIME and
        whose ``interface`` is 0, and beside them the kernel's interface indexes. An incomplete last frame (tcpdump
        was killed) is left out.
    :raises ProbeError: when it is no such file.
    """
    if len(data) < _FILE_HEADER.size:
        raise ProbeError("the frame watcher's capture has no file header")
    magic, _major, _minor, _zone, _accuracy, snap, linktype = _FILE_HEADER.unpack_from(data)
    if magic != _MAGIC_NS or linktype & 0xFFFF != _LINKTYPE_SLL2:
        raise ProbeError(f"the frame watcher's capture has magic {magic:#x} and link type {linktype}, not SLL2 in ns")
    starts = _walk(data, snap)
    whole = np.frombuffer(data, np.uint8)
    return _decode(_Gather(whole, starts), guest_addresses, guest_macs)


def _walk(data: bytes | memoryview, snap: int) -> _Ints:
    """Where each frame's record header starts."""
    unpack = struct.Struct("=I").unpack_from
    starts: list[int] = []
    append = starts.append
    at, end = _FILE_HEADER.size, len(data)
    limit = max(snap, 1 << 18)
    while at + _RECORD_BYTES <= end:
        captured: int = unpack(data, at + 8)[0]
        if captured > limit:
            raise ProbeError(f"the frame watcher's capture is broken at byte {at}: a frame of {captured} bytes")
        following = at + _RECORD_BYTES + captured
        if following > end:
            break
        append(at)
        at = following
    return np.array(starts, np.int64)


class _Gather:
    """Reads the same field of many frames; a field that a short frame does not have reads as 0."""

    def __init__(self, whole: npt.NDArray[np.uint8], starts: _Ints) -> None:
        self.whole = whole
        self.starts = starts
        self.captured = self.host(8)
        self.body = starts + _RECORD_BYTES
        self.ends = self.body + self.captured

    def host(self, offset: int) -> _Ints:
        """A u32 of the record header, in this machine's byte order."""
        raw = np.stack([self.whole[self.starts + offset + index] for index in range(4)], axis=-1)
        return np.ascontiguousarray(raw).view("=u4").reshape(-1).astype(np.int64)

    def u8(self, offset: int | _Ints, count: int = 1) -> _Ints:
        """An unsigned big-endian number of *count* bytes at *offset* of the SLL2 header."""
        position = self.body + offset
        there = position + count <= self.ends
        position = np.where(there, position, 0)
        value: _Ints = np.zeros(len(position), np.int64)
        for index in range(count):
            value = value << 8 | self.whole[position + index]
        return np.where(there, value, 0)


def _is_one_of(values: _Ints, wanted: Sequence[int]) -> npt.NDArray[np.bool_]:
    return np.isin(values, np.array(list(wanted), np.int64))


def _decode(
    gather: _Gather, guest_addresses: Sequence[str], guest_macs: Sequence[str]
) -> tuple[StructuredArray, _Ints]:
    addresses = [ip_to_int(address) for address in guest_addresses]
    macs = [mac_to_int(mac) for mac in guest_macs]
    frames = np.zeros(len(gather.starts), FRAME)
    frames["t_ns"] = gather.host(0) * 1_000_000_000 + gather.host(4)
    ethertype = gather.u8(0, 2)
    indexes = gather.u8(4, 4)
    frames["direction"] = np.where(gather.u8(10) == _PACKET_OUTGOING, DIRECTION_OUT, DIRECTION_IN)
    frames["src_mac"] = np.where(gather.u8(11) == 6, gather.u8(12, 6), 0)
    ethertype = _untagged(gather, ethertype)
    kind = np.full(len(frames), KIND_OTHER, np.uint8)
    kind[ethertype == _ETHERTYPE_IP] = KIND_IP
    kind[ethertype == _ETHERTYPE_ARP] = KIND_ARP
    kind[ethertype == _ETHERTYPE_RARP] = KIND_RARP
    frames["kind"] = kind
    _decode_ip(gather, frames, kind == KIND_IP, addresses)
    _decode_arp(gather, frames, addresses, macs)
    _decode_ipv6(gather, frames, ethertype == _ETHERTYPE_IPV6, addresses)
    _decode_advertisement(gather, frames, ethertype == _ETHERTYPE_IPV6, macs)
    return frames, indexes


def _untagged(gather: _Gather, ethertype: _Ints) -> _Ints:
    """The EtherTypes behind 802.1Q tags.

    Linux 6.10 takes the tag off what it hands out; before, a frame that leaves with one is of type 0x8100, and its body
    begins with the tag, or (from 6.0 on) behind it.
    """
    tagged = ethertype == _ETHERTYPE_8021Q
    if not tagged.any():
        return ethertype
    inner = gather.u8(_SLL2_BYTES + 2, 2)
    there = tagged & np.isin(inner, (_ETHERTYPE_IP, _ETHERTYPE_ARP, _ETHERTYPE_RARP, _ETHERTYPE_IPV6))
    version = gather.u8(_SLL2_BYTES) >> 4
    guessed = np.select([version == 4, version == 6], [_ETHERTYPE_IP, _ETHERTYPE_IPV6], _ETHERTYPE_ARP)
    gather.body = gather.body + np.where(there, 4, 0)
    return np.where(there, inner, np.where(tagged, guessed, ethertype))


def _decode_ip(
    gather: _Gather, frames: StructuredArray, is_ip: npt.NDArray[np.bool_], addresses: Sequence[int]
) -> None:
    """IPv4 (RFC 791), UDP (RFC 768), TCP (RFC 9293)."""
    at = _SLL2_BYTES
    header = (gather.u8(at) & 0x0F) * 4
    total = gather.u8(at + 2, 2)
    # A super-frame beyond 64 KiB has length 0 in its header: then what was captured tells.
    total = np.where(total == 0, gather.host(12) - at, total)
    protocol = gather.u8(at + 9)
    first_fragment = gather.u8(at + 6, 2) & 0x1FFF == 0
    frames["protocol"] = np.where(is_ip, protocol, 0)
    frames["ip_id"] = np.where(is_ip, gather.u8(at + 4, 2), 0)
    source, target = gather.u8(at + 12, 4), gather.u8(at + 16, 4)
    frames["src_ip"] = np.where(is_ip, source, 0)
    frames["dst_ip"] = np.where(is_ip, target, 0)
    frames["dst_is_guest"] = is_ip & _is_one_of(target, addresses)
    transport = at + header
    is_tcp = is_ip & first_fragment & (protocol == PROTOCOL_TCP)
    is_udp = is_ip & first_fragment & (protocol == PROTOCOL_UDP)
    has_ports = is_tcp | is_udp
    frames["src_port"] = np.where(has_ports, gather.u8(transport, 2), 0)
    frames["dst_port"] = np.where(has_ports, gather.u8(transport + 2, 2), 0)
    frames["seq"] = np.where(is_tcp, gather.u8(transport + 4, 4), 0)
    frames["ack"] = np.where(is_tcp, gather.u8(transport + 8, 4), 0)
    frames["flags"] = np.where(is_tcp, gather.u8(transport + 13), 0)
    tcp_header = (gather.u8(transport + 12) >> 4) * 4
    payload = total - header - np.where(is_tcp, tcp_header, 8)
    frames["payload"] = np.where(has_ports, np.maximum(payload, 0), 0)


def _decode_ipv6(
    gather: _Gather, frames: StructuredArray, is_ipv6: npt.NDArray[np.bool_], addresses: Sequence[int]
) -> None:
    """IPv6 without extension headers (RFC 8200), UDP, TCP. Neighbour discovery is not counted as IP, as ARP is not."""
    at, transport = _SLL2_BYTES, _SLL2_BYTES + 40
    protocol = gather.u8(at + 6)
    is_data = is_ipv6 & (protocol != _ICMPV6)
    frames["kind"][is_data] = KIND_IP
    frames["protocol"][is_data] = protocol[is_data]
    for name, offset in (("src_ip", 8), ("dst_ip", 24)):
        words = [gather.u8(at + offset + 4 * number, 4) for number in range(4)]
        key = (words[0] ^ words[1] ^ words[2] ^ words[3]) & 0x0FFFFFFF | IPV6_KEY
        frames[name][is_ipv6] = key[is_ipv6]
    frames["dst_is_guest"] |= is_ipv6 & _is_one_of(frames["dst_ip"].astype(np.int64), addresses)
    is_tcp, is_udp = is_data & (protocol == PROTOCOL_TCP), is_data & (protocol == PROTOCOL_UDP)
    has_ports = is_tcp | is_udp
    length = gather.u8(at + 4, 2)
    length = np.where(length == 0, gather.host(12) - transport, length)  # a super-frame beyond 64 KiB
    header = np.where(is_tcp, (gather.u8(transport + 12) >> 4) * 4, 8)
    for name, values, chosen in (
        ("src_port", gather.u8(transport, 2), has_ports),
        ("dst_port", gather.u8(transport + 2, 2), has_ports),
        ("seq", gather.u8(transport + 4, 4), is_tcp),
        ("seq", gather.u8(transport + 8, 4), is_udp),
        ("ack", gather.u8(transport + 8, 4), is_tcp),
        ("flags", gather.u8(transport + 13), is_tcp),
        ("payload", np.maximum(length - header, 0), has_ports),
    ):
        frames[name][chosen] = values[chosen]


def _decode_arp(gather: _Gather, frames: StructuredArray, addresses: Sequence[int], macs: Sequence[int]) -> None:
    """ARP (RFC 826) and RARP (RFC 903) for IPv4 over Ethernet.

    An announcement is a gratuitous ARP (RFC 5227: sender's and target's address are the same) for a guest's address, or
    a RARP request whose sender is a guest's MAC address (what QEMU sends).
    """
    at = _SLL2_BYTES
    is_arp, is_rarp = frames["kind"] == KIND_ARP, frames["kind"] == KIND_RARP
    either = is_arp | is_rarp
    opcode = gather.u8(at + 6, 2)
    sender_mac, sender, target = gather.u8(at + 8, 6), gather.u8(at + 14, 4), gather.u8(at + 24, 4)
    frames["src_ip"] = np.where(either, sender, frames["src_ip"])
    frames["dst_ip"] = np.where(either, target, frames["dst_ip"])
    gratuitous = is_arp & (sender == target) & _is_one_of(sender, addresses)
    reverse = is_rarp & (opcode == 3) & _is_one_of(sender_mac, macs)
    frames["is_announce"] = gratuitous | reverse
    frames["dst_is_guest"] |= is_arp & ~gratuitous & _is_one_of(target, addresses)


def _decode_advertisement(
    gather: _Gather, frames: StructuredArray, is_ipv6: npt.NDArray[np.bool_], macs: Sequence[int]
) -> None:
    """An IPv6 neighbour advertisement (RFC 4861 section 4.4) from a guest's MAC address announces it, too."""
    at = _SLL2_BYTES
    advertises = is_ipv6 & (gather.u8(at + 6) == _ICMPV6) & (gather.u8(at + 40) == _NEIGHBOUR_ADVERTISEMENT)
    frames["is_announce"] |= advertises & _is_one_of(frames["src_mac"].astype(np.int64), macs)
