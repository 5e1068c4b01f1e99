"""The graph of switches that a controller has found: distances, trees, ports. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Graph:
    """Switches with their ports, and the links between them.

    :ivar ports: datapath id -> its ports. :ivar links: (dpid, port) -> (dpid, port) at the other end, both ways.
    """

    ports: dict[int, set[int]] = field(default_factory=dict)
    links: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def add_link(self, here: tuple[int, int], there: tuple[int, int]) -> bool:
        """:returns: whether it is news."""
        if self.links.get(here) == there:
            return False
        self.remove_end(*here)
        self.remove_end(*there)
        self.links[here] = there
        self.links[there] = here
        return True

    def remove_end(self, dpid: int, port: int) -> bool:
        """The link at a port is gone. :returns: whether there was one."""
        there = self.links.pop((dpid, port), None)
        if there is None:
            return False
        self.links.pop(there, None)
        return True

    def remove_switch(self, dpid: int) -> None:
        for port in self.ports.pop(dpid, set()):
            self.remove_end(dpid, port)

    def host_ports(self, dpid: int) -> list[int]:
        """Ports with no switch behind them."""
        return sorted(port for port in self.ports.get(dpid, ()) if (dpid, port) not in self.links)

    def neighbours(self, dpid: int) -> dict[int, int]:
        """The switches beside a switch -> its lowest port towards each, by datapath id."""
        found: dict[int, int] = {}
        for port in sorted(self.ports.get(dpid, ()), reverse=True):
            there = self.links.get((dpid, port))
            if there is not None:
                found[there[0]] = port
        return dict(sorted(found.items()))

    def distances(self, dpid: int) -> dict[int, int]:
        """Links from every switch that can reach *dpid* to it."""
        away = {dpid: 0}
        waiting = deque([dpid])
        while waiting:
            here = waiting.popleft()
            for other in self.neighbours(here):
                if other not in away:
                    away[other] = away[here] + 1
                    waiting.append(other)
        return away

    def ports_towards(self, dpid: int) -> dict[int, int]:
        """For every other switch its port on a shortest way to *dpid*; of several the one to the lowest datapath id."""
        away = self.distances(dpid)
        found = {}
        for here, distance in away.items():
            if distance:
                beside = self.neighbours(here)
                found[here] = beside[min(other for other in beside if away.get(other) == distance - 1)]
        return found

    def tree_ports(self) -> dict[int, set[int]]:
        """For every switch its ports in one spanning tree of each part of the network, rooted at the lowest id."""
        found: dict[int, set[int]] = {dpid: set() for dpid in self.ports}
        done: set[int] = set()
        for root in sorted(self.ports):
            if root in done:
                continue
            for here, port in self.ports_towards(root).items():
                found[here].add(port)
                above, above_port = self.links[here, port]
                found[above].add(above_port)
            done |= set(self.distances(root))
        return found

    def tree_towards(self, dpid: int) -> dict[int, int]:
        """For every switch that can reach *dpid*, itself included (0), its port towards it by :meth:`tree_ports`."""
        tree = self.tree_ports()
        found = {dpid: 0}
        waiting = deque([dpid])
        while waiting:
            here = waiting.popleft()
            for port in sorted(tree.get(here, ())):
                other, back = self.links[here, port]
                if other not in found:
                    found[other] = back
                    waiting.append(other)
        return found


def layers(away: dict[int, int], only: Iterable[int]) -> list[list[int]]:
    """The switches of *only* by distance, the nearest first."""
    wanted = set(only)
    return [
        [dpid for dpid in sorted(wanted) if away.get(dpid) == distance]
        for distance in sorted({away[dpid] for dpid in wanted if dpid in away})
    ]
