"""What switches, kernels and conntrack say, byte by byte and line by line."""

from __future__ import annotations

import socket
import struct

from bench.probe.switch_state import fdb_entries, flow_change, neighbours, tracked

MAC = "52:54:00:00:00:01"


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def test_the_flow_monitors_lines() -> None:
    added = flow_change(f" event=ADDED table=1 cookie=0 dl_dst={MAC} actions=output:3")
    assert added is not None
    assert (added.event, added.mac, added.outputs) == ("added", MAC, ("3",))
    both = flow_change(f' event=MODIFIED table=1 dl_dst={MAC} actions=output:2,output:"s1-eth4"')
    assert both is not None
    assert both.outputs == ("2", "s1-eth4")
    gone = flow_change(f" event=DELETED reason=delete table=1 dl_dst={MAC} actions=output:3")
    assert gone is not None
    assert gone.event == "deleted"
    for other in ("ONFST_FLOW_MONITOR reply (OF1.3) (xid=0x0):", " event=ADDED table=1 actions=FLOOD", "", "event"):
        assert flow_change(other) is None


def test_the_fdb_of_open_vswitch() -> None:
    text = f" port  VLAN  MAC                Age\n    3     0  {MAC}    0\n    1    10  02:00:00:00:00:07  299\n"
    assert fdb_entries(text) == {(MAC, 0): "3", ("02:00:00:00:00:07", 10): "1"}
    assert fdb_entries("") == {}


def test_a_bridge_and_a_neighbour_cache() -> None:
    raw = bytes.fromhex(MAC.replace(":", ""))
    bridge = struct.pack("=BxxxiHBB", 7, 5, 0x02, 0, 0) + attribute(2, raw) + attribute(5, struct.pack("=H", 10))
    cache = struct.pack("=BxxxiHBB", socket.AF_INET, 2, 0x04, 0, 0) + attribute(1, bytes([10, 0, 1, 1]))
    data = message(28, bridge) + message(29, cache + attribute(2, raw)) + message(20, b"x" * 12)
    fdb, entry = neighbours(data)
    assert (fdb.bridge, fdb.interface, fdb.mac, fdb.vlan, fdb.gone) == (True, 5, MAC, 10, False)
    assert (entry.bridge, entry.ip, entry.mac, entry.state, entry.gone) == (False, "10.0.1.1", MAC, "stale", True)
    assert neighbours(data[:20]) == []
    assert neighbours(b"") == []


def test_a_neighbour_cache_of_ipv6() -> None:
    raw, ip = bytes.fromhex(MAC.replace(":", "")), socket.inet_pton(socket.AF_INET6, "fd00:20::1")
    cache = struct.pack("=BxxxiHBB", socket.AF_INET6, 2, 0x02, 0, 0) + attribute(1, ip) + attribute(2, raw)
    (entry,) = neighbours(message(28, cache))
    assert (entry.ip, entry.mac, entry.state) == ("fd00:20::1", MAC, "reachable")


def test_conntrack() -> None:
    ip = attribute(1, bytes([10, 0, 0, 9])) + attribute(2, bytes([10, 0, 1, 1]))
    proto = attribute(1, b"\x06") + attribute(2, (40000).to_bytes(2, "big")) + attribute(3, (7).to_bytes(2, "big"))
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + attribute(1, attribute(1, ip) + attribute(2, proto))
    data = message(0x100, body, 0x600) + message(0x100, body) + message(0x102, body)
    assert [item.event for item in tracked(data)] == ["new", "update", "destroy"]
    (first, *_rest) = tracked(data)
    assert (first.protocol, first.source, first.target) == (6, ("10.0.0.9", 40000), ("10.0.1.1", 7))
    assert tracked(message(0x100, struct.pack("=BBH", socket.AF_INET6, 0, 0))) == []
    assert tracked(data[:10]) == []
