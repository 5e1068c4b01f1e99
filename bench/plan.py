"""From a scenario to a plan: which node plays which part, decided and checked before anything is built.

Pure but for reading the topology's file: a plan that cannot work is refused here, with one message, so that no network
is ever half built.
"""

from __future__ import annotations

import ipaddress
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import MachineError, ScenarioError
from bench.host.openssh import find_sshd
from bench.moving.schedule import Limits, Order
from bench.plan_cards import check_cards
from bench.plan_disks import check_disks
from bench.plan_guests import (
    check_addresses,
    check_images,
    check_memory,
    check_port,
    check_traces,
    plan_homes,
    plan_limits,
    plan_orders,
)
from bench.plan_network import add_migration_network, card_networks, check_mtu, guest_mtu, migration_path, uplink_mtu
from bench.plan_surroundings import check_surroundings
from bench.scenario import ClientSpec, Scenario

MAX_NODES = 200


@dataclass(frozen=True)
class Plan:
    """Who plays which part.

    :param topo: the Mininet Topo.
    :param addresses: host name -> IPv4 address without prefix.
    :param prefix_length: of the one subnet that all hosts share.
    :param hypervisors: in order.
    :param homes: guest -> the hypervisor that it boots on.
    :param orders: the migrations of the first repetition, and *limits* of how many go on at a time.
    :param flows: client host -> its flows, each with its name and its guest's.
    :param links: (first node, second node) of every link, as the topology has them.
    :param dpids: switch -> its OpenFlow datapath id.
    :param prefixes: host -> its prefix length, where that is not the subnet's.
    :param guest_mtu: what guests send at most; *uplink_mtu*: of the widest link of a hypervisor.
    :param apart: the pairs of nodes whose link is not of the guests' network.
    :param blocked: the pairs of nodes whose link a spanning tree blocks; filled in when that has settled.
    """

    topo: Any
    addresses: dict[str, str]
    prefix_length: int
    hypervisors: tuple[str, ...]
    storage: str | None
    clients: tuple[str, ...]
    homes: dict[str, str]
    orders: tuple[Order, ...]
    limits: Limits
    flows: dict[str, tuple[ClientSpec, ...]]
    links: tuple[tuple[str, str], ...]
    dpids: dict[str, int]
    prefixes: dict[str, int] = field(default_factory=dict)
    guest_mtu: int = 1500
    uplink_mtu: int = 1500
    apart: frozenset[frozenset[str]] = frozenset()
    blocked: set[frozenset[str]] = field(default_factory=set)

    def prefix_of(self, host: str) -> int:
        """The prefix length of a host's address."""
        return self.prefixes.get(host, self.prefix_length)

    @property
    def routers(self) -> list[str]:
        """The hosts that forward."""
        return _by_role(self.topo, "router")

    @property
    def gateway(self) -> str:
        """The address of a router in the guests' subnet; empty when there is none."""
        for host in self.routers:
            network = ipaddress.IPv4Interface(f"{self.addresses[host]}/{self.prefix_of(host)}").network
            if any(ipaddress.IPv4Address(self.addresses[name]) in network for name in self.hypervisors):
                return self.addresses[host]
        return ""

    @property
    def source(self) -> str:
        """Where the first migration begins."""
        return self.homes[self.orders[0].guest]

    @property
    def destination(self) -> str:
        """Where the first migration leads."""
        return self.orders[0].destination

    def stations(self, guest: str) -> list[str]:
        """The hypervisors that a guest is on at some time, its home first."""
        return list(dict.fromkeys([self.homes[guest], *(o.destination for o in self.orders if o.guest == guest)]))

    def flows_of(self, guest: str) -> dict[str, tuple[ClientSpec, ...]]:
        """Client host -> the flows of one guest."""
        chosen = {host: tuple(flow for flow in flows if flow.guest == guest) for host, flows in self.flows.items()}
        return {host: flows for host, flows in chosen.items() if flows}

    def switches_between(self, first: str, second: str) -> list[str]:
        """The switches on the way from one node to another, in order, ends included where they are switches."""
        return [node for node in self.path(first, second) if self.topo.isSwitch(node)]

    def path(self, first: str, second: str) -> list[str]:
        """A shortest path through switches, ends included, in the guests' network if there is one; empty for none."""
        from topologies import paths  # noqa: PLC0415 - as above

        within = paths.path(self.topo, first, second, self.blocked | self.apart)
        return within or paths.path(self.topo, first, second, self.blocked) or []

    def migration_path(self, source: str, destination: str) -> list[str]:
        """As :meth:`path`, for the engines: through the network for migrations, where there is one."""
        return migration_path(self.topo, source, destination, self.blocked)


