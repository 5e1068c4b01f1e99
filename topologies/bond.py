"""A hypervisor's virtual switch with two bonded uplinks. Also: ``mn --custom topologies/bond.py --topo bond``.

::

    h1 --+
         s2 ====== s1 -- h2
    c2 --+  bond   |
                c1 st1

s2 is the virtual switch inside the first hypervisor: h1 is where its guests run, c2 a neighbour on the same host. Its
uplinks are one bond in Open vSwitch's mode balance-slb, which needs no help of s1 and therefore has to tell frames that
come back to it (reflections of its own broadcasts) from those of a guest that has moved away: a frame from an address
that it knows at home is a reflection, unless it is a gratuitous ARP (Open vSwitch, "Bonding" in its documentation).
"""

from __future__ import annotations

from mininet.topo import Topo


class BondTopo(Topo):
    """:param uplinks: of the bond."""

    def build(self, uplinks: int = 2) -> None:
        """:raises ValueError: no number of uplinks from 2 to 4."""
        if not 2 <= uplinks <= 4:
            raise ValueError(f"uplinks={uplinks}: from 2 to 4")
        upstream, inside = self.addSwitch("s1"), self.addSwitch("s2", bond="s1")
        for _ in range(uplinks):
            self.addLink(inside, upstream)
        self.addLink(self.addHost("h1", role="hypervisor"), inside)
        self.addLink(self.addHost("h2", role="hypervisor"), upstream)
        self.addLink(self.addHost("st1", role="storage"), upstream)
        self.addLink(self.addHost("c1", role="client"), upstream)
        self.addLink(self.addHost("c2", role="client"), inside)


topos = {"bond": BondTopo}
