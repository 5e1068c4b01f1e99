"""The guests' part of a plan: homes, orders, limits, room; and what is refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest
from mininet.topo import Topo

import topologies
from bench import plan as planning
from bench.errors import MachineError, ScenarioError
from bench.moving.schedule import Limits, Order
from bench.plan import Plan
from bench.plan_guests import check_memory
from bench.scenario import parse_scenario

SMALL = {"memory": "16MiB", "store_memory": "2MiB"}


@pytest.fixture(autouse=True)
def star(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_spec: str, _args: object) -> Topo:
        topo = Topo()
        topo.addSwitch("s1")
        for name in ("h1", "h2", "h3"):
            topo.addLink(topo.addHost(name, role="hypervisor"), "s1")
        topo.addLink(topo.addHost("c1", role="client"), "s1")
        return topo

    monkeypatch.setattr(topologies, "load", load)


def make(*guests: dict[str, Any], **raw: Any) -> Plan:
    raw.setdefault("guest", SMALL)
    return planning.make_plan(parse_scenario({"guests": list(guests), **raw}, "test"), "test.toml")


def refused(*guests: dict[str, Any], **raw: Any) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        make(*guests, **raw)
    return caught.value


def test_every_guest_goes_to_another_host_so_two_on_two_hosts_cross() -> None:
    plan = make({"host": "h1"}, {"host": "h2"})
    assert plan.homes == {"g1": "h1", "g2": "h2"}
    assert plan.orders == (Order("g1", "h2"), Order("g2", "h1"))
    assert plan.stations("g2") == ["h2", "h1"]
    assert (plan.source, plan.destination) == ("h1", "h2")


def test_a_named_destination_is_that_of_all_that_are_not_there() -> None:
    plan = make({}, {"host": "h3"}, {}, migration={"source": "h2", "destination": "h3"})
    assert plan.homes == {"g1": "h2", "g2": "h3", "g3": "h2"}
    assert plan.orders == (Order("g1", "h3"), Order("g3", "h3"))


def test_moves_are_taken_as_they_are_told() -> None:
    moves = [
        {"guest": "g2", "destination": "h1", "start": "5ms"},
        {"guest": "g1", "destination": "h3"},
        {"guest": "g1", "destination": "h1"},
    ]
    plan = make({}, {"host": "h2"}, moves=moves, migration={"plan": "sequential", "limit_per_host": 3})
    assert plan.orders == (Order("g2", "h1", 5_000_000), Order("g1", "h3"), Order("g1", "h1"))
    assert plan.limits == Limits(at_once=1, per_host=3)


def test_one_guest_need_not_be_named_in_a_move() -> None:
    assert make(moves=[{"destination": "h3"}]).orders == (Order("g1", "h3"),)


def test_an_evacuation_spreads_the_guests_of_one_host() -> None:
    plan = make({}, {}, {"host": "h2"}, {}, migration={"evacuate": "h1", "limit_per_host": 2})
    assert plan.orders == (Order("g1", "h3"), Order("g2", "h2"), Order("g4", "h3"))
    assert plan.limits == Limits(per_host=2)


def test_memory_of_hosts_by_name_and_by_default() -> None:
    plan = make({}, network={"guest_memory": {"h2": "64MiB", "default": "32MiB"}})
    assert plan.limits.room == {"h1": 32 << 20, "h2": 64 << 20, "h3": 32 << 20}
    held = make({}, network={"guest_memory": {"h2": "64MiB"}}, hosts={"h1": {"memory": "256MiB"}})
    assert held.limits.room == {"h1": 64 << 20, "h2": 64 << 20}  # less what runs the guests


def test_flows_know_their_guest() -> None:
    clients = [{"kind": "udp-echo"}, {"kind": "udp-echo", "guest": "g2"}]
    plan = make({}, {}, clients=clients)
    assert [(flow.name, flow.guest) for flow in plan.flows["c1"]] == [("udp-echo", "g1"), ("udp-echo-2", "g2")]
    assert [flow.name for flow in plan.flows_of("g2")["c1"]] == ["udp-echo-2"]
    assert make({}, {}, clients=clients[:1]).flows_of("g2") == {}


@pytest.mark.parametrize(
    ("guests", "raw", "key", "allowed"),
    [
        ([{}, {"address": "10.0.1.1"}, {"address": "10.0.1.1"}], {}, "guests.2.address", "guest g2 has this one"),
        ([{"mac": "52:54:00:00:00:09"}] * 2, {}, "guests.1.mac", "guest g1 has this one"),
        ([{"address": "192.168.0.1"}], {}, "guests.0.address", "10.0.0.0/16"),
        ([{}, {"host": "h9"}], {}, "guests.1.host", "h1, h2, h3"),
        ([], {"guest": {**SMALL, "host": "c1"}}, "guest.host", "h1, h2, h3"),
        ([{}], {"migration": {"evacuate": "h9"}}, "migration.evacuate", "h1, h2, h3"),
        ([{}], {"migration": {"evacuate": "h2"}}, "migration.evacuate", "a hypervisor with guests: h1"),
        ([{}], {"migration": {"evacuate": "h1", "destination": "h2"}}, "migration.destination", "nothing beside"),
        (
            [{}],
            {"migration": {"evacuate": "h1"}, "network": {"guest_memory": {"h2": "8MiB", "h3": "0"}}},
            "migration.evacuate",
            "guest g1 of 16 MiB fits nowhere: h2 has 8 MiB free, h3 has 0 MiB free",
        ),
        ([{}, {}], {"moves": [{"destination": "h2"}]}, "moves.0.guest", "g1, g2"),
        ([{}], {"moves": [{"guest": "g9", "destination": "h2"}]}, "moves.0.guest", "g1"),
        ([{}], {"moves": [{"destination": "h1"}]}, "moves.0.destination", "h2, h3"),
        ([{}], {"moves": [{"destination": "c1"}]}, "moves.0.destination", "h2, h3"),
        ([{}], {"moves": [{"destination": "h2"}, {"destination": "h2"}]}, "moves.1.destination", "h1, h3"),
        ([{}], {"moves": [{"destination": "h2"}], "migration": {"evacuate": "h1"}}, "migration.evacuate", "[[moves]]"),
        ([{}], {"network": {"guest_memory": {"c1": "1MiB"}}}, "network.guest_memory.c1", "default, h1, h2, h3"),
        ([{}, {}], {"network": {"guest_memory": {"h1": "16MiB"}}}, "network.guest_memory.h1", "32 MiB of the guests"),
        (
            [{"host": "h1"}, {"host": "h2"}],
            {"network": {"guest_memory": {"h1": "16MiB", "h2": "16MiB"}}},
            "migration.destination",
            "no room on h2 for guest g1",
        ),
        (
            [{}, {}, {"host": "h2"}],
            {"hosts": {"h1": {"memory": "215MiB"}}},
            "hosts.h1.memory",
            "at least '224MiB': 32 of the guests that boot on h1, 192 for what runs them",
        ),
        (
            [{"host": "h1"}, {"host": "h2"}],
            {"hosts": {"default": {"memory": "208MiB"}}},
            "migration.destination",
            "no room on h2 for guest g1",
        ),
        ([{}], {"hosts": {"h2": {"memory": "207MiB"}}}, "hosts.h2.memory", "at least '208MiB'"),
        ([{}, {}], {"migration": {"port": 65535}}, "migration.port", "up to 65534"),
        ([{}, {}], {"clients": [{"kind": "udp-echo", "guest": "g3"}]}, "clients.0.guest", "g1, g2"),
    ],
)
def test_what_cannot_work_is_one_message(guests: list[Any], raw: dict[str, Any], key: str, allowed: str) -> None:
    error = refused(*guests, **raw)
    assert error.key == key
    assert allowed in str(error)


def test_memory_is_needed_for_all_guests_and_as_many_skeletons_as_can_be_at_once() -> None:
    scenario = parse_scenario({"guest": {"memory": "1024MiB"}, "guests": [{}, {}, {"memory": "2048MiB"}]}, "test")
    homes = dict.fromkeys(("g1", "g2", "g3"), "h1")
    orders = [Order(name, "h2") for name in homes]
    reserve, gib = 512 << 20, 1 << 30
    check_memory(scenario, orders, Limits(), homes, 8 * gib + reserve)
    check_memory(scenario, orders, Limits(at_once=1), homes, 6 * gib + reserve)
    with pytest.raises(MachineError) as caught:
        check_memory(scenario, orders, Limits(per_host=1), homes, 6 * gib + reserve - 1)
    assert "3 guests of 4096 MiB, up to 2048 MiB of them twice, and 512 MiB of reserve need 6656 MiB" in str(
        caught.value
    )
    assert "--set guest.memory=2047MiB" in caught.value.remedy
