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


def test_schedules():
    assert announce.offsets_ns("qemu") == [0, 50_000_000, 200_000_000, 450_000_000, 800_000_000]
    assert announce.offsets_ns("once") == [0]
    assert announce.offsets_ns("none") == []
    with pytest.raises(ValueError, match="'often'"):
        announce.offsets_ns("often")
