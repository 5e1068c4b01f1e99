"""Which host-to-host paths to measure so that every link is seen; pure.

A link between a host and a switch cannot be measured alone at layer 3: the switch's end has no address, and one given
to it would change what the run's switch sees. So paths between hosts are measured, each the sum (delay) and the minimum
(rate) of its links, and a measurement is attributed to the links that it says something about: the round trip to all
links of the path, the rate to those whose rate is the path's lowest. A link that is faster than every path through it
has no rate of its own that could be measured; its result says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.link.impairment import DEFAULT_MTU, FRAME_BYTES, Direction

MAX_PAIRS = 400


@dataclass(frozen=True)
class Edge:
    """A link of the graph. ``forward`` is from *first* to *second*."""

    name: str
    first: str
    second: str
    forward: Direction
    backward: Direction


@dataclass(frozen=True)
class Hop:
    """A link as a path crosses it; ``reverse`` when from its second node to its first."""

    edge: Edge
    reverse: bool

    @property
    def there(self) -> Direction:
        return self.edge.backward if self.reverse else self.edge.forward

    @property
    def back(self) -> Direction:
        return self.edge.forward if self.reverse else self.edge.backward


@dataclass(frozen=True)
class Route:
    """From host *start* to host *end*."""

    start: str
    end: str
    hops: tuple[Hop, ...]

    @property
    def name(self) -> str:
        nodes = [self.start]
        nodes += [hop.edge.first if hop.reverse else hop.edge.second for hop in self.hops]
        return "-".join(nodes)

    @property
    def round_trip_ns(self) -> int:
        """What was asked: all delays there and back."""
        return sum(hop.there.delay_ns + hop.back.delay_ns for hop in self.hops)

    @property
    def jitter_ns(self) -> int:
        """How far the round trip may deviate by jitter that was asked for."""
        return sum(hop.there.jitter_ns + hop.back.jitter_ns for hop in self.hops)

    @property
    def mtu(self) -> int:
        """The largest packet that all of its links carry."""
        return min((hop.there.mtu for hop in self.hops), default=DEFAULT_MTU)

    @property
    def frame_bytes(self) -> int:
        """A full-size frame on it."""
        return min((hop.there.frame_bytes for hop in self.hops), default=FRAME_BYTES)

    def rate_bps(self, *, back: bool) -> int:
        """The lowest rate of one direction; 0 when nothing on it is shaped."""
        rates = [self._direction(hop, back).rate_bps for hop in self.hops]
        return min((rate for rate in rates if rate), default=0)

    def loss(self, *, back: bool) -> float:
        """The probability that a frame is lost on its way in one direction."""
        kept = 1.0
        for hop in self.hops:
            kept *= 1 - self._direction(hop, back).loss
        return 1 - kept

    def queue_bytes(self, *, back: bool) -> int:
        """The queue of the bottleneck (the shortest of those with the lowest rate); 0 when nothing is shaped."""
        lowest = self.rate_bps(back=back)
        directions = [self._direction(hop, back) for hop in self.hops]
        return min((item.queue_bytes for item in directions if lowest and item.rate_bps == lowest), default=0)

    def bottlenecks(self, *, back: bool) -> set[tuple[str, bool]]:
        """(link, backward) of the links whose rate this direction of the path measures."""
        lowest = self.rate_bps(back=back)
        return {
            (hop.edge.name, hop.reverse != back)
            for hop in self.hops
            if lowest and self._direction(hop, back).rate_bps == lowest
        }

    @staticmethod
    def _direction(hop: Hop, back: bool) -> Direction:
        return hop.back if back else hop.there


def find_paths(edges: Sequence[Edge], start: str, hosts: Iterable[str]) -> dict[str, Route]:
    """Shortest paths from *start* to all other *hosts*; hosts do not forward. In a network with loops the frames may
    take another path of the same length.
    """
    hosts = set(hosts)
    around: dict[str, list[tuple[str, Hop]]] = {}
    for edge in edges:
        around.setdefault(edge.first, []).append((edge.second, Hop(edge, reverse=False)))
        around.setdefault(edge.second, []).append((edge.first, Hop(edge, reverse=True)))
    reached: dict[str, tuple[Hop, ...]] = {start: ()}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        if node != start and node in hosts:
            continue
        for neighbour, hop in around.get(node, []):
            if neighbour not in reached:
                reached[neighbour] = (*reached[node], hop)
                waiting.append(neighbour)
    return {host: Route(start, host, reached[host]) for host in hosts if host != start and host in reached}


def choose_paths(edges: Sequence[Edge], hosts: Sequence[str]) -> list[Route]:
    """Few paths that together show every link's delay and, where that is possible, rate in both directions.

    Greedy: always the path that shows most of what is not yet shown. Beyond :data:`MAX_PAIRS` pairs of hosts only
    neighbours in order of name and of rate are looked at.
    """
    candidates = _candidates(edges, hosts)
    shows = {
        path: {(hop.edge.name, None) for hop in path.hops} | path.bottlenecks(back=False) | path.bottlenecks(back=True)
        for path in candidates
    }
    wanted = set().union(*shows.values()) if shows else set()
    chosen: list[Route] = []
    while wanted:
        best = max(candidates, key=lambda path: (len(shows[path] & wanted), -len(path.hops)))
        chosen.append(best)
        wanted -= shows[best]
    return chosen


def _candidates(edges: Sequence[Edge], hosts: Sequence[str]) -> list[Route]:
    found: list[Route] = []
    if len(hosts) * (len(hosts) - 1) // 2 <= MAX_PAIRS:
        for index, start in enumerate(hosts):
            paths = find_paths(edges, start, hosts)
            found += [paths[end] for end in hosts[index + 1 :] if end in paths]
        return found
    rates: dict[str, int] = {}
    for edge in edges:
        for node in (edge.first, edge.second):
            rates[node] = max(rates.get(node, 0), edge.forward.rate_bps)
    for order in (list(hosts), sorted(hosts, key=lambda host: rates.get(host, 0))):
        for start, end in zip(order, [*order[1:], order[0]], strict=True):
            path = find_paths(edges, start, hosts).get(end)
            if path is not None:
                found.append(path)
    return found


def rounds(paths: Sequence[Route], together_bps: int, together_hops: int = 10**9) -> list[list[Route]]:
    """Paths in groups that can be measured at the same time: no common link or host, and a bearable load in all.

    :param together_bps: what the machine certainly forwards; a faster path is measured alone.
    :param together_hops: over how many links in all it carries small frames without making any wait; a longer path is
        measured alone.
    """
    groups: list[list[Route]] = []
    for path in paths:
        for group in groups:
            bps, hops = sum(map(_load, group)) + _load(path), sum(len(one.hops) for one in [*group, path])
            if _apart(path, group) and bps <= together_bps and hops <= together_hops:
                group.append(path)
                break
        else:
            groups.append([path])
    return groups


def _apart(path: Route, group: Sequence[Route]) -> bool:
    links = {hop.edge.name for hop in path.hops}
    return all(
        not {path.start, path.end} & {other.start, other.end} and links.isdisjoint(hop.edge.name for hop in other.hops)
        for other in group
    )


def _load(path: Route) -> int:
    return max(path.rate_bps(back=False), path.rate_bps(back=True))  # what is unshaped gets no burst


def by_link(paths: Sequence[Route]) -> Mapping[str, list[Route]]:
    """Link name -> the chosen paths that cross it."""
    found: dict[str, list[Route]] = {}
    for path in paths:
        for hop in path.hops:
            found.setdefault(hop.edge.name, []).append(path)
    return found
