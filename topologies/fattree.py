"""A fat-tree of k-port switches. Also: ``mn --custom topologies/fattree.py --topo fat-tree,k=4``.

M. Al-Fares, A. Loukissas, A. Vahdat: A scalable, commodity data center network architecture, SIGCOMM 2008: k pods of
k/2 edge and k/2 aggregation switches, (k/2)^2 core switches, k^3/4 hosts.

::

    core          s1   s2   s3   s4
    aggregation   s5 s6 | s7 s8 | s9 s10 | s11 s12      core i of group g is linked to aggregation g of every pod
    edge          s13 s14 | ...                         every edge switch to every aggregation switch of its pod
    hosts         h1 c1 | ...                           k/2 on each edge switch
"""

from __future__ import annotations

from mininet.topo import Topo


class FatTreeTopo(Topo):
    """k even. h1 is the first host of the first pod, h2 of the last; the storage host is the last of all; all others
    are clients. Core switches first, then aggregation, then edge, pod by pod.

    It has loops: an app that knows the topology, or the spanning tree (*stp*), must open them.
    """

    def build(self, k: int = 4, stp: bool = False) -> None:
        """:raises ValueError: k odd, below 2 or above 8."""
        if k % 2 or not 2 <= k <= 8:
            raise ValueError(f"k={k}: an even number from 2 to 8")
        half = k // 2
        count = half * half + k * k
        names = [self.addSwitch(f"s{number}", stp=bool(stp)) for number in range(1, count + 1)]
        core, aggregation, edge = (
            names[: half * half],
            names[half * half :][: k * half],
            names[half * half + k * half :],
        )
        for pod in range(k):
            uppers, lowers = aggregation[pod * half :][:half], edge[pod * half :][:half]
            for group, upper in enumerate(uppers):
                for member in range(half):
                    self.addLink(core[group * half + member], upper)
                for lower in lowers:
                    self.addLink(upper, lower)
        places = [switch for switch in edge for _ in range(half)]
        first_of_last_pod = (k - 1) * half * half
        clients = 0
        for index, switch in enumerate(places):
            if index == 0:
                host = self.addHost("h1", role="hypervisor")
            elif index == max(first_of_last_pod, 1):
                host = self.addHost("h2", role="hypervisor")
            elif index == len(places) - 1 and k > 2:
                host = self.addHost("st1", role="storage")
            else:
                clients += 1
                host = self.addHost(f"c{clients}", role="client")
            self.addLink(host, switch)
        if not clients:  # k = 2 has two hosts only
            self.addLink(self.addHost("c1", role="client"), edge[0])


topos = {"fat-tree": FatTreeTopo}
