"""A guest with two cards in two VLANs and IPv6 moves, and each of its cards is relearnt where it is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from bench_runs import Bench, events_of, require_moved, settings, started
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import PcapNgReader

from bench.migration.announce import ETHERTYPE_RARP

pytestmark = pytest.mark.root

SCENARIO = Path(__file__).parents[2] / "scenarios" / "vlans.toml"
QUICK = (
    "calibration.enabled=false",
    "links.default.delay=0ms",
    "run.warmup=500ms",
    "run.settle=300ms",
    "run.predict=false",
)
FIRST, SECOND = "52:54:00:00:00:01", "52:54:00:01:00:01"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """With real access ports, and what comes late sent on (``forwarding``); where the controller's flows decide, and
    nothing but a neighbour advertisement tells (``learning``), or ports wait for each card (``activation``); and with
    hypervisors at access ports.
    """
    directory = tmp_path_factory.mktemp("vlans")
    trunk = settings(*QUICK, "run.capture=true", 'controller.app="forwarding"', "announce.faults.late=100ms")
    blocked = settings(*QUICK, 'controller.app="activation"')
    flows = settings(*QUICK, 'announce.kinds=["na"]', 'controller.app="learning"')
    alone = settings(
        *QUICK,
        "run.capture=true",
        "guest.vlan=10",
        "network.vlans={ c1 = 10, h1 = 10, h2 = 10 }",
        'controller.app="standalone"',
    )
    with contextlib.ExitStack() as stack:
        made = {
            "trunk": stack.enter_context(started(directory / "trunk", *trunk, scenario=SCENARIO)),
            "learning": stack.enter_context(started(directory / "learning", *flows, scenario=SCENARIO)),
            "activation": stack.enter_context(started(directory / "activation", *blocked, scenario=SCENARIO)),
            "access": stack.enter_context(started(directory / "access", *alone)),
        }
        for run in made.values():
            assert run.wait() == 0, run.stdout + run.stderr
    return made


def announced(run: Bench) -> set[tuple[str, int]]:
    """(source MAC, VLAN) of the RARPs that left the destination's uplink; VLAN 0: without a tag."""
    found = set()
    with PcapNgReader(str(run.output / "captures" / "g1@h2.pcapng")) as frames:
        for frame in frames:
            tag = frame.getlayer(Dot1Q)
            if (tag or frame).type == ETHERTYPE_RARP:
                found.add((frame[Ether].src, tag.vlan if tag else 0))
    return found


@pytest.mark.parametrize("name", ["trunk", "learning", "activation"])
def test_both_cards_and_both_families_are_served_on(runs: dict[str, Bench], name: str) -> None:
    result = runs[name].result()
    require_moved(result)
    flows = {flow.name: flow for flow in result.flows}
    assert set(flows) == {"udp-echo", "second-card", "ipv6", "ipv6-tcp"}
    for flow in flows.values():
        assert flow.alive, flow.error
        assert flow.requests > flow.lost
        assert flow.corrupted == 0


@pytest.mark.parametrize("name", ["trunk", "learning"])
def test_each_card_is_relearnt_in_its_vlan(runs: dict[str, Bench], name: str) -> None:
    relearn = runs[name].result().relearn
    (card,) = relearn.cards
    assert (card.mac, card.address, card.address6, card.vlan) == (SECOND, "10.20.0.1", "fd00:20::1", 20)
    for switches, vlan in ((relearn.switches, 10), (card.switches, 20)):
        assert {switch.name for switch in switches} == {"s1", "s2"}
        assert {switch.vlan for switch in switches} == {vlan}
        assert all(switch.stable_ns is not None for switch in switches)
        assert all(switch.state_ns is not None for switch in switches)
    assert card.announcements == relearn.announcements > 0


def test_frames_for_both_cards_that_came_late_are_sent_on(runs: dict[str, Bench]) -> None:
    (done,) = [event for event in events_of(runs["trunk"].output) if event.name == "forwarded"]
    assert set(done.data["by_mac"]) == {FIRST, SECOND}
    assert sum(done.data["by_mac"].values()) == done.data["frames"]


def test_the_port_waits_for_each_card(runs: dict[str, Bench]) -> None:
    events = events_of(runs["activation"].output)
    assert {event.data["mac"] for event in events if event.name == "port_blocked"} == {FIRST, SECOND}
    opened = [event.data for event in events if event.name == "port_unblocked"]
    assert {(told["mac"], told["reason"]) for told in opened} == {(FIRST, "announced"), (SECOND, "announced")}


def test_the_fdb_knows_each_card_in_its_vlan_only(runs: dict[str, Bench]) -> None:
    events = [event for event in events_of(runs["trunk"].output) if event.name == "fdb_changed"]
    assert {(event.data["mac"], event.data["vlan"]) for event in events} == {(FIRST, 10), (SECOND, 20)}


def test_announcements_are_tagged_as_the_hypervisors_port_demands(runs: dict[str, Bench]) -> None:
    assert announced(runs["trunk"]) == {(FIRST, 10), (SECOND, 20)}
    assert announced(runs["access"]) == {(FIRST, 0)}


def test_a_hypervisor_at_an_access_port_serves_its_vlan(runs: dict[str, Bench]) -> None:
    require_moved(runs["access"].result())
    assert {switch.vlan for switch in runs["access"].result().relearn.switches} == {10}


def test_an_advertisement_alone_moves_an_ipv6_client(runs: dict[str, Bench]) -> None:
    events = [event for event in events_of(runs["learning"].output) if event.name == "announce_sent"]
    assert {event.data["kind"] for event in events} == {"na"}
    assert {event.data.get("card", 0) for event in events} == {0, 1}
