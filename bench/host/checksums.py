"""Whole checksums for frames that a controller sends back to a switch (OpenFlow's packet-out). Pure.

A veth pair leaves TCP and UDP checksums to a card that never comes. Open vSwitch's userspace datapath carries the word
that they are missing from port to port, but not through a packet-in to a controller and the packet-out back (seen with
3.1): such a frame arrives with half a checksum and is lost. It is the first of every flow, the SYN above all, which
costs a second each way. So the relay to a controller (:mod:`bench.host.relay`) completes them on their way back.

OpenFlow: header version u8, type u8, length u16, xid u32; packet-out: buffer id u32, in port u16 (1.0) or u32, length
of the actions u16, from 1.1 on 6 bytes of padding, actions, frame (OpenFlow Switch Specification 1.0.0 section 5.3.6,
1.3.5 section A.3.7). Checksums: RFC 1071, 793, 768, 8200.
"""

from __future__ import annotations

import struct
from typing import Final

_HEADER: Final = struct.Struct("!BBHI")
_PACKET_OUT: Final = 13
_LATEST: Final = 6
_VERSIONS: Final = range(1, 6)  # 1.0 to 1.4: from 1.5 on a packet-out has a match
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, (0x8100, 0x88A8)
_TCP, _UDP = 6, 17
_AT: Final = {_TCP: 16, _UDP: 6}
"""Where the checksum is in the transport header."""


class Completing:
    """The bytes of one connection from a controller to a switch, frames in packet-outs with whole checksums."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> bytes:
        """What can be sent on of what came so far. Whatever is no OpenFlow passes unchanged."""
        data = self._left + data
        made: list[bytes] = []
        at = 0
        while at < len(data):
            if not 1 <= data[at] <= _LATEST:
                self._left = b""
                return b"".join((*made, data[at:]))
            if len(data) - at < _HEADER.size:
                break
            version, kind, length, _xid = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                self._left = b""
                return b"".join((*made, data[at:]))
            if len(data) - at < length:
                break
            message = data[at : at + length]
            made.append(_completed_message(message, version) if kind == _PACKET_OUT else message)
            at += length
        self._left = data[at:]
        return b"".join(made)


def _completed_message(message: bytes, version: int) -> bytes:
    if version not in _VERSIONS:
        return message
    fixed, place = (16, 14) if version == 1 else (24, 16)
    if len(message) < fixed:
        return message
    begin = fixed + int.from_bytes(message[place : place + 2], "big")
    return message[:begin] + completed(message[begin:])


def completed(frame: bytes) -> bytes:
    """An Ethernet frame with the checksum of its TCP or UDP; one that is cut short, or holds neither, as it is."""
    at = 12
    kind = int.from_bytes(frame[at : at + 2], "big")
    while kind in _TAGS:
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    at += 2
    if kind == _IPV4:
        return _ipv4(frame, at)
    return _ipv6(frame, at) if kind == _IPV6 else frame


def _ipv4(frame: bytes, at: int) -> bytes:
    if len(frame) < at + 20 or int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:  # a fragment
        return frame
    begin = at + 4 * (frame[at] & 0x0F)
    end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
    return _transport(frame, begin, end, frame[at + 9], frame[at + 12 : at + 20])


def _ipv6(frame: bytes, at: int) -> bytes:
    if len(frame) < at + 40:
        return frame
    begin = at + 40
    end = begin + int.from_bytes(frame[at + 4 : at + 6], "big")
    return _transport(frame, begin, end, frame[at + 6], frame[at + 8 : at + 40])


def _transport(frame: bytes, begin: int, end: int, protocol: int, addresses: bytes) -> bytes:
    place = begin + _AT.get(protocol, 0)
    if protocol not in _AT or place + 2 > end or end > len(frame):
        return frame
    if protocol == _UDP and frame[place : place + 2] == b"\0\0":  # none at all
        return frame
    segment = frame[begin:place] + b"\0\0" + frame[place + 2 : end]
    total = _sum(addresses + struct.pack("!HH", protocol, len(segment)) + segment)
    checksum = ~total & 0xFFFF or (0xFFFF if protocol == _UDP else 0)
    return frame[:place] + checksum.to_bytes(2, "big") + frame[place + 2 :]


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
