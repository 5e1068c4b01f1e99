"""Switches in a row, the hypervisors at its ends. Also: ``mn --custom topologies/linear.py --topo linear,switches=3``.

::

    h1   c1 st1            h2
     \\   |  /              |
        s1 ----- s2 ----- s3
"""

from __future__ import annotations

import itertools

from mininet.topo import Topo


class LinearTopo(Topo):
    """*switches* s1, s2, ... in a row; h1 at the first, h2 at the last.

    :param client_at: the number of the switch that the clients c1, ... are at.
    :param storage_at: the number of the switch that the storage host st1 is at.
    """

    def build(self, switches: int = 2, clients: int = 1, client_at: int = 1, storage_at: int = 1) -> None:
        """:raises ValueError: fewer than one switch, no client, or a place that is none of the switches."""
        if switches < 1 or clients < 1 or not {client_at, storage_at} <= set(range(1, switches + 1)):
            given = f"switches={switches}, clients={clients}, client_at={client_at}, storage_at={storage_at}"
            raise ValueError(f"{given}: at least 1 switch and 1 client, and places from 1 to {switches}")
        row = [self.addSwitch(f"s{number}") for number in range(1, switches + 1)]
        self.addLink(self.addHost("h1", role="hypervisor"), row[0])
        self.addLink(self.addHost("h2", role="hypervisor"), row[-1])
        self.addLink(self.addHost("st1", role="storage"), row[storage_at - 1])
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), row[client_at - 1])
        for left, right in itertools.pairwise(row):
            self.addLink(left, right)


topos = {"linear": LinearTopo}
