"""Hosts with a network for each purpose. Also: ``mn --custom topologies/hyperv.py --topo hyperv``.

Microsoft recommends for Hyper-V that management, live migration, storage and the virtual machines have networks of
their own ("Network Recommendations for a Hyper-V Cluster in Windows Server 2012"), or shares of a converged one.

::

    separate                                converged
    h1 --- s1 --- h2   c1 on s1 (VMs)       h1 --- s1 --- h2
    h1 --- s2 --- h2   live migration              |
    h1 --- s3 --- h2   st1 on s3 (storage)      c1 st1
    h1 --- s4 --- h2   management
"""

from __future__ import annotations

from mininet.topo import Topo

NETWORKS = {"vm": "s1", "migration": "s2", "storage": "s3", "management": "s4"}
SUBNETS = {"migration": "10.251.0.{}/24", "storage": "10.252.0.{}/24", "management": "10.253.0.{}/24"}


class HyperVTopo(Topo):
    """h1, h2, ... with one network card in each network, in the order of :data:`NETWORKS`; the first is the guests'.

    A card beyond the first has its address and purpose in the link's ``params`` of the host (``ip``, ``network``).

    :param converged: everything on s1.
    """

    def build(self, hypervisors: int = 2, clients: int = 1, converged: bool = False) -> None:
        """:raises ValueError: fewer than 2 hypervisors, or no client."""
        if hypervisors < 2 or clients < 1:
            raise ValueError(f"hypervisors={hypervisors}, clients={clients}: at least 2 hypervisors and 1 client")
        names = ["vm"] if converged else list(NETWORKS)
        for name in names:
            self.addSwitch(NETWORKS[name], network="converged" if converged else name)
        for number in range(1, hypervisors + 1):
            host = self.addHost(f"h{number}", role="hypervisor")
            for name in names:
                self._plug(host, name, number)
        if converged:
            self.addLink(self.addHost("st1", role="storage"), NETWORKS["vm"])
        else:
            address = SUBNETS["storage"].format(hypervisors + 1)
            storage = self.addHost("st1", role="storage", ip=address)
            self.addLink(storage, NETWORKS["storage"])
            self._plug(storage, "management", hypervisors + 1)
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), NETWORKS["vm"])

    def _plug(self, host: str, name: str, number: int) -> None:
        params = {"params1": {"ip": SUBNETS[name].format(number), "network": name}} if name in SUBNETS else {}
        self.addLink(host, NETWORKS[name], **params)


topos = {"hyperv": HyperVTopo}
