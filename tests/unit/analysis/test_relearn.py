from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bench.analysis.flows import Window
from bench.analysis.relearn import analyse_relearning, relearned_ns
from bench.records import DIRECTION_IN, DIRECTION_OUT, FRAME, KIND_ARP, KIND_IP, KIND_RARP, StructuredArray
from bench.result import RelearnResult, SwitchRelearn
from bench.timeline import Event, Timeline

GUEST = "52:54:00:00:00:01"
US, MS = 1_000, 1_000_000
WINDOW = Window(0, 10_000 * MS)
INTERFACES = ("s1-eth1", "s1-eth2", "s1-eth3", "s1-eth4", "s2-eth1")
OLD, NEW, CLIENT, OTHER = INTERFACES[:4]
PORTS: dict[str, dict[str, str | None]] = {"s1": {"old_port": OLD, "new_port": NEW}}
RESUMED, ANNOUNCED = 100 * MS, 101 * MS


def frame(t_ns: int, interface: str, number: int = 0, **fields: Any) -> StructuredArray:
    """A frame for the guest that leaves *interface*, unless *fields* say otherwise; *number* is its identity."""
    record = np.zeros(1, FRAME)
    values = {"direction": DIRECTION_OUT, "kind": KIND_IP, "dst_is_guest": True, "ip_id": number, **fields}
    for name, value in {"t_ns": t_ns, "interface": INTERFACES.index(interface), **values}.items():
        record[name] = value
    return record


def announcement(t_ns: int, interface: str) -> StructuredArray:
    return frame(t_ns, interface, direction=DIRECTION_IN, kind=KIND_RARP, dst_is_guest=False, is_announce=True)


def in_order(frames: Sequence[StructuredArray]) -> StructuredArray:
    records = np.concatenate([np.zeros(0, FRAME), *frames])
    return records[np.argsort(records["t_ns"], kind="stable")]


