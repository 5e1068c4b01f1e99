"""A tree of switches, the hypervisors at its first and last leaf. Also: ``mn --custom topologies/tree.py --topo tree``.

::

              st1
               |
              s1
            /    \\
          s2      s3
         /  \\    /  \\
        h1  c1  c2   h2
"""

from __future__ import annotations

from mininet.topo import Topo


class TreeTopo(Topo):
    """*depth* levels of switches, each with *fanout* switches below it; s1 is the root.

    :param clients: c1, c2, ... go round the leaves, beginning with the first.
    """

    def build(self, depth: int = 2, fanout: int = 2, clients: int = 1) -> None:
        """:raises ValueError: no level, a fan-out below 2, no client, or more than 128 switches."""
        if depth < 1 or fanout < 2 or clients < 1 or sum(fanout**level for level in range(min(depth, 9))) > 128:
            given = f"depth={depth}, fanout={fanout}, clients={clients}"
            raise ValueError(f"{given}: at least 1 level, fan-out 2 and 1 client, and at most 128 switches")
        level = [self.addSwitch("s1")]
        self.addLink(self.addHost("st1", role="storage"), "s1")
        number = 1
        for _ in range(depth - 1):
            below = []
            for parent in level:
                for _ in range(fanout):
                    number += 1
                    below.append(self.addSwitch(f"s{number}"))
                    self.addLink(parent, below[-1])
            level = below
        self.addLink(self.addHost("h1", role="hypervisor"), level[0])
        self.addLink(self.addHost("h2", role="hypervisor"), level[-1])
        for client in range(clients):
            self.addLink(self.addHost(f"c{client + 1}", role="client"), level[client % len(level)])


topos = {"tree": TreeTopo}
