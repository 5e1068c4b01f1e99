from __future__ import annotations

import random

import pytest
from fake_flow_table import FakeSwitch, arp, data_frame, rarp

from controllers import packets
from controllers.learning_logic import Barrier, Flow, LearningSwitch, Match, hold_s

GUEST = "52:54:00:00:00:01"
CLIENT = "52:54:00:00:00:02"
NEWCOMER = "52:54:00:00:00:03"
OLD, NEW, CLIENT_PORT, OTHER_PORT = 1, 2, 3, 4
MS = 1_000_000
S = 1_000_000_000

TO_GUEST = data_frame(CLIENT, GUEST)
FROM_GUEST = data_frame(GUEST, CLIENT)

ANNOUNCEMENTS = {
    "rarp": rarp(GUEST),
    "garp": arp(GUEST, "10.0.1.1", "10.0.1.1"),
    "garp-reply": arp(GUEST, "10.0.1.1", "10.0.1.1", opcode=2),
}


@pytest.fixture
def switch() -> FakeSwitch:
    """A switch that knows the guest at OLD and the client at CLIENT_PORT."""
    switch = FakeSwitch()
    switch.send(OLD, FROM_GUEST)
    switch.send(CLIENT_PORT, TO_GUEST)
    switch.events.clear()
    return switch


def test_unknown_and_group_destinations_are_flooded_and_known_ones_are_not() -> None:
    switch = FakeSwitch()
    assert switch.send(OLD, FROM_GUEST) == {NEW, CLIENT_PORT, OTHER_PORT}
    assert switch.send(CLIENT_PORT, TO_GUEST) == {OLD}
    assert switch.send(OLD, FROM_GUEST) == {CLIENT_PORT}
    assert switch.send(OLD, data_frame(GUEST, packets.BROADCAST)) == {NEW, CLIENT_PORT, OTHER_PORT}
    assert switch.send(OLD, data_frame(GUEST, "01:00:5e:00:00:fb")) == {NEW, CLIENT_PORT, OTHER_PORT}


def test_the_first_frame_is_forwarded_without_waiting_for_the_controller() -> None:
    switch = FakeSwitch()
    assert switch.put(OLD, FROM_GUEST) == {NEW, CLIENT_PORT, OTHER_PORT}


def test_known_pairs_do_not_trouble_the_controller(switch: FakeSwitch) -> None:
    for _ in range(3):
        switch.put(OLD, FROM_GUEST)
        switch.put(CLIENT_PORT, TO_GUEST)
        switch.put(OLD, data_frame(GUEST, packets.BROADCAST))
    assert switch.queued == []


def test_link_local_groups_and_group_sources_are_dropped() -> None:
    switch = FakeSwitch()
    assert switch.put(OLD, data_frame(GUEST, "01:80:c2:00:00:0e")) == set()
    assert switch.put(OLD, data_frame("01:00:5e:00:00:01", CLIENT)) == set()
    assert switch.queued == []


@pytest.mark.parametrize("kind", ANNOUNCEMENTS)
def test_an_announcement_moves_the_guest_and_is_flooded_by_the_switch_itself(switch: FakeSwitch, kind: str) -> None:
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD}
    assert switch.put(NEW, ANNOUNCEMENTS[kind]) == {OLD, CLIENT_PORT, OTHER_PORT}
    told, moved = [event for event in switch.answer() if event.name != "packet_in"]
    assert (told.name, told.data["kind"], told.data["mac"], told.data["port"]) == ("announcement", kind, GUEST, NEW)
    assert moved.name == "mac_moved"
    assert moved.data == {"switch": "s1", "mac": GUEST, "from_port": OLD, "to_port": NEW, "announced": True}
    assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}
    assert switch.put(NEW, FROM_GUEST) == {CLIENT_PORT}
    assert switch.queued == []


def test_a_data_frame_from_a_new_port_moves_the_guest(switch: FakeSwitch) -> None:
    assert switch.send(NEW, FROM_GUEST) == {CLIENT_PORT}
    assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}
    assert switch.names() == ["packet_in", "mac_moved"]


def test_every_announcement_is_seen_even_from_the_known_port(switch: FakeSwitch) -> None:
    for _ in range(5):
        switch.send(NEW, ANNOUNCEMENTS["rarp"])
    assert switch.names().count("announcement") == 5
    assert switch.names().count("mac_moved") == 1


def test_a_move_replaces_the_destination_before_all_else_and_ends_with_a_barrier() -> None:
    logic = LearningSwitch("s1", 1)
    logic.connected()
    logic.packet_in(0, OLD, FROM_GUEST, missed=True)
    steps = [step for step in logic.packet_in(S, NEW, rarp(GUEST), missed=False) if isinstance(step, Flow | Barrier)]
    first = steps[0]
    assert isinstance(first, Flow)
    assert (first.table, first.match, first.outputs) == (1, Match(eth_dst=GUEST), (NEW,))
    assert steps[-1] == Barrier(GUEST)


@pytest.mark.parametrize("frames", [1, 500])
def test_late_frames_from_the_old_port_do_not_move_the_guest_back(switch: FakeSwitch, frames: int) -> None:
    switch.send(NEW, ANNOUNCEMENTS["rarp"])
    switch.events.clear()
    for _ in range(frames):
        switch.wait(MS)
        assert switch.send(OLD, FROM_GUEST) == {CLIENT_PORT}  # forwarded all the same
        assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}
    assert switch.events == []  # the switch does not even ask


