from __future__ import annotations

import pytest
from fake_flow_table import arp, data_frame, rarp
from hypothesis import given
from hypothesis import strategies as st

from controllers import packets

GUEST = "52:54:00:00:00:01"
OTHER = "52:54:00:00:00:02"


@pytest.mark.parametrize(
    ("frame", "kind", "ip"),
    [
        (rarp(GUEST), "rarp", ""),
        (rarp(GUEST, bytes.fromhex("81000064")), "rarp", ""),
        (rarp(GUEST, bytes.fromhex("88a8000181000064")), "rarp", ""),
        (arp(GUEST, "10.0.1.1", "10.0.1.1"), "garp", "10.0.1.1"),
        (arp(GUEST, "10.0.1.1", "10.0.1.1", opcode=2), "garp-reply", "10.0.1.1"),
    ],
)
def test_announcements_are_recognised(frame: bytes, kind: str, ip: str) -> None:
    head = packets.parse(frame)
    assert head is not None
    assert head.announcement == packets.Announcement(kind, GUEST, ip)
    assert head.src == GUEST


@pytest.mark.parametrize(
    "frame",
    [
        arp(GUEST, "10.0.1.1", "10.0.0.9"),  # an ordinary request
        arp(GUEST, "10.0.1.1", "10.0.0.9", opcode=2),
        arp(GUEST, "0.0.0.0", "10.0.1.1"),  # RFC 5227 probe: "may I have it?"
        arp(GUEST, "0.0.0.0", "0.0.0.0"),
        arp(GUEST, "10.0.1.1", "10.0.1.1", src=OTHER),  # speaks for another
        arp("01:00:5e:00:00:01", "10.0.1.1", "10.0.1.1"),  # no machine's address
        arp(GUEST, "10.0.1.1", "10.0.1.1", opcode=9),
        rarp(GUEST)[:41],  # cut short
        rarp(GUEST)[:21] + b"\x04" + rarp(GUEST)[22:],  # RARP reply
        rarp(GUEST)[:32] + b"\x99" + rarp(GUEST)[33:],  # asks for another machine
        rarp(GUEST)[:18] + b"\x08" + rarp(GUEST)[19:],  # addresses of another length
        data_frame(GUEST, OTHER),
    ],
)
def test_other_frames_announce_nothing(frame: bytes) -> None:
    head = packets.parse(frame)
    assert head is not None
    assert head.announcement is None


def test_a_tag_without_a_type_behind_it_is_kept_as_the_type() -> None:
    head = packets.parse(rarp(GUEST, bytes.fromhex("81000064"))[:14])
    assert head is not None
    assert head.ethertype == 0x8100


@given(st.binary(max_size=80))
def test_any_bytes_are_a_frame_or_none(data: bytes) -> None:
    head = packets.parse(data)
    assert (head is None) == (len(data) < 14)


@given(st.binary(max_size=46), st.sampled_from([b"\x08\x06", b"\x80\x35", b"\x81\x00\x00\x01\x08\x06"]))
def test_any_body_is_safe_and_announces_its_own_source_only(body: bytes, kind: bytes) -> None:
    head = packets.parse(b"\xff" * 6 + bytes.fromhex("525400000001") + kind + body)
    assert head is not None
    assert head.announcement is None or head.announcement.mac == GUEST


@pytest.mark.parametrize(
    ("mac", "unicast"),
    [(GUEST, True), ("00:00:00:00:00:00", False), (packets.BROADCAST, False), ("01:00:5e:00:00:01", False)],
)
def test_unicast(mac: str, unicast: bool) -> None:
    assert packets.is_unicast(mac) is unicast
