"""The network's part of a plan: what hosts' cards make of their links, and networks beside the guests' own. Pure.

A host's card beyond the first names its network in the link's options (``params1={"network": "migration", "ip": ...}``,
see topologies/hyperv.py). Such a link carries nothing of the guests', so it lies on none of their paths.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from bench.errors import ScenarioError
from bench.link.impairment import DEFAULT_MTU
from bench.scenario import LinkSpec, Scenario
from bench.scenario.network import LinkDirectionSpec

MIGRATION: Final = "migration"
MIGRATION_SWITCH: Final = "m1"
MIGRATION_SUBNET: Final = "10.251.0.{}/24"  # as in topologies/hyperv.py


def link_spec(scenario: Scenario, hypervisors: Collection[str], first: str, second: str) -> LinkSpec:
    """The link between two nodes as the hypervisors' cards let it be: no faster than ``hosts.*.nic``, and with their
    ``hosts.*.mtu``, the lesser of two.
    """
    spec = scenario.link(first, second)
    cards = [scenario.host(name) for name in (first, second) if name in hypervisors]
    speed = card_speed(scenario, hypervisors, first, second)
    mtu = min((card.mtu for card in cards if card.mtu), default=spec.mtu)
    if not speed and mtu == spec.mtu:
        return spec
    reverse = spec.reverse
    if speed and reverse is not None and reverse.bandwidth is not None:
        bandwidth = limited(reverse.bandwidth, speed)
        reverse = LinkDirectionSpec.model_construct(**{**reverse.__dict__, "bandwidth": bandwidth})
    return spec.model_copy(update={"bandwidth": limited(spec.bandwidth, speed), "mtu": mtu, "reverse": reverse})


def card_speed(scenario: Scenario, hypervisors: Collection[str], first: str, second: str) -> int:
    """Of the slowest card at the two nodes of a link, in bit/s; 0 when none is limited."""
    speeds = (scenario.host(name).nic for name in (first, second) if name in hypervisors)
    return min((speed for speed in speeds if speed), default=0)


def limited(bandwidth_bps: int, speed_bps: int) -> int:
    """A bandwidth (0: unlimited) behind a card of some speed (0: unlimited)."""
    return min(bandwidth_bps, speed_bps) if bandwidth_bps and speed_bps else bandwidth_bps or speed_bps


def add_migration_network(topo: Any, hypervisors: Sequence[str], subnet: str, dpids: Mapping[str, int]) -> None:
    """A second card in each hypervisor, all on a switch of their own.

    :raises ValueError: the topology has such a network, or the switch's name or the addresses are taken.
    """
    if any(MIGRATION in networks for networks in card_networks(topo).values()):
        raise ValueError("1 for a topology that has a network for migrations itself")
    if MIGRATION_SWITCH in topo.nodes():
        raise ValueError(f"1 for a topology with a node {MIGRATION_SWITCH!r}")
    own = ipaddress.IPv4Network(MIGRATION_SUBNET.format(0))
    if own.overlaps(ipaddress.IPv4Network(subnet)):
        raise ValueError(f"1 with a network.subnet that overlaps {own}, which the second cards are in")
    options = {"network": MIGRATION, "dpid": f"{max(dpids.values(), default=0) + 1:x}"}
    if dpids and all(topo.nodeInfo(switch).get("stp") for switch in dpids):
        options["stp"] = True  # type: ignore[assignment]
    topo.addSwitch(MIGRATION_SWITCH, **options)
    for number, name in enumerate(hypervisors, 1):
        card = {"ip": MIGRATION_SUBNET.format(number), "network": MIGRATION}
        topo.addLink(name, MIGRATION_SWITCH, params1=card)


def card_networks(topo: Any) -> dict[frozenset[str], set[str]]:
    """The two nodes of a link -> the network that a host's card there is in; links of the guests' are left out."""
    found: dict[frozenset[str], set[str]] = {}
    for first, second, params in topo.links(withInfo=True):
        for key in ("params1", "params2"):
            network = (params.get(key) or {}).get("network")
            if network:
                found.setdefault(frozenset((first, second)), set()).add(str(network))
    return found


def migration_path(topo: Any, source: str, destination: str, blocked: Collection[frozenset[str]]) -> list[str]:
    """The nodes that a migration crosses, ends included; empty where there is no way.

    Through the network for migrations where both hosts have a card in it, else through the guests'.
    """
    from topologies import paths  # noqa: PLC0415 - Mininet is imported only when a network is needed

    networks = card_networks(topo)
    own = {
        end: {pair for pair, names in networks.items() if end in pair and MIGRATION in names}
        for end in (source, destination)
    }
    if all(own.values()):
        others = {
            frozenset((end, other))
            for end in own
            for other in paths.neighbours(topo)[end]
            if frozenset((end, other)) not in own[end]
        }
        return paths.path(topo, source, destination, {*blocked, *others}) or []
    return paths.path(topo, source, destination, {*blocked, *networks}) or []


def check_mtu(scenario: Scenario, topo: Any, hypervisors: Sequence[str], others: Collection[str], where: str) -> None:
    """That no two hosts agree on frames that a link between them is too narrow for: those would vanish there.

    :param others: the hosts beside the hypervisors that talk.
    :raises ScenarioError: naming the link.
    """
    from topologies import paths  # noqa: PLC0415 - as above

    def mtu(first: str, second: str) -> int:
        return link_spec(scenario, hypervisors, first, second).mtu

    if len({mtu(*ends) for ends in topo.links()}) < 2:
        return
    networks = card_networks(topo)
    ways = [migration_path(topo, *pair, ()) for pair in itertools.combinations(hypervisors, 2)]
    ways += [
        paths.path(topo, first, second, networks) or paths.path(topo, first, second) or []
        for first, second in itertools.combinations([*hypervisors, *others], 2)
    ]
    for way in ways:
        hops = list(itertools.pairwise(way))
        if len(hops) < 3:
            continue
        agreed = min(mtu(*hops[0]), mtu(*hops[-1]))
        for first, second in hops[1:-1]:
            if mtu(first, second) < agreed:
                allowed = f"at least {agreed}, which {way[0]} and {way[-1]} send through it"
                raise ScenarioError(where, f'links."{first}-{second}".mtu', mtu(first, second), allowed)


def guest_mtu(scenario: Scenario, topo: Any, hypervisors: Sequence[str]) -> int:
    """What guests send at most: Ethernet's, or less where a link of their network carries less."""
    return min([DEFAULT_MTU, *_mtus(scenario, topo, hypervisors, topo.links())])


def uplink_mtu(scenario: Scenario, topo: Any, hypervisors: Sequence[str]) -> int:
    """What reaches a guest's card at most: Ethernet's, or more where a hypervisor's link carries more."""
    links = [ends for ends in topo.links() if set(ends) & set(hypervisors)]
    return max([DEFAULT_MTU, *_mtus(scenario, topo, hypervisors, links)])


def _mtus(scenario: Scenario, topo: Any, hypervisors: Sequence[str], links: Iterable[tuple[str, str]]) -> list[int]:
    """Of those links that are in the guests' network."""
    apart = card_networks(topo)
    return [link_spec(scenario, hypervisors, *ends).mtu for ends in links if frozenset(ends) not in apart]