def test_packet_ins_of_the_old_port_that_were_queued_do_not_move_the_guest_back(switch: FakeSwitch) -> None:
    switch.put(OLD, arp(GUEST, "10.0.1.1", "10.0.0.9"))
    queued = switch.queued.pop()
    switch.send(NEW, ANNOUNCEMENTS["rarp"])
    switch.queued.append(queued)
    switch.wait(MS)
    assert [event.name for event in switch.answer()] == ["packet_in", "late_frame"]
    assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}


def test_an_announcement_overtaken_by_a_later_one_is_late_but_a_real_return_is_followed(switch: FakeSwitch) -> None:
    switch.send(NEW, ANNOUNCEMENTS["rarp"])
    switch.wait(5 * MS)
    switch.send(OLD, ANNOUNCEMENTS["garp"])
    assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}
    switch.wait(100 * MS)
    switch.send(OLD, ANNOUNCEMENTS["garp"])
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD}
    assert switch.send(NEW, FROM_GUEST) == {CLIENT_PORT}
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD}


def test_a_return_without_announcement_is_followed_after_the_hold_time(switch: FakeSwitch) -> None:
    switch.send(NEW, FROM_GUEST)
    switch.wait(S)
    switch.send(OLD, FROM_GUEST)
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD}


def test_a_third_port_is_followed_at_once(switch: FakeSwitch) -> None:
    switch.send(NEW, FROM_GUEST)
    switch.send(OTHER_PORT, FROM_GUEST)
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OTHER_PORT}


def test_a_silent_pair_is_forgotten_but_not_after_it_moved(switch: FakeSwitch) -> None:
    switch.send(NEW, FROM_GUEST)
    assert switch.logic.flow_removed(Match(in_port=OLD, eth_src=GUEST)) == []
    switch.table.apply(switch.logic.flow_removed(Match(in_port=NEW, eth_src=GUEST)))
    assert GUEST not in switch.logic.fdb
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD, NEW, OTHER_PORT}


def test_a_port_that_goes_down_takes_its_addresses_along(switch: FakeSwitch) -> None:
    events = switch.table.apply(switch.logic.port_down(OLD))
    assert [event.data["mac"] for event in events] == [GUEST]
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD, NEW, OTHER_PORT}
    switch.send(NEW, FROM_GUEST)
    assert switch.put(CLIENT_PORT, TO_GUEST) == {NEW}


def test_a_switch_that_connects_again_starts_from_nothing(switch: FakeSwitch) -> None:
    switch.table.apply(switch.logic.connected())
    assert switch.logic.fdb == {}
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OLD, NEW, OTHER_PORT}
    assert len(switch.queued) == 1


def test_lost_flows_are_mended(switch: FakeSwitch) -> None:
    for key in [key for key, (flow, _since) in switch.table.flows.items() if flow.match.eth_src == GUEST]:
        del switch.table.flows[key]
    switch.wait(2 * S)
    switch.send(OLD, FROM_GUEST)
    switch.put(OLD, FROM_GUEST)
    assert switch.queued == []


def test_a_flood_of_addresses_is_bounded_and_announcements_still_count() -> None:
    switch = FakeSwitch(max_macs=10)
    switch.send(OLD, FROM_GUEST)
    for number in range(50):
        switch.send(OTHER_PORT, data_frame(f"52:54:00:00:01:{number:02x}", CLIENT))
    assert len(switch.logic.fdb) == 10
    assert len(switch.table.flows) < 40
    assert switch.names().count("fdb_full") == 1  # then the port is quiet
    switch.send(OTHER_PORT, ANNOUNCEMENTS["rarp"])
    assert switch.put(CLIENT_PORT, TO_GUEST) == {OTHER_PORT}


@pytest.mark.parametrize("data", [b"", b"\0" * 13, b"\xff" * 128])
def test_rubbish_is_no_frame_of_anyone(data: bytes) -> None:
    logic = LearningSwitch("s1", 1)
    logic.packet_in(0, OLD, data, missed=True)
    assert logic.fdb == {}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_last_quiet_place_of_the_guest_wins(seed: int) -> None:
    """After any traffic, an announcement later than the guard time decides, and frames follow it alone."""
    chance = random.Random(seed)
    switch = FakeSwitch()
    frames = [FROM_GUEST, TO_GUEST, data_frame(NEWCOMER, GUEST), *ANNOUNCEMENTS.values()]
    for _ in range(200):
        switch.put(chance.randint(1, 4), chance.choice(frames))
        switch.wait(chance.choice([0, 0, MS, 30 * MS, 700 * MS]))
        if chance.random() < 0.6:
            switch.answer()
    switch.answer()
    switch.wait(30 * MS)
    port = chance.randint(1, 4)
    switch.send(port, ANNOUNCEMENTS["rarp"])
    other = port % 4 + 1
    assert switch.put(other, data_frame(NEWCOMER, GUEST)) == {port}


@pytest.mark.parametrize(("text", "seconds"), [("", 1), ("1", 1), ("3600", 3600)])
def test_hold_time(text: str, seconds: int) -> None:
    assert hold_s(text) == seconds


@pytest.mark.parametrize("text", ["0", "3601", "-1", "0.5", "long", "²"])
def test_a_wrong_hold_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number of seconds from 1 to 3600"):
        hold_s(text)
