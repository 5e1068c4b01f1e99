"""Announce frames byte by byte."""

import pytest

from bench.migration import announce

MAC = "52:54:00:00:00:01"
M = bytes.fromhex("525400000001")
IP = bytes([10, 0, 1, 1])
ALL = b"\xff" * 6
ARP_HEAD = bytes.fromhex("0001 0800 06 04")


def build(kind: str) -> bytes:
    (frame,) = announce.frames([kind], MAC, "10.0.1.1")
    assert frame["kind"] == kind
    return bytes.fromhex(frame["hex"])


def test_rarp_is_what_qemu_sends():
    assert build("rarp") == ALL + M + b"\x80\x35" + ARP_HEAD + b"\0\3" + M + bytes(4) + M + bytes(4) + bytes(18)


def test_garp_is_an_announcement_in_request_form():
    assert build("garp") == ALL + M + b"\x08\x06" + ARP_HEAD + b"\0\1" + M + IP + bytes(6) + IP + bytes(18)


def test_garp_reply_is_the_reply_form():
    assert build("garp-reply") == ALL + M + b"\x08\x06" + ARP_HEAD + b"\0\2" + M + IP + ALL + IP + bytes(18)


def test_frames_come_in_the_order_asked_for():
    assert [frame["kind"] for frame in announce.frames(["garp", "rarp"], MAC, "10.0.1.1")] == ["garp", "rarp"]
    with pytest.raises(ValueError, match="'naan'"):
        announce.frames(["naan"], MAC, "10.0.1.1")


def test_an_advertisement_tells_the_guests_own_ipv6_address():
    """RFC 4861 section 4.4, and the pseudo-header's checksum of RFC 8200 section 8.1."""
    (frame,) = announce.frames(["na"], MAC, "10.0.1.1", address6="fd00:20::1")
    raw = bytes.fromhex(frame["hex"])
    own = bytes.fromhex("fd000020000000000000000000000001")
    assert raw[:14] == bytes.fromhex("333300000001") + M + b"\x86\xdd"
    assert raw[14:22] == bytes.fromhex("60000000 0020 3a ff")
    assert raw[22:38] == own  # the source
    assert raw[38:54] == bytes.fromhex("ff020000000000000000000000000001")
    assert raw[54:56] == bytes([136, 0])
    assert raw[58:62] == bytes.fromhex("20000000")  # override alone
    assert raw[62:78] == own  # the target
    assert raw[78:] == bytes([2, 1]) + M  # its link-layer address
    words = own + raw[38:54] + bytes([0, 0, 0, 32, 0, 0, 0, 58]) + raw[54:]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_every_card_announces_itself():
    planned = announce.sends(["rarp", "garp"], [0, 50])
    both = announce.for_cards(planned, 2, 2)
    assert [(send["at_ns"], send["frame"]) for send in both] == [
        *((0, 0), (0, 2), (0, 1), (0, 3)),
        *((50, 0), (50, 2), (50, 1), (50, 3)),
    ]
    assert announce.for_cards(planned, 2, 1) == planned
    (frame,) = announce.frames(["rarp"], MAC, "10.0.1.1", card=1)
    assert frame["card"] == 1


def test_schedules():
    assert announce.offsets_ns("qemu") == [0, 50_000_000, 200_000_000, 450_000_000, 800_000_000]
    assert announce.offsets_ns("once") == [0]
    assert announce.offsets_ns("none") == []
    with pytest.raises(ValueError, match="'often'"):
        announce.offsets_ns("often")
