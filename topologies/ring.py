"""A ring of switches with a spanning tree. Also: ``mn --custom topologies/ring.py --topo ring,switches=5``.

::

        c1        h1
         \\       /
          s1 --- s2
          |      |
          s4 --- s3
         /       \\
       st1        h2
"""

from __future__ import annotations

from mininet.topo import Topo


class RingTopo(Topo):
    """*switches* s1, s2, ... in a ring; the clients at s1, h1 at s2, h2 opposite, the storage host at the last.

    :param stp: let the switches run a spanning tree, which opens the ring; without it a controller has to.
    """

    def build(self, switches: int = 4, clients: int = 1, stp: bool = True) -> None:
        """:raises ValueError: fewer than 3 switches, or no client."""
        if switches < 3 or clients < 1:
            raise ValueError(f"switches={switches}, clients={clients}: at least 3 switches and 1 client")
        ring = [self.addSwitch(f"s{number}", stp=bool(stp)) for number in range(1, switches + 1)]
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), ring[0])
        self.addLink(self.addHost("h1", role="hypervisor"), ring[1])
        self.addLink(self.addHost("h2", role="hypervisor"), ring[switches // 2 if switches // 2 != 1 else 2])
        self.addLink(self.addHost("st1", role="storage"), ring[-1])
        for index, switch in enumerate(ring):
            self.addLink(switch, ring[(index + 1) % switches])


topos = {"ring": RingTopo}
