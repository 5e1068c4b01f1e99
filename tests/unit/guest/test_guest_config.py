"""A guest is configured by what is complete and right, and refuses the rest by name."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.guest.announcer import Announcement
from bench.guest.config import GuestConfig

RIGHT: dict[str, Any] = {
    "name": "g1",
    "host": "h1",
    "memory_bytes": 16 << 20,
    "vcpus": 2,
    "store_bytes": 1 << 20,
    "content": {"zero": 1.0},
    "image": None,
    "seed": 1,
    "mac": "02:00:00:00:01:01",
    "address": "10.0.1.1/16",
    "bridge": "br0",
    "workload": {"pattern": "idle"},
    "skeleton": False,
    "lease": {"path": "/run/lease", "me": "h1"},
}


def test_what_is_right_is_taken() -> None:
    config = GuestConfig.from_json({**RIGHT, "mac": "02:00:00:00:AB:01"})
    assert (config.ip, config.address, config.mac) == ("10.0.1.1", "10.0.1.1/16", "02:00:00:00:ab:01")
    assert config.lease_me == "h1"


def test_further_cards() -> None:
    card = {"mac": "02:00:00:01:01:01", "address": "10.20.0.1/24", "address6": "fd00:20::1/64", "vlan": 20}
    config = GuestConfig.from_json({**RIGHT, "vlan": 10, "cards": [card]})
    assert [(made.mac, made.vlan) for made in config.cards] == [(RIGHT["mac"], 10), (card["mac"], 20)]
    assert config.ips == ("10.0.1.1", "10.20.0.1", "fd00:20::1")
    assert [config.card_of(ip) for ip in config.ips] == ["eth0", "eth1", "eth1"]
    assert GuestConfig.from_json(RIGHT).ips == ("10.0.1.1",)


@pytest.mark.parametrize(
    "card",
    [
        {"mac": RIGHT["mac"], "address": "10.20.0.1/24"},
        {"mac": "02:00:00:01:01:01"},
        {"mac": "02:00:00:01:01:01", "address": "10.20.0.1/24", "vlan": 4095},
        {"mac": "02:00:00:01:01:01", "address": "10.20.0.1/24", "vlan": True},
        {"mac": "02:00:00:01:01:01", "address": "10.20.0.1/24", "address6": "nonsense"},
    ],
)
def test_a_wrong_card_is_refused(card: dict[str, Any]) -> None:
    with pytest.raises(GuestError):
        GuestConfig.from_json({**RIGHT, "cards": [card]})


@pytest.mark.parametrize("key", sorted(set(RIGHT) - {"image"}))
def test_what_is_missing_is_named(key: str) -> None:
    with pytest.raises(GuestError, match=key):
        GuestConfig.from_json({name: value for name, value in RIGHT.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_bytes", 4095),
        ("memory_bytes", True),
        ("memory_bytes", (16 << 20) + 1),
        ("store_bytes", 16 << 20),
        ("store_bytes", 0),
        ("vcpus", 0),
        ("vcpus", 1000),
        ("mac", "03:00:00:00:01:01"),
        ("mac", "02:00"),
        ("address", "10.0.1.1/99"),
        ("address", "fe80::1/64"),
        ("name", "../x"),
        ("host", ""),
        ("lease", {}),
        ("content", 3),
        ("workload", None),
    ],
)
def test_what_is_wrong_is_refused(key: str, value: object) -> None:
    with pytest.raises(GuestError):
        GuestConfig.from_json({**RIGHT, key: value})


FRAME = {"kind": "rarp", "hex": "ff" * 60}


def test_an_announcement_is_frames_and_times() -> None:
    made = Announcement.from_json({"frames": [FRAME], "offsets_ns": [0, 5]})
    assert made == Announcement((("rarp", b"\xff" * 60),), (0, 5))
    assert Announcement.from_json(None) == Announcement()


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {},
        {"frames": [FRAME]},
        {"frames": [{"kind": "x", "hex": "0g"}], "offsets_ns": [0]},
        {"frames": [{"kind": "x", "hex": "00" * 13}], "offsets_ns": [0]},
        {"frames": [{"kind": "x", "hex": "00" * 1515}], "offsets_ns": [0]},
        {"frames": [FRAME] * 33, "offsets_ns": [0]},
        {"frames": [FRAME], "offsets_ns": [0] * 129},
        {"frames": [FRAME], "offsets_ns": [5, 0]},
        {"frames": [FRAME], "offsets_ns": [-1]},
        {"frames": [FRAME], "offsets_ns": ["0"]},
        {"frames": [FRAME], "offsets_ns": 3},
    ],
)
def test_a_wrong_announcement_is_refused(raw: object) -> None:
    with pytest.raises(GuestError):
        Announcement.from_json(raw)


@settings(max_examples=100, deadline=None)
@given(
    raw=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["frames", "offsets_ns", "kind", "hex"]), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_announcement_is_taken_or_refused(raw: object) -> None:
    with contextlib.suppress(GuestError):
        Announcement.from_json(raw)
