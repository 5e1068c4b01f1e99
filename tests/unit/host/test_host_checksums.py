"""Frames in packet-outs get whole checksums; everything else passes as it is, however it is cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bench.host.checksums import Completing, completed

ETHER = Ether(src="52:54:00:00:00:01", dst="52:54:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
FRAMES = [
    ETHER / V4 / TCP(sport=1, dport=2, flags="S"),
    ETHER / V4 / UDP(sport=1, dport=2) / Raw(b"odd"),
    ETHER / V6 / TCP(sport=1, dport=2) / Raw(b"more"),
    ETHER / V6 / UDP(sport=1, dport=2) / Raw(b"more"),
    ETHER / Dot1Q(vlan=10) / V4 / TCP(sport=1, dport=2),
]


def half(frame: Packet) -> tuple[bytes, bytes]:
    """The frame with half a checksum, and as it should be."""
    right = bytes(frame)
    wrong = frame.copy()
    wrong[TCP if wrong.haslayer(TCP) else UDP].chksum = 0x1234
    return bytes(wrong), right


def packet_out(frame: bytes, version: int = 4, actions: bytes = bytes(16)) -> bytes:
    body = struct.pack("!IH", 0xFFFFFFFF, 3) if version == 1 else struct.pack("!II", 0xFFFFFFFF, 3)
    body += struct.pack("!H", len(actions)) + (b"" if version == 1 else bytes(6)) + actions + frame
    return struct.pack("!BBHI", version, 13, 8 + len(body), 7) + body


@pytest.mark.parametrize("frame", FRAMES, ids=[frame.summary() for frame in FRAMES])
def test_a_checksum_is_completed(frame: Packet) -> None:
    wrong, right = half(frame)
    assert wrong != right
    assert completed(wrong) == right
    assert completed(right) == right
    assert completed(wrong + bytes(6)) == right + bytes(6)  # padded to the least length


@pytest.mark.parametrize("frame", [ETHER / ARP(), ETHER / V4 / ICMP(), ETHER / IP(frag=5) / Raw(b"x" * 40)])
def test_what_has_none_stays(frame: Packet) -> None:
    assert completed(bytes(frame)) == bytes(frame)


@given(st.binary(max_size=80))
def test_noise_and_what_is_cut_short_stay_as_long_as_they_are(noise: bytes) -> None:
    assert len(completed(noise)) == len(noise)
    whole = half(FRAMES[0])[0]
    for end in range(len(whole)):
        assert completed(whole[:end]) == whole[:end]


@pytest.mark.parametrize("version", [1, 4])
@given(cuts=st.lists(st.integers(1, 200), max_size=5))
def test_messages_are_found_however_they_come(version: int, cuts: list[int]) -> None:
    wrong, right = half(FRAMES[0])
    hello = struct.pack("!BBHI", version, 0, 8, 1)
    sent = hello + packet_out(wrong, version) + hello
    completing, got = Completing(), b""
    rest = sent
    for cut in cuts:
        got += completing.feed(rest[:cut])
        rest = rest[cut:]
    got += completing.feed(rest)
    assert got == hello + packet_out(right, version) + hello


def test_what_is_no_openflow_passes() -> None:
    assert Completing().feed(b"\x16\x03\x01\x00\x05hello") == b"\x16\x03\x01\x00\x05hello"
    beyond = packet_out(half(FRAMES[0])[0], version=6)
    assert Completing().feed(beyond) == beyond
