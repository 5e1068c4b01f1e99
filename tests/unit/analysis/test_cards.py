"""A guest's cards are told apart by their frames and announcements, each with a wave of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.analysis.cards import card_relearning, for_flow
from bench.analysis.flows import Window
from bench.analysis.overall import CardFacts, GuestFacts
from bench.analysis.relearn import relearned_ns
from bench.records import DIRECTION_OUT, FRAME, KIND_IP, StructuredArray, ip_to_int
from bench.timeline import Event, Timeline

MS = 1_000_000
INTERFACES = ("s1-eth1", "s1-eth2")
FIRST = CardFacts("52:54:00:00:00:01", "10.0.1.1", vlan=10)
SECOND = CardFacts("52:54:00:01:00:01", "10.20.0.1", "fd00:20::1", 20)
PLACES: dict[str, Any] = {"ports": {"s1": {"old_port": "s1-eth1", "new_port": "s1-eth2"}}, "distances": {"s1": 0}}


def guest(*cards: CardFacts) -> GuestFacts:
    return GuestFacts("g1", FIRST.mac, FIRST.address, 1 << 24, "h1", "h2", cards)


def frames(*rows: tuple[int, str, str]) -> StructuredArray:
    """(ms, interface, destination) of frames that leave."""
    made = np.zeros(len(rows), FRAME)
    for number, (at_ms, interface, destination) in enumerate(rows):
        made[number]["t_ns"] = at_ms * MS
        made[number]["interface"] = INTERFACES.index(interface)
        made[number]["direction"] = DIRECTION_OUT
        made[number]["kind"] = KIND_IP
        made[number]["dst_ip"] = ip_to_int(destination)
        made[number]["dst_is_guest"] = True
        made[number]["ip_id"] = number
    return made


EVENTS = Timeline(
    [
        Event(100 * MS, "guest.h2", "resumed"),
        Event(100 * MS, "guest.h2", "port_wired"),
        Event(101 * MS, "guest.h2", "announce_sent", {"kind": "rarp"}),
        Event(102 * MS, "guest.h2", "announce_sent", {"kind": "rarp", "card": 1}),
    ]
)
SEEN = frames(
    (105, "s1-eth1", "10.0.1.1"),
    (106, "s1-eth2", "10.0.1.1"),
    (110, "s1-eth1", "fd00:20::1"),
    (120, "s1-eth1", "10.20.0.1"),
    (121, "s1-eth2", "fd00:20::1"),
)


def test_each_card_has_the_wave_of_its_own_frames() -> None:
    relearn = card_relearning(EVENTS, Window(0, 900 * MS), SEEN, INTERFACES, guest(FIRST, SECOND), **PLACES)
    (first,) = relearn.switches
    assert (first.vlan, first.stable_ns, first.frames_to_old_port) == (10, 106 * MS, 1)
    assert (relearn.announce_ns, relearn.announcements) == (101 * MS, 1)
    (card,) = relearn.cards
    assert (card.card, card.vlan, card.address6, card.announce_ns, card.announcements) == (
        *(1, 20, "fd00:20::1", 102 * MS, 1),
    )
    (second,) = card.switches
    assert (second.vlan, second.stable_ns, second.frames_to_old_port) == (20, 121 * MS, 2)
    assert relearned_ns(for_flow(relearn, 0), ["s1"]) == 106 * MS
    assert relearned_ns(for_flow(relearn, 1), ["s1"]) == 121 * MS


def test_a_guest_with_one_card_is_as_always() -> None:
    relearn = card_relearning(EVENTS, Window(0, 900 * MS), SEEN[:2], INTERFACES, guest(), **PLACES)
    assert relearn.cards == []
    assert [(switch.vlan, switch.stable_ns) for switch in relearn.switches] == [(None, 106 * MS)]
