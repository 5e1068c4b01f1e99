"""How hosts are attached to the network beside the topology's addresses: access VLANs, further addresses, IPv6.

That is done when the links have been calibrated, for which all hosts have to reach each other.

An access VLAN is the switch port's where Open vSwitch forwards by itself (NORMAL heeds ``tag``). Under a controller
whose flows say where frames go, and with Linux bridges (this kernel's have no VLAN filtering), all ports are trunks,
and the host's own card tags (:mod:`bench.host.vlan_tags`).
"""

from __future__ import annotations

import socket
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import HostError, MachineError
from bench.guest.port import Netlink
from bench.host import vlan_tags
from bench.host.commands import run
from bench.host.kernel import entered_netns, switch_ipv6_on
from bench.scenario import Scenario

_COMMAND_NS: Final = 10 * NS_PER_S


def attach_hosts(scenario: Scenario, net: Any) -> None:
    """Give every host what the scenario's network says of it.

    :param net: Mininet's, up.
    :raises MachineError: this kernel has no VLANs or no IPv6 for us.
    """
    network = scenario.network
    for host, address in network.addresses.items():
        _readdress(net[host], address)
    for host, address in network.addresses6.items():
        _add_ipv6(net[host], address)
    for host, vlan in network.vlans.items():
        if not vlan:
            continue
        if scenario.controller.keeps_vlans:  # so the switches are Open vSwitch's
            port = _switch_port(net[host])
            port.node.ovs.vsctl("set", "Port", port.name, f"tag={vlan}")
        else:
            _tag_card(net[host], vlan)


def _readdress(host: Any, address: str) -> None:
    interface = str(host.defaultIntf())
    batch = f"addr flush dev {interface} scope global\naddr add {address} dev {interface}\n"
    run(["ip", "-batch", "-"], deadline=Deadline(_COMMAND_NS), input=batch.encode(), netns_pid=host.pid)


def _add_ipv6(host: Any, address: str) -> None:
    interface = str(host.defaultIntf())
    refused = switch_ipv6_on(interface, host.pid)
    if refused:
        raise MachineError(
            f"this kernel has no IPv6 for {host.name}: it refuses {', '.join(refused)}",
            "leave out network.addresses6, or use a kernel with CONFIG_IPV6",
        )
    argv = ["ip", "-6", "addr", "add", address, "dev", interface, "nodad"]
    run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=host.pid)


def _tag_card(host: Any, vlan: int) -> None:
    with entered_netns(host.pid):
        netlink = Netlink()
        try:
            vlan_tags.attach(netlink.request, socket.if_nametoindex(str(host.defaultIntf())), vlan, "card")
        finally:
            netlink.close()


def _switch_port(host: Any) -> Any:
    """The switch's end of a host's link."""
    intf = host.defaultIntf()
    if intf.link is None:
        raise HostError(f"{host.name} has no link")
    return intf.link.intf2 if intf.link.intf1 is intf else intf.link.intf1
