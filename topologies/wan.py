"""Two sites and the wide area between them. Also: ``mn --custom topologies/wan.py --topo wan``.

::

    site A                                   site B
    h1 c1 st1                                h2 c2
     \\ | /                                   \\ |
      s1 --- s3 ====== links."s3-s4" ====== s4 --- s2
"""

from __future__ import annotations

from mininet.topo import Topo


class WanTopo(Topo):
    """A switch s1, s2 for each site, and an edge s3, s4; give the link s3-s4 the delay of the wide area.

    :param clients: at each site: c1, ... at the first, the following numbers at the second.
    """

    def build(self, clients: int = 1) -> None:
        """:raises ValueError: no client."""
        if clients < 1:
            raise ValueError(f"clients={clients}: at least 1 client at each site")
        sites = self.addSwitch("s1"), self.addSwitch("s2")
        edges = self.addSwitch("s3"), self.addSwitch("s4")
        for number, (site, edge) in enumerate(zip(sites, edges, strict=True), 1):
            self.addLink(site, edge)
            self.addLink(self.addHost(f"h{number}", role="hypervisor"), site)
        self.addLink(*edges)
        self.addLink(self.addHost("st1", role="storage"), sites[0])
        for number in range(1, 2 * clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), sites[number > clients])


topos = {"wan": WanTopo}
