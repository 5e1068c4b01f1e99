"""The frame watcher's parser, held against frames that scapy built, and captures against scapy's reader."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgReader

from bench.errors import ProbeError
from bench.migration import announce
from bench.probe.capture import pcap_to_pcapng
from bench.probe.frames import Frames
from bench.probe.pcap import SNAP_BYTES, parse_frames
from bench.records import (
    DIRECTION_IN,
    DIRECTION_OUT,
    KIND_ARP,
    KIND_IP,
    KIND_OTHER,
    KIND_RARP,
    StructuredArray,
    ip_to_int,
    mac_to_int,
)

MAC = "52:54:00:00:00:01"
GUEST, CLIENT = "10.0.1.1", "10.0.0.9"
HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, SNAP_BYTES, 276)


def record(
    ethertype: int, body: bytes, *, t: tuple[int, int] = (5, 7), index: int = 3, out: bool = False, mac: str = MAC
) -> bytes:
    sll2 = struct.pack(">HHIHBB", ethertype, 0, index, 1, 4 if out else 0, 6) + bytes.fromhex(mac.replace(":", ""))
    data = sll2 + b"\0\0" + body
    return struct.pack("=IIII", *t, min(len(data), SNAP_BYTES), len(data)) + data[:SNAP_BYTES]


def parse(*records: bytes) -> tuple[StructuredArray, list[int]]:
    frames, indexes = parse_frames(HEADER + b"".join(records), [GUEST], [MAC])
    return frames, indexes.tolist()


def ip(packet: Packet) -> bytes:
    return bytes(packet)


def test_tcp_and_udp() -> None:
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    tcp = IP(src=CLIENT, dst=GUEST, id=77) / TCP(
        sport=40000, dport=80, seq=2**32 - 5, ack=9, flags="PA", options=options
    )
    udp = IP(src=GUEST, dst=CLIENT, id=78, options=[]) / UDP(sport=7, dport=50000)
    frames, indexes = parse(
        record(0x0800, ip(tcp / Raw(b"x" * 1000)), t=(1, 999_999_999)),
        record(0x0800, ip(udp / Raw(b"y" * 48)), index=65_536, out=True),
    )
    assert indexes == [3, 65_536]
    first, second = frames
    assert first["t_ns"] == 1_999_999_999
    assert first["direction"] == DIRECTION_IN
    assert (first["kind"], first["protocol"], first["flags"]) == (KIND_IP, 6, 0x18)
    assert (first["src_ip"], first["dst_ip"]) == (ip_to_int(CLIENT), ip_to_int(GUEST))
    assert (first["src_port"], first["dst_port"], first["ip_id"]) == (40000, 80, 77)
    assert (first["seq"], first["ack"], first["payload"]) == (2**32 - 5, 9, 1000)
    assert first["dst_is_guest"]
    assert first["src_mac"] == mac_to_int(MAC)
    assert second["direction"] == DIRECTION_OUT
    assert (second["protocol"], second["src_port"], second["payload"], second["ip_id"]) == (17, 7, 48, 78)
    assert not second["dst_is_guest"]


def test_super_frames_beyond_the_length_field() -> None:
    packet = bytearray(ip(IP(src=CLIENT, dst=GUEST) / TCP(sport=1, dport=2) / Raw(b"z" * 200)))
    packet[2:4] = b"\0\0"
    frames, _ = parse(record(0x0800, bytes(packet)))
    assert frames["payload"].tolist() == [200]


def test_ip_options_fragments_and_other_protocols() -> None:
    with_options = (
        IP(src=CLIENT, dst=GUEST, options=[IPOption_NOP()] * 4) / TCP(sport=9, dport=10, seq=11) / Raw(b"abc")
    )
    fragment = IP(src=CLIENT, dst=GUEST, frag=100, proto=6) / Raw(b"\x11" * 40)
    frames, _ = parse(
        record(0x0800, ip(with_options)),
        record(0x0800, ip(fragment)),
        record(0x0800, ip(IP(src=CLIENT, dst=GUEST) / ICMP())),
        record(0x86DD, b"\x60" + bytes(5) + b"\x3a" + bytes(54)),  # ICMPv6: neighbour discovery, as ARP
    )
    assert (frames[0]["dst_port"], frames[0]["seq"], frames[0]["payload"]) == (10, 11, 3)
    assert (frames[1]["src_port"], frames[1]["seq"], frames[1]["payload"]) == (0, 0, 0)
    assert (frames[2]["protocol"], frames[2]["src_port"]) == (1, 0)
    assert frames["kind"].tolist() == [KIND_IP, KIND_IP, KIND_IP, KIND_OTHER]


def test_tags_that_were_not_taken_off_are_looked_through() -> None:
    packet = ip(IP(src=CLIENT, dst=GUEST) / UDP(sport=5, dport=7) / Raw(b"z" * 40))
    frames, _ = parse(record(0x8100, b"\x00\x0a\x08\x00" + packet), record(0x8100, packet))
    assert frames["kind"].tolist() == [KIND_IP, KIND_IP]
    assert frames["dst_port"].tolist() == [7, 7]
    assert frames["dst_is_guest"].tolist() == [True, True]


def test_ipv6_is_ip_by_keys_of_its_addresses() -> None:
    there, back = IPv6(src="fd00::2", dst="fd00::1"), IPv6(src="fd00::1", dst="fd00::2")
    data = (
        record(0x86DD, bytes(there / UDP(sport=5, dport=7) / Raw(bytes([1, 2, 3, 4]) + bytes(60)))),
        record(0x86DD, bytes(back / TCP(sport=80, dport=9, seq=11, ack=12, flags="PA") / Raw(b"z" * 100))),
        record(0x86DD, bytes(there / ICMPv6ND_NA(tgt="fd00::2"))),
    )
    frames, _ = parse_frames(HEADER + b"".join(data), [GUEST, "fd00::1"], [MAC])
    guest, client = ip_to_int("fd00::1"), ip_to_int("fd00::2")
    assert guest != client
    assert guest >> 28 == client >> 28 == 15  # no address that IPv4 has
    assert frames["kind"].tolist() == [KIND_IP, KIND_IP, KIND_OTHER]
    assert frames["dst_is_guest"].tolist() == [True, False, True]
    assert frames["src_ip"].tolist() == [client, guest, client]
    assert frames["dst_port"].tolist() == [7, 9, 0]
    assert frames["payload"].tolist() == [64, 100, 0]
    assert (frames[0]["seq"], frames[1]["seq"], frames[1]["ack"]) == (0x01020304, 11, 12)


def test_announcements() -> None:
    def arp(**fields: object) -> bytes:
        return bytes(ARP(hwsrc=MAC, **fields)) + bytes(18)

    frames, _ = parse(
        record(0x0806, arp(op=1, psrc=GUEST, pdst=GUEST)),
        record(0x0806, arp(op=2, psrc=GUEST, pdst=GUEST)),
        record(0x8035, arp(op=3, psrc="0.0.0.0", pdst="0.0.0.0", hwdst=MAC)),
        record(0x0806, arp(op=1, psrc=CLIENT, pdst=GUEST)),  # somebody asks for the guest
        record(0x0806, arp(op=2, psrc=GUEST, pdst=CLIENT)),  # the guest answers
        record(0x8035, bytes(ARP(op=3, hwsrc="02:00:00:00:00:09", psrc="0.0.0.0", pdst="0.0.0.0"))),
        record(0x0806, arp(op=1, psrc=CLIENT, pdst=CLIENT)),
    )
    assert frames["is_announce"].tolist() == [True, True, True, False, False, False, False]
    assert frames["dst_is_guest"].tolist() == [False, False, False, True, False, False, False]
    assert set(frames["kind"]) == {KIND_ARP, KIND_RARP}
    assert frames["src_ip"][0] == frames["dst_ip"][0] == ip_to_int(GUEST)


def test_a_file_that_was_cut_off() -> None:
    whole = record(0x0800, ip(IP(src=CLIENT, dst=GUEST) / UDP(sport=1, dport=7) / Raw(b"a" * 64)))
    for length in range(len(whole)):
        frames, _ = parse(whole, whole[:length])
        assert len(frames) == 1
    short = struct.pack("=IIII", 0, 0, 4, 4) + b"\x08\0\0\0"
    frames, indexes = parse(short)
    assert (len(frames), indexes) == (1, [0])


def test_broken_files_are_refused() -> None:
    for data in (b"", HEADER[:10], b"\xd4\xc3\xb2\xa1" + HEADER[4:], HEADER[:20] + struct.pack("=I", 1)):
        with pytest.raises(ProbeError):
            parse_frames(data, [GUEST], [MAC])
    with pytest.raises(ProbeError, match="broken"):
        parse_frames(HEADER + struct.pack("=IIII", 0, 0, 1 << 30, 0), [GUEST], [MAC])
    assert len(parse_frames(HEADER, [GUEST], [MAC])[0]) == 0


def test_frames_of_an_interface() -> None:
    records, _ = parse(record(0x0806, bytes(28)), record(0x0806, bytes(28), out=True), record(0x0806, bytes(28)))
    records["interface"] = [0, 0, 1]
    frames = Frames(records, ("s1-eth1", "s1-eth2"))
    assert len(frames.at("s1-eth1")) == 2
    assert len(frames.at("s1-eth1", DIRECTION_OUT)) == 1
    assert len(frames.at("s1-eth2")) == 1
    assert len(frames.at("nowhere")) == 0


def test_pcapng_holds_the_same_frames(tmp_path: Path) -> None:
    packets = [bytes(Ether() / IP(dst=GUEST) / UDP(dport=7) / Raw(bytes(range(size)))) for size in (0, 1, 2, 3, 255)]
    source = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    for number, packet in enumerate(packets):
        source += struct.pack("=IIII", 1_700_000_000, 123_456_789 + number, len(packet), len(packet) + 9) + packet
    path = tmp_path / "g1@h1.pcapng"
    with path.open("wb") as target:
        assert pcap_to_pcapng(io.BytesIO(source + struct.pack("=IIII", 0, 0, 50, 50)), target, "g1@h1") == len(packets)
    with PcapNgReader(str(path)) as reader:
        read = list(reader)
    assert [bytes(packet) for packet in read] == packets
    assert [packet.wirelen for packet in read] == [len(packet) + 9 for packet in packets]
    stamps = np.array([int(packet.time * 10**9) for packet in read])
    assert stamps.tolist() == [1_700_000_000_123_456_789 + number for number in range(len(packets))]
    assert {packet.sniffed_on for packet in read} == {"g1@h1"}
    with pytest.raises(ProbeError):
        pcap_to_pcapng(io.BytesIO(b"\0" * 24), io.BytesIO(), "x")


def test_a_neighbour_advertisement_of_the_guest_announces_it() -> None:
    body = bytes.fromhex(announce.frames(["na"], MAC, GUEST)[0]["hex"])[14:]
    solicitation = body[:40] + bytes([135]) + body[41:]
    frames, _ = parse(record(0x86DD, body), record(0x86DD, body, mac="02:00:00:00:00:09"), record(0x86DD, solicitation))
    assert frames["is_announce"].tolist() == [True, False, False]
    assert set(frames["kind"].tolist()) == {KIND_OTHER}
