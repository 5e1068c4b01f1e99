"""The part of a plan that VLANs, IPv6 and guests' further cards have: whether clients reach what they talk to. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence

from bench.errors import ScenarioError
from bench.plan_guests import key_of
from bench.scenario import ClientSpec, GuestSpec, Scenario

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def card_addresses(guest: GuestSpec) -> list[str]:
    """All IP addresses of a guest, without prefix lengths."""
    return [
        text.partition("/")[0] for card in guest.all_cards for text in (card.address, card.address6) if text is not None
    ]


def client_address(scenario: Scenario, addresses: Mapping[str, str], host: str, family: str) -> str:
    """A host's own address, as its clients use it, without prefix length. :param addresses: the topology's."""
    if family == "ipv6":
        return scenario.network.addresses6[host].partition("/")[0]
    return scenario.network.addresses.get(host, addresses[host]).partition("/")[0]


def guest_address(scenario: Scenario, client: ClientSpec) -> str:
    """What a client talks to, without prefix length."""
    card = scenario.guest_named(client.guest).all_cards[client.card]
    text = card.address6 if client.family == "ipv6" else card.address
    assert text is not None  # checked by check_cards
    return text.partition("/")[0]


def check_cards(
    scenario: Scenario,
    hosts: Collection[str],
    hypervisors: Collection[str],
    flows: Mapping[str, Sequence[ClientSpec]],
    where: str,
) -> None:
    """:raises ScenarioError: an unknown host, an address that is there twice, or a client that reaches nobody."""
    _check_hosts(scenario, hosts, hypervisors, where)
    _check_guests(scenario, where)
    for host, clients in flows.items():
        for client in clients:
            if client.kind != "command":
                _check_client(scenario, host, client, f"clients.{client.name}", where)


def _check_hosts(scenario: Scenario, hosts: Collection[str], hypervisors: Collection[str], where: str) -> None:
    network = scenario.network
    others = ", ".join(name for name in hosts if name not in hypervisors)
    for key in ("vlans", "addresses", "addresses6"):
        for host in getattr(network, key):
            port_of_its_own = key == "vlans" and scenario.controller.keeps_vlans
            if host not in hosts or (host in hypervisors and not port_of_its_own):
                allowed = ", ".join(hosts) if port_of_its_own else f"a host that is no hypervisor: {others}"
                raise ScenarioError(where, f"network.{key}.{host}", host, allowed)
    ports = {network.vlans.get(host, 0) for host in hypervisors}
    if len(ports) > 1:
        raise ScenarioError(where, "network.vlans", network.vlans, "one VLAN for all hypervisors, or none for any")
    if ports != {0}:
        for guest in scenario.guests:
            for card in guest.all_cards:
                if card.vlan not in ports:
                    allowed = f"{ports.pop()}, as the hypervisors' ports have it"
                    raise ScenarioError(where, key_of(scenario, guest, "vlan"), card.vlan, allowed)


def _check_guests(scenario: Scenario, where: str) -> None:
    taken: dict[str, str] = {}
    for text in (*scenario.network.addresses.values(), *scenario.network.addresses6.values()):
        taken[text.partition("/")[0]] = "a host"
    macs: dict[str, str] = {}
    subnet: _Network = ipaddress.IPv4Network(scenario.network.subnet)
    for guest in scenario.guests:
        key = key_of(scenario, guest, "cards")
        for address in card_addresses(guest):
            if address in taken:
                raise ScenarioError(where, key, address, f"one of its own: {taken[address]} has this address")
            taken[address] = f"guest {guest.name}"
        for card in guest.all_cards:
            if card.mac in macs:
                allowed = f"one of its own: guest {macs[card.mac]} has this MAC address"
                raise ScenarioError(where, key, card.mac, allowed)
            macs[str(card.mac)] = guest.name
        networks: list[_Network] = [subnet]
        for text in (
            *(card.address for card in guest.cards),
            *(card.address6 for card in guest.all_cards if card.address6),
        ):
            made: _Network = ipaddress.ip_interface(text).network
            if any(made.version == other.version and made.overlaps(other) for other in networks):
                raise ScenarioError(where, key, text, "a network of its own: another card of the guest is in this one")
            networks.append(made)


def _check_client(scenario: Scenario, host: str, client: ClientSpec, key: str, where: str) -> None:
    guest = scenario.guest_named(client.guest)
    network = scenario.network
    if client.card >= len(guest.all_cards):
        raise ScenarioError(where, f"{key}.card", client.card, f"one of the {len(guest.all_cards)} cards, from 0")
    if client.direction == "from-guest" and (client.card or client.family == "ipv6" or host in network.addresses):
        allowed = "its first card, IPv4, and a server with the topology's address, for a flow from the guest"
        raise ScenarioError(where, f"{key}.direction", client.direction, allowed)
    card = guest.all_cards[client.card]
    if client.family == "ipv6":
        theirs, ours, ours_key = card.address6, network.addresses6.get(host), f"network.addresses6.{host}"
        if theirs is None:
            raise ScenarioError(where, f"{key}.family", "ipv6", f"an address6 of the guest's card {client.card}")
    elif client.card == 0:
        theirs, ours, ours_key = None, None, ""  # the network that all are in, or a router
    else:
        theirs, ours, ours_key = card.address, network.addresses.get(host), f"network.addresses.{host}"
    if theirs is not None:
        wanted = ipaddress.ip_interface(theirs).network
        if ours is None or ipaddress.ip_interface(ours).network != wanted:
            raise ScenarioError(where, ours_key, ours, f"an address in {wanted}, where the guest's card is")
    if network.vlans.get(host, 0) != card.vlan and guest.gateway is None:
        raise ScenarioError(
            where,
            f"network.vlans.{host}",
            network.vlans.get(host, 0),
            f"{card.vlan}, the VLAN of the guest's card {client.card} (there is no gateway between them)",
        )
