"""Two switches and one link that everything shares. Also: ``mn --custom topologies/dumbbell.py --topo dumbbell``.

::

    h1 --+              +-- h2
    c1 --s1 ---------- s2-- c2
                        +-- st1
"""

from __future__ import annotations

from mininet.topo import Topo


class DumbbellTopo(Topo):
    """h1 and *left* clients on s1, h2, *right* clients and the storage host on s2; the link s1-s2 is the bottleneck."""

    def build(self, left: int = 1, right: int = 1) -> None:
        """:raises ValueError: a side without a client."""
        if left < 1 or right < 1:
            raise ValueError(f"left={left}, right={right}: at least 1 client on each side")
        sides = self.addSwitch("s1"), self.addSwitch("s2")
        self.addLink(*sides)
        for side, hypervisor in zip(sides, ("h1", "h2"), strict=True):
            self.addLink(self.addHost(hypervisor, role="hypervisor"), side)
        self.addLink(self.addHost("st1", role="storage"), sides[1])
        for number in range(1, left + right + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), sides[0] if number <= left else sides[1])


topos = {"dumbbell": DumbbellTopo}
