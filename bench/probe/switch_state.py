"""What a switch's tables say of a guest's address, and what tells when they change: the parsers. Pure.

- Open vSwitch's flow tables: text that ``ovs-ofctl monitor BRIDGE watch:`` prints as the switch pushes it (OpenFlow's
  flow monitor; ovs-ofctl(8)): ``event=ADDED table=1 ... dl_dst=MAC ... actions=output:3``.
- Open vSwitch's FDB: the answer to ``fdb/show`` (ovs-vswitchd(8)), which has to be asked for: nothing pushes it.
- A Linux bridge's FDB, and neighbour caches: RTM_NEWNEIGH and RTM_DELNEIGH (rtnetlink(7), linux/neighbour.h).
- Connection tracking: NFNL_SUBSYS_CTNETLINK messages (linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_EVENT: Final = re.compile(r"^ ?event=(\w+)")
_DESTINATION: Final = re.compile(r"\bdl_dst=([0-9a-f:]{17})\b")
_OUTPUT: Final = re.compile(r"output:\"?([\w.-]+)\"?")
_FDB_LINE: Final = re.compile(r"^\s*(\S+)\s+(\d+)\s+([0-9a-f:]{17})\s+(\d+|static)", re.MULTILINE)

_HEADER: Final = struct.Struct("=IHHII")
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")
_NFGEN: Final = struct.Struct("=BBH")
_NEWNEIGH, _DELNEIGH = 28, 29
_AF_BRIDGE: Final = 7
_IP_BYTES: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
_NDA_DST, _NDA_LLADDR, _NDA_VLAN = 1, 2, 5
_CTNETLINK: Final = 1
_CTA_TUPLE_ORIG, _CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 1, 2
_CTA_IP_SRC, _CTA_IP_DST, _CTA_PROTO_NUM, _CTA_PROTO_SRC, _CTA_PROTO_DST = 1, 2, 1, 2, 3
_NLM_F_CREATE, _NLM_F_EXCL = 0x400, 0x200

NUD_NAMES: Final = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
    0: "none",
}


@dataclass(frozen=True, slots=True)
class FlowChange:
    """A flow for a destination address was added, modified or deleted; *outputs* are the ports it sends to."""

    event: str
    mac: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of a neighbour cache or of a bridge's FDB; *gone*: it was removed.

    :param interface: the index of the interface, of an FDB the port's. :param ip: empty for an FDB.
    """

    bridge: bool
    interface: int
    mac: str
    ip: str
    state: str
    vlan: int
    gone: bool


@dataclass(frozen=True, slots=True)
class Tracked:
    """A connection as conntrack tracks it: ``new``, ``update`` or ``destroy``."""

    event: str
    protocol: int
    source: tuple[str, int]
    target: tuple[str, int]


def flow_change(line: str) -> FlowChange | None:
    """What one line of ``ovs-ofctl monitor`` says; None when it is about no single destination."""
    event, destination = _EVENT.match(line), _DESTINATION.search(line)
    if event is None or destination is None:
        return None
    return FlowChange(event[1].lower(), destination[1], tuple(_OUTPUT.findall(line)))


def fdb_entries(text: str) -> dict[tuple[str, int], str]:
    """(address, VLAN) -> port number, as ``fdb/show`` prints it."""
    return {(mac, int(vlan)): port for port, vlan, mac, _age in _FDB_LINE.findall(text)}


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, payload) of each netlink message."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _sequence, _pid = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def neighbours(data: bytes) -> list[Neighbour]:
    """What a datagram of the group RTNLGRP_NEIGH says; entries without a link-layer address are left out."""
    found = []
    for kind, _flags, payload in _messages(data):
        if kind not in (_NEWNEIGH, _DELNEIGH) or len(payload) < _NEIGHBOUR.size:
            continue
        family, interface, state, _entry_flags, _type = _NEIGHBOUR.unpack_from(payload)
        values = _attributes(payload[_NEIGHBOUR.size :])
        mac, ip = values.get(_NDA_LLADDR, b""), values.get(_NDA_DST, b"")
        known = family in _IP_BYTES and len(ip) == _IP_BYTES[family]
        if len(mac) != 6 and not known:
            continue
        found.append(
            Neighbour(
                bridge=family == _AF_BRIDGE,
                interface=interface,
                mac=mac.hex(":") if len(mac) == 6 else "",
                ip=socket.inet_ntop(family, ip) if known else "",
                state=NUD_NAMES.get(state & 0xFF, f"{state:#x}"),
                vlan=int.from_bytes(values.get(_NDA_VLAN, b"\0\0"), "little"),
                gone=kind == _DELNEIGH,
            )
        )
    return found


def tracked(data: bytes) -> list[Tracked]:
    """What a datagram of conntrack's groups says of IPv4 connections."""
    found = []
    for kind, flags, payload in _messages(data):
        if kind >> 8 != _CTNETLINK or len(payload) < _NFGEN.size or payload[0] != socket.AF_INET:
            continue
        original = _attributes(_attributes(payload[_NFGEN.size :]).get(_CTA_TUPLE_ORIG, b""))
        addresses, proto = (
            _attributes(original.get(_CTA_TUPLE_IP, b"")),
            _attributes(original.get(_CTA_TUPLE_PROTO, b"")),
        )
        source, target = addresses.get(_CTA_IP_SRC, b""), addresses.get(_CTA_IP_DST, b"")
        if len(source) != 4 or len(target) != 4:
            continue
        new = flags & (_NLM_F_CREATE | _NLM_F_EXCL)
        found.append(
            Tracked(
                event="destroy" if kind & 0xFF == 2 else "new" if new else "update",
                protocol=int.from_bytes(proto.get(_CTA_PROTO_NUM, b"\0"), "big"),
                source=(socket.inet_ntoa(source), int.from_bytes(proto.get(_CTA_PROTO_SRC, b"\0"), "big")),
                target=(socket.inet_ntoa(target), int.from_bytes(proto.get(_CTA_PROTO_DST, b"\0"), "big")),
            )
        )
    return found
