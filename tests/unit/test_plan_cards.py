"""VLANs, IPv6 and further cards: what fits is planned, what cannot work is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import ScenarioError
from bench.plan_cards import card_addresses, check_cards, client_address, guest_address
from bench.scenario import Scenario, parse_scenario

HOSTS = ("h1", "h2", "c1", "c2")
TOPOLOGY = {"h1": "10.0.0.1", "h2": "10.0.0.2", "c1": "10.0.0.3", "c2": "10.0.0.4"}


def scenario(**changes: Any) -> Scenario:
    raw: dict[str, Any] = {
        "network": {
            "vlans": {"c1": 10, "c2": 20},
            "addresses": {"c2": "10.20.0.2/24"},
            "addresses6": {"c1": "fd00:10::2/64", "c2": "fd00:20::2/64"},
        },
        "controller": {"app": "standalone"},
        "guest": {
            "vlan": 10,
            "address6": "fd00:10::1/64",
            "cards": [{"address": "10.20.0.1/24", "address6": "fd00:20::1/64", "vlan": 20}],
        },
        "clients": [
            {"kind": "udp-echo", "host": "c1"},
            {"kind": "udp-echo", "host": "c2", "card": 1, "name": "second"},
            {"kind": "udp-echo", "host": "c2", "card": 1, "family": "ipv6", "name": "sixth"},
        ],
    }
    for path, value in changes.items():
        place = raw
        *way, last = path.split("__")
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place[name]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    return parse_scenario(raw, "test")


def check(made: Scenario) -> None:
    flows: dict[str, list[Any]] = {}
    for client in made.clients:
        flows.setdefault(str(client.host), []).append(client)
    check_cards(made, HOSTS, HOSTS[:2], flows, "test")


def test_clients_and_cards_of_two_vlans_fit() -> None:
    made = scenario()
    check(made)
    (guest,) = made.guests
    assert card_addresses(guest) == ["10.0.1.1", "fd00:10::1", "10.20.0.1", "fd00:20::1"]
    assert [card.mac for card in guest.all_cards] == ["52:54:00:00:00:01", "52:54:00:01:00:01"]
    assert [guest_address(made, client) for client in made.clients] == ["10.0.1.1", "10.20.0.1", "fd00:20::1"]
    assert client_address(made, TOPOLOGY, "c1", "ipv4") == "10.0.0.3"
    assert client_address(made, TOPOLOGY, "c2", "ipv4") == "10.20.0.2"
    assert client_address(made, TOPOLOGY, "c2", "ipv6") == "fd00:20::2"


@pytest.mark.parametrize("app", ["standalone", "learning", "proactive", "activation", "forwarding", "bridge"])
def test_every_control_plane_knows_all_cards(app: str) -> None:
    check(scenario(controller__app=app))


def test_a_guest_as_always_needs_nothing() -> None:
    check(parse_scenario({"clients": [{"kind": "udp-echo", "host": "c1"}]}, "test"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network__vlans": {"c1": 10, "c2": 20, "c9": 1}}, "network.vlans.c9"),
        ({"network__vlans": {"c1": 11, "c2": 20}}, "network.vlans.c1"),
        ({"network__vlans": {"c1": 10, "c2": 20, "h1": 10}}, "network.vlans"),
        ({"network__vlans": {"c1": 10, "c2": 20, "h1": 10, "h2": 10}}, "guest.vlan"),
        ({"network__addresses": {"h1": "10.20.0.2/24"}}, "network.addresses.h1"),
        ({"network__addresses": {}}, "network.addresses.c2"),
        ({"network__addresses6": {}}, "network.addresses6.c2"),
        ({"clients__1__card": 2}, "card"),
        ({"guest__cards__0": {"address": "10.20.0.1/24", "vlan": 20}}, "family"),
        ({"guest__cards__0": {"address": "10.0.9.1/24", "vlan": 20}}, "network of its own"),
        ({"guest__cards__0": {"address": "10.20.0.2/24", "vlan": 20}}, "one of its own"),
        ({"guest__cards__0__mac": "52:54:00:00:00:01"}, "MAC"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ScenarioError, match=named):
        check(scenario(**changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vlan", 4095),
        ("vlan", -1),
        ("address6", "fd00::1"),
        ("address6", "10.0.0.1/8"),
        ("address6", "fe80::1/64"),
        ("cards", [{"address": "10.20.0.1"}]),
        ("cards", [{"address": "10.20.0.0/24"}]),
        ("cards", [{"address": "10.20.0.1/24", "mac": "nonsense"}]),
        ("cards", [{}]),
        ("cards", [{"address": f"10.{number}.0.1/24"} for number in range(8)]),
    ],
)
def test_bad_words_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ScenarioError, match=rf"guest\.{key}"):
        scenario(**{f"guest__{key}": value})


def test_several_guests_do_not_share_cards_and_vlans() -> None:
    made = parse_scenario(
        {"guest": {"vlan": 7, "cards": [{"address": "10.20.0.1/24"}]}, "guests": [{}, {"vlan": 8}]}, "test"
    )
    assert [(guest.vlan, guest.cards) for guest in made.guests] == [(0, ()), (8, ())]
