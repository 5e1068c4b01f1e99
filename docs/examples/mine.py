"""A topology of one's own, in Mininet's --custom convention: a client, two hypervisors, three switches in a row."""

from itertools import pairwise

from mininet.topo import Topo


class Row(Topo):
    """c1 - s1 - s2 - s3, a hypervisor at s2 and one at s3."""

    def build(self) -> None:
        switches = [self.addSwitch(f"s{number}") for number in (1, 2, 3)]
        for left, right in pairwise(switches):
            self.addLink(left, right)
        for host, switch in (("c1", "s1"), ("h1", "s2"), ("h2", "s3")):
            self.addHost(host, role="client" if host == "c1" else "hypervisor")
            self.addLink(host, switch)


topos = {"row": Row}