def available_memory_bytes(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo's text, in bytes; 0 when the line is missing."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _by_role(topo: Any, role: str) -> list[str]:
    return [host for host in topo.hosts(sort=False) if topo.nodeInfo(host).get("role") == role]


def _roles(scenario: Scenario, topo: Any, where: str) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """Hypervisors, storage host and possible client hosts: named in the scenario, by node option, else by order."""
    hosts = list(topo.hosts(sort=False))
    network = scenario.network
    for key, names in (("hypervisors", network.hypervisors), ("storage", (network.storage,))):
        for name in names:
            if name is not None and name not in hosts:
                raise ScenarioError(where, f"network.{key}", name, f"hosts of the topology: {', '.join(hosts)}")
    marked = _by_role(topo, "hypervisor")
    hypervisors = list(network.hypervisors) or marked or hosts[:2]
    if len(set(hypervisors)) < 2:
        raise ScenarioError(
            where, "network.hypervisors", hypervisors, f"two different hosts of the topology: {', '.join(hosts)}"
        )
    storage = network.storage or next(iter(_by_role(topo, "storage")), None)
    clients = _by_role(topo, "client") or [host for host in hosts if host not in hypervisors and host != storage]
    return tuple(hypervisors), storage, tuple(clients)


def _flows(
    scenario: Scenario, hosts: list[str], hypervisors: tuple[str, ...], clients: tuple[str, ...], where: str
) -> dict[str, tuple[ClientSpec, ...]]:
    flows: dict[str, tuple[ClientSpec, ...]] = {}
    for index, client in enumerate(scenario.clients):
        host = client.host or next(iter(clients), None)
        allowed = ", ".join(name for name in hosts if name not in hypervisors) or "(this topology has none)"
        if host is None or host not in hosts or host in hypervisors:
            reason = f"a host that is no hypervisor, as {' and '.join(hypervisors)} are: {allowed}"
            raise ScenarioError(where, f"clients.{index}.host", client.host, reason)
        if client.command and shutil.which(client.command[0]) is None:
            key = f"clients.{index}.command"
            raise ScenarioError(where, key, client.command[0], "a program that this machine has, by name or path")
        try:
            guest = scenario.guest_named(client.guest).name
        except KeyError:
            names = ", ".join(guest.name for guest in scenario.guests)
            raise ScenarioError(where, f"clients.{index}.guest", client.guest, f"one of the guests {names}") from None
        flows[host] = (*flows.get(host, ()), client.model_copy(update={"guest": guest}))
        who = guest if client.direction == "from-guest" else host
        if len(_retries2(flows, who, client.direction)) > 1:
            one = f"one value for all flows of {who}, whose kernel's setting it is"
            raise ScenarioError(where, f"clients.{index}.tcp.retries2", client.tcp.retries2, one)
    return flows


def _retries2(flows: dict[str, tuple[ClientSpec, ...]], who: str, direction: str) -> set[int]:
    """What the flows that *who*, a client host or a guest, runs want of ``tcp_retries2``."""
    return {
        flow.tcp.retries2
        for host, some in flows.items()
        for flow in some
        if flow.direction == direction and who == (flow.guest if direction == "from-guest" else host)
    } - {0}


def _check_links(scenario: Scenario, links: tuple[tuple[str, str], ...], where: str) -> None:
    names = {f"{first}-{second}" for first, second in links}
    for name in scenario.links:
        first, _, second = name.partition("-")
        if name != "default" and name not in names and f"{second}-{first}" not in names:
            shown = sorted(names)
            allowed = ", ".join(["default", *shown[:20]]) + (" ..." if len(shown) > 20 else "")
            raise ScenarioError(where, f"links.{name}", name, f"links of the topology: {allowed}")


def _check_paths(topo: Any, ends: list[str], where: str, name: str, *, loops_do: bool) -> None:
    from topologies import paths  # noqa: PLC0415 - Mininet is imported only when a network is needed

    for end in ends[1:]:
        if paths.path(topo, ends[0], end) is None:
            raise ScenarioError(
                where, "network.topology", name, f"a topology with a path through switches between {ends[0]} and {end}"
            )
    loop = paths.find_loop(topo)
    if loop is not None and not loops_do and not paths.has_spanning_tree(topo):
        raise ScenarioError(
            where,
            "network.topology",
            name,
            f"a topology without a loop (there is one through {'-'.join(loop)}), controller.app 'proactive', or a "
            "spanning tree (the argument stp=true of the built-in ones)",
        )


def _addresses(scenario: Scenario, topo: Any, where: str) -> tuple[dict[str, str], int]:
    """Addresses of the hosts from the start of the subnet, in the topology's order; a node option ``ip`` wins."""
    try:
        subnet = ipaddress.IPv4Network(scenario.network.subnet)
    except ValueError as error:
        raise ScenarioError(
            where, "network.subnet", scenario.network.subnet, f"a subnet such as '10.0.0.0/16' ({error})"
        ) from None
    hosts = list(topo.hosts(sort=False))
    check_addresses(scenario, subnet, len(hosts), where)
    guests = {guest.address for guest in scenario.guests}
    given = {host: str(topo.nodeInfo(host)["ip"]).split("/")[0] for host in hosts if topo.nodeInfo(host).get("ip")}
    taken = guests | set(given.values())
    free = (str(address) for address in subnet.hosts() if str(address) not in taken)
    addresses = {host: given.get(host) or next(free) for host in hosts}
    if len(set(addresses.values())) != len(hosts) or guests & set(given.values()):
        raise ScenarioError(where, "network.topology", scenario.network.topology, "hosts with different addresses")
    return addresses, subnet.prefixlen


def make_plan(scenario: Scenario, where: str) -> Plan:
    """Decide who plays which part, and refuse what cannot work.

    :param where: the scenario's file name, for messages.
    :raises ScenarioError: roles, paths, link names, addresses or the image do not fit.
    :raises MachineError: Mininet or an sshd is missing, or there is too little memory.
    """
    try:
        import topologies.paths  # noqa: PLC0415 - Mininet is imported only when a network is needed
    except ImportError as error:
        raise MachineError(f"Mininet cannot be imported: {error}", "run `make setup` as root") from None
    try:
        topo = topologies.load(scenario.network.topology, scenario.network.args)
        dpids = topologies.paths.switch_dpids(topo)
    except ValueError as error:
        name = scenario.network.topology
        why = str(error).removeprefix(f"{name}: ")
        raise ScenarioError(where, "network.topology", name, f"a topology that can be loaded ({why})") from None
    app = scenario.controller.app
    if app.endswith(".py") and not Path(app).is_file():
        raise ScenarioError(where, "controller.app", app, "a file that can be read")
    if len(topo.nodes()) > MAX_NODES:
        raise ScenarioError(where, "network.topology", f"{len(topo.nodes())} nodes", f"up to {MAX_NODES} nodes")
    hypervisors, storage, clients = _roles(scenario, topo, where)
    if scenario.network.nics == 2:
        try:
            add_migration_network(topo, hypervisors, scenario.network.subnet, dpids)
        except ValueError as error:
            raise ScenarioError(where, "network.nics", 2, str(error)) from None
        dpids = topologies.paths.switch_dpids(topo)
    homes = plan_homes(scenario, hypervisors, where)
    limits = plan_limits(scenario, hypervisors, where)
    orders = plan_orders(scenario, hypervisors, homes, limits, where)
    flows = _flows(scenario, list(topo.hosts(sort=False)), hypervisors, clients, where)
    links = tuple((first, second) for first, second in topo.links())
    _check_links(scenario, links, where)
    ends = dict.fromkeys([*homes.values(), *(order.destination for order in orders)])
    _check_paths(
        topo,
        [*ends, *flows, *([storage] if storage else [])],
        where,
        scenario.network.topology,
        loops_do=scenario.controller.knows_topology,
    )
    addresses, prefix_length = _addresses(scenario, topo, where)
    if scenario.migration.security == "ssh":
        find_sshd()
    check_port(scenario, where)
    check_cards(scenario, list(topo.hosts(sort=False)), hypervisors, flows, where)
    check_images(scenario, where)
    check_traces(scenario, where)
    check_disks(scenario, storage, hypervisors, where)
    check_surroundings(scenario, hypervisors, addresses, [f"{one}-{other}" for one, other in links], where)
    others = [*flows, *([storage] if storage else []), *(name for flow in scenario.cross_traffic for name in flow.ends)]
    check_mtu(scenario, topo, hypervisors, dict.fromkeys(name for name in others if name not in hypervisors), where)
    check_memory(scenario, orders, limits, homes, available_memory_bytes(Path("/proc/meminfo").read_text()))
    return Plan(
        topo=topo,
        addresses=addresses,
        prefix_length=prefix_length,
        hypervisors=hypervisors,
        storage=storage,
        clients=clients,
        homes=homes,
        orders=orders,
        limits=limits,
        flows=flows,
        links=links,
        dpids=dpids,
        prefixes={
            host: int(str(topo.nodeInfo(host)["ip"]).split("/")[1])
            for host in topo.hosts()
            if "/" in str(topo.nodeInfo(host).get("ip"))
        },
        guest_mtu=guest_mtu(scenario, topo, hypervisors),
        uplink_mtu=uplink_mtu(scenario, topo, hypervisors),
        apart=frozenset(card_networks(topo)),
    )
