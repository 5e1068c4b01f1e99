"""LLDP frames (IEEE 802.1AB) by which a controller finds the links between switches. Pure.

::

    01:80:c2:00:00:0e | source | 88cc | chassis id, subtype 7: "dpid:" and 16 hex digits | port id, subtype 7: decimal |
    TTL 120 s | end

A TLV is 7 bits of type and 9 of length, then its value.
"""

from __future__ import annotations

ETHERTYPE = 0x88CC
NEAREST_BRIDGE = "01:80:c2:00:00:0e"
_CHASSIS, _PORT, _TTL = 1, 2, 3
_LOCAL = 7
_PREFIX = b"dpid:"
_MAX_TLVS = 8


def build(dpid: int, port: int) -> bytes:
    """The frame that leaves *port* of the switch *dpid*."""
    source = b"\x02" + (dpid & 0xFFFFFF).to_bytes(3, "big") + (port & 0xFFFF).to_bytes(2, "big")
    body = _tlv(_CHASSIS, bytes([_LOCAL]) + _PREFIX + f"{dpid:016x}".encode())
    body += _tlv(_PORT, bytes([_LOCAL]) + str(port).encode()) + _tlv(_TTL, (120).to_bytes(2, "big")) + _tlv(0, b"")
    frame = bytes.fromhex(NEAREST_BRIDGE.replace(":", "")) + source + ETHERTYPE.to_bytes(2, "big") + body
    return frame.ljust(60, b"\0")


def _tlv(kind: int, value: bytes) -> bytes:
    return (kind << 9 | len(value)).to_bytes(2, "big") + value


def parse(data: bytes) -> tuple[int, int] | None:
    """(dpid, port) that a frame of :func:`build` left; None for any other frame."""
    if len(data) < 16 or int.from_bytes(data[12:14], "big") != ETHERTYPE:
        return None
    dpid = port = None
    at = 14
    for _ in range(_MAX_TLVS):
        head = int.from_bytes(data[at : at + 2], "big")
        kind, length = head >> 9, head & 0x1FF
        value = data[at + 2 : at + 2 + length]
        if kind == 0 or len(value) != length:
            break
        try:
            if kind == _CHASSIS and value[:1] == bytes([_LOCAL]) and value[1:].startswith(_PREFIX):
                dpid = int(value[1 + len(_PREFIX) :], 16)
            elif kind == _PORT and value[:1] == bytes([_LOCAL]):
                port = int(value[1:])
        except ValueError:
            return None
        at += 2 + length
    return None if dpid is None or port is None else (dpid, port)
