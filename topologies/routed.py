"""A gateway between the clients and the guest's subnet. Also: ``mn --custom topologies/routed.py --topo routed``.

::

    10.1.0.0/24                    10.0.0.0/16
    c1, c2 -- s3 -- r1 -- s1 -- h1
                          |
                          s2 -- h2
"""

from __future__ import annotations

from typing import Any

from mininet.node import Node
from mininet.topo import Topo

GATEWAY = "10.0.0.254"
OUTER_GATEWAY = "10.1.0.254"


class Router(Node):
    """A host that forwards IPv4."""

    def config(self, **params: Any) -> Any:
        """As Mininet's, and switch forwarding on, in this host's namespace only."""
        done = super().config(**params)
        self.cmd("sysctl", "-w", "net.ipv4.ip_forward=1")
        return done


class RoutedTopo(Topo):
    """Hypervisors on s1 and s2 (linked), the router r1 on s1 with 10.0.0.254, the clients behind it in 10.1.0.0/24.

    The guest needs the gateway: its scenario's ``guest.gateway`` is 10.0.0.254 unless it says otherwise.
    """

    def build(self, clients: int = 1) -> None:
        """:raises ValueError: no client, or more than 200."""
        if not 1 <= clients <= 200:
            raise ValueError(f"clients={clients}: from 1 to 200 clients")
        inner, second, outer = (self.addSwitch(f"s{number}") for number in (1, 2, 3))
        self.addLink(inner, second)
        self.addLink(self.addHost("h1", role="hypervisor"), inner)
        self.addLink(self.addHost("h2", role="hypervisor"), second)
        self.addLink(self.addHost("st1", role="storage"), inner)
        router = self.addHost("r1", cls=Router, role="router", ip=f"{GATEWAY}/16")
        self.addLink(router, inner)
        self.addLink(router, outer, params1={"ip": f"{OUTER_GATEWAY}/24"})
        for number in range(1, clients + 1):
            options = {"ip": f"10.1.0.{number}/24", "defaultRoute": f"via {OUTER_GATEWAY}"}
            self.addLink(self.addHost(f"c{number}", role="client", **options), outer)


topos = {"routed": RoutedTopo}
