"""One switch, everything on it. Also: ``mn --custom topologies/single.py --topo single,clients=2``.

::

    h1 --+
    h2 --+
         s1
    st1 -+
    c1 --+
"""

from __future__ import annotations

from mininet.topo import Topo


class SingleTopo(Topo):
    """*hypervisors* h1, h2, ..., the storage host st1 and *clients* c1, ... on the switch s1."""

    def build(self, hypervisors: int = 2, clients: int = 1) -> None:
        """:raises ValueError: fewer than two hypervisors, or no client."""
        if hypervisors < 2 or clients < 1:
            raise ValueError(f"hypervisors={hypervisors}, clients={clients}: at least 2 hypervisors and 1 client")
        switch = self.addSwitch("s1")
        for number in range(1, hypervisors + 1):
            self.addLink(self.addHost(f"h{number}", role="hypervisor"), switch)
        self.addLink(self.addHost("st1", role="storage"), switch)
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), switch)


topos = {"single": SingleTopo}