def timeline(*controller: tuple[int, str, dict[str, Any]], switch: str = "s1") -> Timeline:
    guest = [
        Event(RESUMED, "guest.h2", "resumed"),
        Event(RESUMED + MS // 2, "guest.h2", "port_wired"),
        Event(ANNOUNCED, "guest.h2", "announce_sent", {"kind": "rarp", "n": 0}),
        Event(ANNOUNCED + 50 * MS, "guest.h2", "announce_sent", {"kind": "rarp", "n": 1}),
    ]
    seen = [
        Event(t_ns, "controller", name, {"switch": switch, "mac": GUEST, **data}) for t_ns, name, data in controller
    ]
    return Timeline([*guest, *seen])


MOVED = (
    (ANNOUNCED + 1 * MS, "announcement", {"kind": "rarp"}),
    (ANNOUNCED + 1 * MS, "mac_moved", {"from_port": 1, "to_port": 2}),
    (ANNOUNCED + 2 * MS, "barrier_sent", {"xid": 7}),
    (ANNOUNCED + 4 * MS, "barrier_answered", {"xid": 7, "took_ns": 2 * MS}),
)
CONFIRMED = ANNOUNCED + 4 * MS


def analyse(frames: Sequence[StructuredArray], events: Timeline | None = None, **options: Any) -> SwitchRelearn:
    arguments = {"mac": GUEST, "ports": PORTS, **options}
    result = analyse_relearning(events or timeline(*MOVED), WINDOW, in_order(frames), INTERFACES, **arguments)
    [switch] = result.switches
    return switch


def test_the_wave() -> None:
    before = [frame(t * MS, OLD, t) for t in range(100)]
    lost = [frame(RESUMED + t * MS, OLD, 200 + t) for t in range(3)]
    arrived = [frame(CONFIRMED + t * MS, NEW, 300 + t) for t in range(1, 50)]
    result = analyse_relearning(
        timeline(*MOVED), WINDOW, in_order([*before, *lost, *arrived]), INTERFACES, mac=GUEST, ports=PORTS
    )
    assert (result.announce_ns, result.announcements) == (ANNOUNCED, 2)
    assert result.switches == [
        SwitchRelearn(
            name="s1",
            controller_ns=ANNOUNCED + MS,
            confirmed_ns=CONFIRMED,
            first_frame_ns=CONFIRMED + MS,
            stable_ns=CONFIRMED,
            frames_to_old_port=3,
            frames_flooded=0,
            flapped=0,
        )
    ]


def test_a_switch_that_nobody_asked_is_as_stable_as_its_tables_say() -> None:
    """A client that retries late proves that the switch was ready, not that it became so then."""
    assert analyse([frame(CONFIRMED + 200 * MS, NEW)]).stable_ns == CONFIRMED
    assert analyse([]).stable_ns is None
    assert analyse([frame(RESUMED + MS, OLD)]).stable_ns is None


def test_a_frame_at_the_new_port_proves_more_than_a_late_answer() -> None:
    assert analyse([frame(CONFIRMED - MS, NEW, 1), frame(CONFIRMED + MS, NEW, 2)]).stable_ns == CONFIRMED - MS


def test_frames_to_the_old_port_after_the_barrier_put_stability_off() -> None:
    late = frame(CONFIRMED + 2 * MS, OLD, 1)
    switch = analyse([late, frame(CONFIRMED + 5 * MS, NEW, 2)])
    assert switch.confirmed_ns == CONFIRMED
    assert switch.stable_ns == CONFIRMED + 2 * MS
    assert switch.flapped == 0


def test_a_flap_is_seen_in_the_frames() -> None:
    frames = [frame(CONFIRMED + t * MS, OLD if t in (3, 4, 8) else NEW, t) for t in range(20)]
    switch = analyse(frames)
    assert switch.flapped == 2
    assert switch.first_frame_ns == CONFIRMED
    assert switch.stable_ns == CONFIRMED + 8 * MS
    assert switch.frames_to_old_port == 3


def test_frames_handed_over_out_of_order_are_no_flap() -> None:
    frames = [frame(CONFIRMED, NEW, 2), frame(CONFIRMED + 50 * US, OLD, 1), frame(CONFIRMED + MS, NEW, 3)]
    assert analyse(frames).flapped == 0


def test_a_flap_is_seen_by_the_controller_even_without_frames() -> None:
    moved_back = [(CONFIRMED + t * MS, "mac_moved", {}) for t in (10, 20)]
    answers = [(CONFIRMED + 21 * MS, "barrier_sent", {"xid": 9}), (CONFIRMED + 22 * MS, "barrier_answered", {"xid": 9})]
    switch = analyse([frame(CONFIRMED + 100 * MS, NEW)], timeline(*MOVED, *moved_back, *answers))
    assert switch.flapped == 1
    assert switch.confirmed_ns == CONFIRMED
    assert switch.stable_ns == CONFIRMED + 22 * MS


def test_a_flooded_frame_is_one_and_is_not_lost() -> None:
    flooded = [frame(RESUMED + 5 * MS + t, port, 1) for t, port in ((0, OLD), (10 * US, NEW), (20 * US, OTHER))]
    switch = analyse([*flooded, frame(CONFIRMED + MS, NEW, 2)])
    assert switch.frames_flooded == 1
    assert switch.frames_to_old_port == 1
    assert switch.flapped == 0
    assert switch.first_frame_ns == RESUMED + 5 * MS + 10 * US


def test_flooded_without_the_new_port() -> None:
    """The new port was not wired yet: the frame went to all others."""
    assert analyse([frame(RESUMED, OLD, 1), frame(RESUMED, OTHER, 1), frame(RESUMED, s2_port(), 1)]).frames_flooded == 1


def s2_port() -> str:
    return INTERFACES[4]


def test_equal_frames_long_after_each_other_are_two() -> None:
    switch = analyse([frame(RESUMED, OLD, 1), frame(RESUMED + 1000 * MS, NEW, 1)])
    assert switch.frames_flooded == 0


@pytest.mark.parametrize(
    "other",
    [
        {"kind": KIND_ARP},
        {"dst_is_guest": False},
        {"direction": DIRECTION_IN},
        {"t_ns": RESUMED - 1},
        {"t_ns": WINDOW.end_ns},
        {"interface": 4},
    ],
)
def test_other_frames_do_not_count(other: dict[str, Any]) -> None:
    """ARP requests are broadcast; frames from the guest, of another time, or at another switch are no witnesses."""
    record = frame(CONFIRMED + 50 * MS, OLD)
    for name, value in other.items():
        record[name] = value
    switch = analyse([frame(CONFIRMED + MS, NEW, 9), record])
    assert (switch.frames_to_old_port, switch.stable_ns) == (0, CONFIRMED)


def test_without_a_controller_the_announcement_that_came_in_tells_the_switch() -> None:
    frames = [
        frame(RESUMED + MS // 2, OLD, 1),
        announcement(ANNOUNCED + 300 * US, NEW),
        frame(ANNOUNCED + 40 * MS, NEW, 2),
    ]
    switch = analyse(frames, timeline())
    assert (switch.controller_ns, switch.confirmed_ns) == (None, None)
    assert switch.stable_ns == ANNOUNCED + 300 * US


def test_an_app_that_tells_nothing_is_judged_by_frames_alone() -> None:
    """With a controller, an announcement that came in says nothing about the switch's tables."""
    events = timeline((50, "switch_connected", {"name": "s1"}))
    frames = [announcement(ANNOUNCED + 300 * US, NEW), frame(ANNOUNCED + 40 * MS, NEW, 2)]
    assert analyse(frames, events).stable_ns == ANNOUNCED + 40 * MS


def test_a_switch_behind_which_nothing_moved_has_nothing_to_relearn() -> None:
    same: dict[str, dict[str, str | None]] = {"s1": {"old_port": NEW, "new_port": NEW}}
    announced = (ANNOUNCED + MS, "announcement", {"kind": "rarp"})
    switch = analyse([frame(RESUMED + 3 * MS, NEW)], timeline(announced), ports=same)
    assert (switch.controller_ns, switch.confirmed_ns, switch.frames_to_old_port) == (ANNOUNCED + MS, None, 0)
    assert switch.stable_ns == RESUMED


@pytest.mark.parametrize("ports", [{}, {"new_port": None, "old_port": "s9-eth1"}])
def test_ports_that_are_not_known_or_were_never_seen(ports: dict[str, str | None]) -> None:
    switch = analyse([frame(RESUMED + MS, "s2-eth1")], ports={"s9": ports})
    assert switch == SwitchRelearn(name="s9")


def test_a_guest_that_did_not_resume_at_the_destination_taught_nobody() -> None:
    events = Timeline([Event(RESUMED, "guest.h1", "rolled_back")])
    result = analyse_relearning(events, WINDOW, in_order([]), INTERFACES, mac=GUEST, ports=PORTS)
    assert result == RelearnResult(announce_ns=None)


def test_other_machines_and_switches_do_not_count() -> None:
    events = timeline(*MOVED, switch="s2")
    assert analyse([], events).controller_ns is None
    other = Timeline(
        Event(event.t_ns, event.source, event.name, {**event.data, "mac": "aa"}) for event in timeline(*MOVED)
    )
    assert analyse([], other).controller_ns is None


def test_a_way_is_learnt_when_its_last_switch_is() -> None:
    result = RelearnResult(
        announce_ns=1,
        switches=[SwitchRelearn(name=name, stable_ns=at) for name, at in (("s1", 5), ("s2", 9), ("s3", None))],
    )
    assert relearned_ns(result, ["s1"]) == 5
    assert relearned_ns(result, ["s1", "s2"]) == 9
    assert relearned_ns(result, ["s1", "s3"]) is None
    assert relearned_ns(result, ["s1", "s4"]) is None
    assert relearned_ns(result, []) is None


@pytest.mark.parametrize("seed", range(30))
def test_stable_means_that_nothing_goes_elsewhere_later(seed: int) -> None:
    chance = random.Random(seed)
    frames = [
        frame(RESUMED + chance.randrange(50 * MS), chance.choice([OLD, NEW, NEW, OTHER]), number)
        for number in range(40)
    ]
    switch = analyse(frames, timeline(*(MOVED if chance.random() < 0.5 else ())))
    elsewhere = [int(record["t_ns"][0]) for record in frames if INTERFACES[int(record["interface"][0])] != NEW]
    right = [int(record["t_ns"][0]) for record in frames if INTERFACES[int(record["interface"][0])] == NEW]
    if switch.stable_ns is None:
        assert max(right, default=0) <= max(elsewhere)
    else:
        assert all(t_ns <= switch.stable_ns for t_ns in elsewhere)
        assert any(t_ns >= switch.stable_ns for t_ns in right)
    assert switch.frames_to_old_port == sum(record["interface"][0] == 0 for record in frames)
