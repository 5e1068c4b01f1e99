"""From a scenario to a plan: which node plays which part, decided and checked before anything is built.

Pure but for reading the topology's file: a plan that cannot work is refused here, with one message, so that no network
is ever half built.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import MachineError, ScenarioError
from bench.scenario import ClientSpec, Scenario

MEMORY_RESERVE_BYTES = 512 << 20
MAX_NODES = 200


@dataclass(frozen=True)
class Plan:
    """Who plays which part.

    :param topo: the Mininet Topo.
    :param addresses: host name -> IPv4 address without prefix.
    :param prefix_length: of the one subnet that all hosts share.
    :param hypervisors: in order; the guest boots on ``source``.
    :param flows: client host -> its flows, each with its name.
    :param links: (first node, second node) of every link, as the topology has them.
    :param dpids: switch -> its OpenFlow datapath id.
    """

    topo: Any
    addresses: dict[str, str]
    prefix_length: int
    hypervisors: tuple[str, ...]
    storage: str | None
    clients: tuple[str, ...]
    source: str
    destination: str
    flows: dict[str, tuple[ClientSpec, ...]]
    links: tuple[tuple[str, str], ...]
    dpids: dict[str, int]

    def switches_between(self, first: str, second: str) -> list[str]:
        """The switches on the way from one node to another, in order, ends included where they are switches."""
        return [node for node in self.path(first, second) if self.topo.isSwitch(node)]

    def path(self, first: str, second: str) -> list[str]:
        """A shortest path through switches, ends included; empty when there is none."""
        from topologies import paths  # noqa: PLC0415 - as above

        return paths.path(self.topo, first, second) or []


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


def _endpoints(scenario: Scenario, hypervisors: tuple[str, ...], where: str) -> tuple[str, str]:
    migration = scenario.migration
    for key, name in (("source", migration.source), ("destination", migration.destination)):
        if name is not None and name not in hypervisors:
            raise ScenarioError(where, f"migration.{key}", name, f"one of the hypervisors {', '.join(hypervisors)}")
    source = migration.source or next(name for name in hypervisors if name != migration.destination)
    destination = migration.destination or next(name for name in hypervisors if name != source)
    if source == destination:
        raise ScenarioError(where, "migration.destination", destination, "another hypervisor than the source")
    return source, destination


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
        flows[host] = (*flows.get(host, ()), client)
    return flows


def _check_links(scenario: Scenario, links: tuple[tuple[str, str], ...], where: str) -> None:
    names = {f"{first}-{second}" for first, second in links}
    for name in scenario.links:
        first, _, second = name.partition("-")
        if name != "default" and name not in names and f"{second}-{first}" not in names:
            shown = sorted(names)
            allowed = ", ".join(["default", *shown[:20]]) + (" ..." if len(shown) > 20 else "")
            raise ScenarioError(where, f"links.{name}", name, f"links of the topology: {allowed}")


def _check_paths(topo: Any, ends: list[str], where: str, name: str) -> None:
    from topologies import paths  # noqa: PLC0415 - Mininet is imported only when a network is needed

    for end in ends[1:]:
        if paths.path(topo, ends[0], end) is None:
            raise ScenarioError(
                where, "network.topology", name, f"a topology with a path through switches between {ends[0]} and {end}"
            )
    loop = paths.find_loop(topo)
    if loop is not None:
        raise ScenarioError(
            where, "network.topology", name, f"a topology without a loop (there is one through {'-'.join(loop)})"
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
    try:
        guest = ipaddress.IPv4Address(scenario.guest.address)
    except ValueError:
        raise ScenarioError(where, "guest.address", scenario.guest.address, "an IPv4 address") from None
    edge = (subnet.network_address, subnet.broadcast_address)
    if guest not in subnet or guest in edge or subnet.num_addresses < len(hosts) + 3:
        raise ScenarioError(
            where,
            "guest.address",
            scenario.guest.address,
            f"a host address of {subnet}, with room for {len(hosts)} hosts",
        )
    taken = {str(guest)}
    given = {host: str(topo.nodeInfo(host)["ip"]).split("/")[0] for host in hosts if topo.nodeInfo(host).get("ip")}
    taken |= set(given.values())
    free = (str(address) for address in subnet.hosts() if str(address) not in taken)
    addresses = {host: given.get(host) or next(free) for host in hosts}
    if len(set(addresses.values())) != len(hosts) or str(guest) in given.values():
        raise ScenarioError(where, "network.topology", scenario.network.topology, "hosts with different addresses")
    return addresses, subnet.prefixlen


def _check_memory(scenario: Scenario) -> None:
    # The guest, its skeleton at the destination, and something for the engines and switches.
    needed = 2 * scenario.guest.memory + MEMORY_RESERVE_BYTES
    available = available_memory_bytes(Path("/proc/meminfo").read_text())
    if available and needed > available:
        raise MachineError(
            f"guest.memory: two copies of {scenario.guest.memory >> 20} MiB and {MEMORY_RESERVE_BYTES >> 20} MiB of "
            f"reserve need {needed >> 20} MiB, and {available >> 20} MiB are available",
            f"use --set guest.memory={max(4, (available - MEMORY_RESERVE_BYTES) // 2 >> 20)}MiB or less",
        )


def _check_image(scenario: Scenario, where: str) -> None:
    image = scenario.guest.image
    if image is None:
        return
    try:
        with Path(image).open("rb") as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise ScenarioError(where, "guest.image", image, f"a readable file ({error.strerror})") from None
    if not 0 < size <= scenario.guest.memory - scenario.guest.store_memory:
        raise ScenarioError(
            where,
            "guest.image",
            f"{image} of {size} bytes",
            f"1 to {scenario.guest.memory - scenario.guest.store_memory} bytes (guest.memory less guest.store_memory)",
        )


def make_plan(scenario: Scenario, where: str) -> Plan:
    """Decide who plays which part, and refuse what cannot work.

    :param where: the scenario's file name, for messages.
    :raises ScenarioError: roles, paths, link names, addresses or the image do not fit.
    :raises MachineError: Mininet is missing, or there is too little memory.
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
    if len(topo.nodes()) > MAX_NODES:
        raise ScenarioError(where, "network.topology", f"{len(topo.nodes())} nodes", f"up to {MAX_NODES} nodes")
    hypervisors, storage, clients = _roles(scenario, topo, where)
    source, destination = _endpoints(scenario, hypervisors, where)
    flows = _flows(scenario, list(topo.hosts(sort=False)), hypervisors, clients, where)
    links = tuple((first, second) for first, second in topo.links())
    _check_links(scenario, links, where)
    _check_paths(topo, [source, destination, *flows, *([storage] if storage else [])], where, scenario.network.topology)
    addresses, prefix_length = _addresses(scenario, topo, where)
    _check_image(scenario, where)
    _check_memory(scenario)
    return Plan(topo, addresses, prefix_length, hypervisors, storage, clients, source, destination, flows, links, dpids)
