"""Leaves and spines, each leaf linked to each spine. Also: ``mn --custom topologies/leafspine.py --topo leaf-spine``.

::

         s1      s2          spines
        / | \\  / | \\
      s3   s4   s5           leaves
      |    |    |
      h1   c1   h2
"""

from __future__ import annotations

from mininet.topo import Topo


class LeafSpineTopo(Topo):
    """Spines s1, ... then leaves; h1 on the first leaf, h2 on the last, clients round the leaves from the second.

    It has loops with more than one spine: an app that knows the topology, or the spanning tree (*stp*), must open them.
    """

    def build(self, spines: int = 2, leaves: int = 3, clients: int = 1, stp: bool = False) -> None:
        """:raises ValueError: no spine, fewer than 2 leaves, or no client."""
        if spines < 1 or leaves < 2 or clients < 1:
            raise ValueError(
                f"spines={spines}, leaves={leaves}, clients={clients}: at least 1 spine, 2 leaves and 1 client"
            )
        names = [self.addSwitch(f"s{number}", stp=bool(stp)) for number in range(1, spines + leaves + 1)]
        above, below = names[:spines], names[spines:]
        for leaf in below:
            for spine in above:
                self.addLink(leaf, spine)
        self.addLink(self.addHost("h1", role="hypervisor"), below[0])
        self.addLink(self.addHost("h2", role="hypervisor"), below[-1])
        self.addLink(self.addHost("st1", role="storage"), below[0])
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), below[number % leaves])


topos = {"leaf-spine": LeafSpineTopo}
