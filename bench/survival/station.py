"""Stations: network namespaces that the laboratory hangs onto the testbed's hosts, one pair for each kernel setting.

The client's station is a macvlan on the client host's interface, the guest's a port of the hypervisor's bridge, exactly
where a guest's network card would be. So frames take the scenario's links, and sysctls and routes are a station's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.errors import HostError
from bench.host.channel import Channel
from bench.host.commands import Process, run, spawn_child
from bench.host.kernel import switch_ipv6_off
from bench.survival.cells import End, Kernel

INTERFACE: Final = "eth0"
COMMAND_NS: Final = 10 * NS_PER_S
START_NS: Final = 20 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Place:
    """Where a station is hung up.

    :param pid: of a process in the host's network namespace.
    :param parent: the client host's interface, or the hypervisor's bridge.
    """

    host: str
    pid: int
    parent: str


@dataclass
class Station:
    """One of a pair; *channel* speaks to its process."""

    end: End
    kernel: Kernel
    place: Place
    number: int
    process: Process
    channel: Channel
    address: str = ""

    def call(self, command: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """:raises BenchError: when it refuses, is dead, or does not answer."""
        return dict(self.channel.call(command, args, deadline=Deadline(START_NS)))

    def close(self) -> None:
        """End its process, and with it the namespace and all that hangs there. Idempotent."""
        self.channel.close()
        self.process.stop()


def free_addresses(subnet: ipaddress.IPv4Network, taken: set[str]) -> Iterator[str]:
    """Host addresses from the subnet's end, where a topology's hosts do not begin.

    :raises HostError: when there are no more.
    """
    for number in range(int(subnet.broadcast_address) - 1, int(subnet.network_address), -1):
        address = str(ipaddress.IPv4Address(number))
        if address not in taken:
            yield address
    raise HostError(f"no free address in {subnet} for a station", "use a larger network.subnet")


def start_station(end: End, kernel: Kernel, place: Place, number: int, log: Path) -> Station:
    """Start its process, which takes a moment; :func:`connect_station` comes next.

    :raises BenchError: when it cannot be started.
    """
    name = f"{end} station {number} on {place.host}"
    process, channel = spawn_child("bench.survival.peer", peer=name, netns_pid=place.pid, log=log)
    return Station(end, kernel, place, number, process, channel)


def connect_station(station: Station, address: ipaddress.IPv4Interface) -> None:
    """Wait until it is in a namespace of its own, and connect that to its place.

    :raises BenchError: when it died, or what could not be made.
    """
    message = station.channel.receive(Deadline(START_NS))
    if message.get("event", {}).get("name") != "ready":
        raise HostError(f"{station.process.name} said something else than that it is ready")
    station.address = str(address.ip)
    place, number, pid = station.place, station.number, station.process.pid
    switch_ipv6_off(pid)
    mac = f"02:00:5e:{0 if station.end == 'client' else 1:02x}:{number >> 8:02x}:{number & 0xFF:02x}"
    if station.end == "client":
        made = [
            f"link add link {place.parent} name sv{number} address {mac} type macvlan mode bridge",
            f"link set sv{number} netns {pid} name {INTERFACE}",
        ]
    else:
        made = [
            f"link add sv{number} type veth peer name {INTERFACE} address {mac} netns {pid}",
            f"link set sv{number} master {place.parent} up",
        ]
    _ip(made, place.pid)
    rto_min = f"rto_min {station.kernel.rto_min_ns // NS_PER_MS}ms"
    _ip(
        [
            f"addr add {address} dev {INTERFACE}",
            f"link set {INTERFACE} up",
            f"route replace {address.network} dev {INTERFACE} src {address.ip} {rto_min}",
        ],
        pid,
    )


def _ip(commands: list[str], netns_pid: int) -> None:
    text = "".join(f"{command}\n" for command in commands)
    run(["ip", "-batch", "-"], deadline=Deadline(COMMAND_NS), input=text.encode(), netns_pid=netns_pid)
