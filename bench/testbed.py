"""The testbed of one run: network, controller, hypervisors and guests, raised from a plan and taken down as one.

Must live in a sandbox (:mod:`bench.host.sandbox`). Everything is registered for clean-up before it is started;
``close`` is idempotent, bounded, and one part that fails to stop does not keep the others from being stopped.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.access import attach_hosts
from bench.clock import NS_PER_S, Deadline, now_ns
from bench.control_plane import ControlPlane
from bench.disks import Storage
from bench.errors import HostError, MachineError
from bench.forward import Forwarder
from bench.guest.port import port_interface
from bench.guests import BRIDGE, Guests, for_interface
from bench.host import firewall
from bench.host.commands import describe_status, run
from bench.host.kernel import reserve_ports, set_sysctls, switch_ipv6_off
from bench.link.calibrate import Endpoint, calibrate
from bench.link.impairment import DEFAULT_MTU, Direction, from_spec
from bench.link.links import BenchLink, LinkFactory
from bench.network_faults import NetworkFaults
from bench.plan import Plan
from bench.plan_network import MIGRATION, link_spec
from bench.reach import wait_reachable
from bench.result import LinkResult
from bench.scenario import Scenario
from bench.timeline import Event

COMMAND_NS = 10 * NS_PER_S


@dataclass(frozen=True)
class Hypervisor:
    """A Mininet host with a Linux bridge inside: the physical uplink and the guests' interfaces are its ports.

    :param pid: of the process that holds its network namespace.
    :param uplink: the interface that its link to the switch ends in.
    :param address: its IPv4 address, which is the bridge's.
    :param migration_address: in the network for migrations, where the topology has one of its own.
    """

    name: str
    pid: int
    uplink: str
    address: str
    migration_address: str


class Testbed:
    """Network, controller, hypervisors and guests of one run.

    :param directory: the run directory; sockets, the Open vSwitch database, logs and events go below it.
    :param notify: called with one line of text for each step, for the progress display.
    :ivar since_ns: when it became what it is now (:meth:`renew`), CLOCK_MONOTONIC; 0: it never was anything else.
    """

    def __init__(self, scenario: Scenario, plan: Plan, directory: Path, notify: Callable[[str], None]) -> None:
        self.scenario = scenario
        self.plan = plan
        self.directory = directory
        self.links: list[LinkResult] = []
        self.hypervisors: dict[str, Hypervisor] = {}
        self.since_ns = 0
        self.net: Any = None
        self.control = ControlPlane(scenario, plan, directory)
        self._forwarders: dict[str, Forwarder] = {}
        self._factory: LinkFactory | None = None
        self._notify = notify
        self._stack = contextlib.ExitStack()
        self._of_guests = contextlib.ExitStack()
        self.storage = Storage(scenario, plan, directory)
        self.guests = Guests(scenario, plan, directory, self._of_guests, self.storage)
        (directory / "events").mkdir(exist_ok=True)
        (directory / "logs").mkdir(exist_ok=True)
        self.faults = NetworkFaults(self, self._stack)

    # life

    def raise_network(self) -> None:
        """Bring up switches, controller, links, hosts and hypervisors; calibrate the links.

        :raises BenchError: what could not be made; the caller closes.
        """
        self._notify("raising the network")
        self.control.start(self._stack)
        self._build()
        for name in self.plan.hypervisors:
            self.hypervisors[name] = self._make_hypervisor(name)
        self._set_up_hosts()
        self.control.wait_ready(self.net.switches)
        if self.control.is_foreign:
            self._wait_reachable()
        self._calibrate()

    def _wait_reachable(self) -> None:
        """Until hypervisors can send each other guests. :raises ControllerError: they can not."""
        at = {name: (host.pid, host.migration_address) for name, host in self.hypervisors.items()}
        wait_reachable(at, list(itertools.permutations(at, 2)), self.control.name)

    def _calibrate(self) -> None:
        if self.scenario.calibration.enabled:
            self._notify("calibrating the links")
        self.links = calibrate(
            self._require_factory(),
            self._endpoints(),
            self.scenario.calibration,
            log_directory=self.directory / "logs",
            switch_pids=self.control.forwarding_pids(),
            cards=self._cards(),
        )
        attach_hosts(self.scenario, self.net)

    def _endpoints(self) -> dict[str, Endpoint]:
        """What links are measured from: every host, and every card in a network beside the guests'."""
        found = {host.name: Endpoint(host.pid, self.plan.addresses[host.name]) for host in self.net.hosts}
        for host in self.net.hosts:
            for card in _cards_apart(host):
                found[_card_name(card)] = Endpoint(host.pid, str(card.IP()))
        return found

    def _cards(self) -> dict[str, str]:
        """Interface -> which of :meth:`_endpoints` its link ends in, where that is not the host."""
        return {card.name: _card_name(card) for host in self.net.hosts for card in _cards_apart(host)}

    @property
    def links_factory(self) -> LinkFactory:
        """What made the links, and reshapes them. :raises HostError: before the network is up."""
        return self._require_factory()

    def _require_factory(self) -> LinkFactory:
        if self._factory is None:
            raise HostError("the testbed's network is not up")
        return self._factory

    def _build(self) -> None:
        from mininet.log import setLogLevel  # noqa: PLC0415 - Mininet is imported lazily
        from mininet.net import Mininet  # noqa: PLC0415

        setLogLevel("error")
        Mininet.inited = True  # or it would change limits and sysctls of the whole machine
        spec_of = functools.partial(link_spec, self.scenario, self.plan.hypervisors)
        factory = LinkFactory(spec_of, log=self.directory / "logs" / "delayline.log")
        self._stack.callback(factory.stop)
        self._factory = factory
        net = Mininet(
            topo=None,
            switch=self.control.switch_class(),
            link=factory.link_class(),
            controller=None,
            autoSetMacs=True,
            build=False,
        )
        self.net = net
        self._stack.callback(self._stop_network)
        self._stack.enter_context(self.control.environment())
        topo = self.plan.topo
        for name in topo.hosts():
            address = f"{self.plan.addresses[name]}/{self.plan.prefix_of(name)}"
            net.addHost(name, **{**topo.nodeInfo(name), "ip": address})
        for name in topo.switches():
            net.addSwitch(name, **{**topo.nodeInfo(name), "dpid": f"{self.plan.dpids[name]:016x}"})
        for first, second, params in topo.links(withInfo=True):
            net.addLink(**{"node1": net[first], "node2": net[second], **_link_params(params)})
        net.build()
        for host in net.hosts:
            switch_ipv6_off(host.pid)  # or its multicast pollutes tables and counts
        net.start()
        factory.apply_all()  # after the start: Open vSwitch takes the qdiscs off a port that it adds

    def _stop_network(self) -> None:
        # Mininet's own stop() also prints and waits for terminals; links and namespaces die with the sandbox anyway.
        for node in [*self.net.switches, *self.net.hosts]:
            with contextlib.suppress(OSError):
                node.terminate()

    def _make_hypervisor(self, name: str) -> Hypervisor:
        host = self.net[name]
        self._reserve_ports(host.pid)  # before anything connects from there
        uplink = str(host.defaultIntf())
        address = f"{self.plan.addresses[name]}/{self.plan.prefix_length}"
        batch = [
            f"link add {BRIDGE} address {host.defaultIntf().MAC()} type bridge stp_state 0 mcast_snooping 0",
            f"addr flush dev {uplink}",
            f"link set {uplink} master {BRIDGE}",
            f"addr add {address} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ]
        mtu = self.link_at(name).asked[0].mtu
        if mtu != DEFAULT_MTU:  # by itself it would be the least of its ports', and a guest's may be less
            batch.append(f"link set {BRIDGE} mtu {mtu}")
        run(
            ["ip", "-batch", "-"],
            deadline=Deadline(COMMAND_NS),
            input="\n".join(batch).encode() + b"\n",
            netns_pid=host.pid,
        )
        own = self.plan.addresses[name]
        apart = (str(card.IP()) for card in _cards_apart(host) if card.params["network"] == MIGRATION)
        return Hypervisor(name, host.pid, uplink, own, next(apart, own))

    def _reserve_ports(self, pid: int) -> None:
        """For the engines' listeners, which have a port for each guest."""
        reserve_ports(self.scenario.migration.port, len(self.scenario.guests), pid)

    def _set_up_hosts(self) -> None:
        """Kernel parameters of the hosts that are no hypervisors, and the routers' firewalls."""
        network = self.scenario.network
        for host in self.net.hosts:
            if host.name in self.plan.hypervisors:
                continue
            wanted = for_interface(network.sysctls, str(host.defaultIntf()))
            refused = set_sysctls(wanted, host.pid)
            if refused:
                remedy = "take them out of network.sysctls, or use another kernel"
                raise MachineError(f"this kernel refuses {', '.join(refused)} in {host.name}", remedy)
        for name in self.plan.routers if network.firewall else ():
            firewall.set_up(self.net[name].pid)

    # guests

    def boot_guests(self) -> None:
        """Start every guest on its host, its disks first.

        :raises BenchError: with the end of its log when one does not start.
        """
        self._stack.callback(self._of_guests.close)
        self._of_guests.callback(self.storage.stop)
        self.storage.start({host.name: host.pid for host in self.net.hosts})
        self.guests.boot_all(self.hypervisors, self._notify)

    def renew(self, scenario: Scenario, plan: Plan) -> None:
        """Be another scenario's: its links, and nothing left of the guests and disks before, so that its own can be
        booted. Network, hosts and control plane stay as they are, and have to be the same in both.

        :raises LinkError: a link was not built for what is asked of it now.
        """
        self.guests.quit()
        self._of_guests.close()
        self._of_guests = contextlib.ExitStack()
        self.guests.forget_all()
        self.since_ns = now_ns()
        self.scenario, self.plan = scenario, plan
        for host in self.hypervisors.values():
            self._reserve_ports(host.pid)
        self.storage = Storage(scenario, plan, self.directory)
        self.guests = Guests(scenario, plan, self.directory, self._of_guests, self.storage)
        factory = self._require_factory()
        for link in factory.links.values():
            asked = from_spec(scenario.link(*(end.node for end in link.ends)))
            if asked != link.asked:
                factory.apply(link, *asked)
        self._calibrate()

    # looking at it

    @property
    def datapath(self) -> str:
        return self.control.datapath

    def switch_ports(self) -> dict[str, dict[str, str]]:
        """Switch -> (port name -> the node at the other end)."""
        ports: dict[str, dict[str, str]] = {}
        for link in self.net.links if self.net is not None else ():
            for here, there in ((link.intf1, link.intf2), (link.intf2, link.intf1)):
                if here.node in self.net.switches:
                    ports.setdefault(here.node.name, {})[here.name] = there.node.name
        return ports

    def host_ports(self) -> dict[str, str]:
        """Host -> the switch port that its first link ends in: that of the guests' network where it has several."""
        found = {}
        for host in self.net.hosts if self.net is not None else ():
            intf = host.defaultIntf()
            if intf is not None and intf.link is not None:
                found[host.name] = str(intf.link.intf2 if intf.link.intf1 is intf else intf.link.intf1)
        return found

    # what the control plane may want to know beforehand

    def expect(self, guest: str, destination: str) -> None:
        """A guest is about to move to a hypervisor."""
        switch, port = self.attachment(destination)
        for card in self.scenario.guest_named(guest).all_cards:
            self.control.expect(str(card.mac), switch, port)
        if self.scenario.controller.app == "forwarding":
            self._forward(guest, destination)

    def _forward(self, guest: str, destination: str) -> None:
        """Have the source keep what comes for a guest that has left, and send it on."""
        former = self._forwarders.pop(guest, None)
        if former is not None:
            former.stop()
        here, there = self.hypervisors[self.guests[guest].host], self.hypervisors[destination]
        label = f"forwarder.{guest}"
        forwarder = Forwarder(self.directory / "events" / f"{label}.jsonl", self.directory / "logs" / f"{label}.log")
        self._stack.callback(forwarder.stop)
        forwarder.start(
            {
                "source_pid": here.pid,
                "destination_pid": there.pid,
                "uplink": here.uplink,
                "macs": [str(card.mac) for card in self.scenario.guest_named(guest).all_cards],
                "address": there.migration_address,
            }
        )
        self._forwarders[guest] = forwarder

    def forget(self, guest: str) -> None:
        """It does not come after all."""
        for card in self.scenario.guest_named(guest).all_cards:
            self.control.forget(str(card.mac))

    def on_event(self, event: Event) -> None:
        """What happened in a migration: the network's faults and the forwarders wait for it.

        :raises BenchError: one cannot be done.
        """
        self.faults.on_event(event)
        forwarder = self._forwarders.get(event.guest)
        if forwarder is not None and event.source == "engine.source" and event.name == "paused":
            forwarder.cut(event.data.get("net_cut_ns") or event.t_ns)
        elif forwarder is not None and event.source == "engine.destination" and event.name == "resumed":
            cards = self.scenario.guest_named(event.guest).all_cards
            forwarder.open({str(card.mac): port_interface(event.guest, number) for number, card in enumerate(cards)})

    def stop_forwarding(self) -> None:
        """The network has had its time. Idempotent."""
        while self._forwarders:
            self._forwarders.popitem()[1].stop()

    def attachment(self, host: str) -> tuple[str, int]:
        """The switch that a host's first link leads to, and the number of its port there."""
        intf = self.net[host].defaultIntf()
        there = intf.link.intf2 if intf.link.intf1 is intf else intf.link.intf1
        return there.node.name, int(there.node.ports[there])

    def link_at(self, host: str) -> BenchLink:
        """The link that a host's first card is plugged into."""
        return self.net[host].defaultIntf().link.bench  # type: ignore[no-any-return]

    def link_named(self, name: str) -> BenchLink:
        """A link by its ends, in either order. :raises HostError: when there is none."""
        first, _, second = name.partition("-")
        links = self._require_factory().links
        found = links.get(name) or links.get(f"{second}-{first}")
        if found is None:
            raise HostError(f"the network has no link {name!r}")
        return found

    def change_link(self, name: str, forward: Direction, backward: Direction) -> None:
        """Shape a link anew while traffic flows. :raises LinkError: when that cannot be applied."""
        self._require_factory().apply(self.link_named(name), forward, backward)

    def require_alive(self) -> None:
        """:raises BenchError: when a part that everything depends on has died."""
        for process in self.control.ovs.processes if self.control.ovs is not None else ():
            if not process.alive:
                raise HostError(f"{process.name} died: {describe_status(process.status or 0)}")
        if self.control.controller is not None:
            self.control.controller.check()
        if self._factory is not None:
            self._factory.check()
        self.storage.check()

    def close(self) -> None:
        """Take everything down. Idempotent."""
        self._stack.close()


def _cards_apart(host: Any) -> list[Any]:
    """Mininet's interfaces of a host that are in a network beside the guests'."""
    return [card for card in host.intfList() if card.params.get("network")]


def _card_name(card: Any) -> str:
    return f"{card.node.name}@{card.params['network']}"


def _link_params(params: dict[str, Any]) -> dict[str, Any]:
    """What a Topo's addLink was told, less the node names and what the scenario's [links] decides."""
    kept = {"port1", "port2", "intfName1", "intfName2", "addr1", "addr2", "params1", "params2"}
    return {key: value for key, value in params.items() if key in kept}


@contextlib.contextmanager
def raised(
    scenario: Scenario, plan: Plan, directory: Path, notify: Callable[[str], None] = lambda _text: None
) -> Iterator[Testbed]:
    """A testbed with network and guests, closed at the end whatever happens."""
    testbed = Testbed(scenario, plan, directory, notify)
    try:
        testbed.raise_network()
        testbed.boot_guests()
        yield testbed
    finally:
        testbed.close()
