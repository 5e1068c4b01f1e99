"""Questions to a topology's graph, before anything is built: pure functions on a Mininet Topo."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection

from mininet.topo import Topo

from topologies.errors import TopologyError


def neighbours(topo: Topo) -> dict[str, list[str]]:
    """The nodes that each node is linked to; one that is linked twice stands there twice."""
    linked: dict[str, list[str]] = {str(node): [] for node in topo.nodes()}
    for first, second in topo.iterLinks():
        linked[first].append(second)
        linked[second].append(first)
    return linked


def path(topo: Topo, first: str, second: str, without: Collection[frozenset[str]] = ()) -> list[str] | None:
    """A shortest path between two nodes, ends included; None when there is none. Hosts do not forward, routers do.

    Of several equally short ones it is the one that turns to the switch with the lowest datapath id at each step seen
    from *first*, as the proactive controller does: all paths to one node make a tree.

    :param without: pairs of nodes whose link carries nothing (blocked by a spanning tree).
    :raises TopologyError: a node that the topology does not have.
    """
    linked = neighbours(topo)
    for node in (first, second):
        if node not in linked:
            raise TopologyError(f"node {node}: not in the topology; it has {', '.join(linked)}")
    away = {second: 0}
    waiting = deque([second])
    while waiting:
        node = waiting.popleft()
        if node != second and not _forwards(topo, node):
            continue
        for other in linked[node]:
            if other not in away and frozenset((node, other)) not in without:
                away[other] = away[node] + 1
                waiting.append(other)
    if first not in away:
        return None
    way = [first]
    while way[-1] != second:
        here = way[-1]
        nearer = [
            other
            for other in linked[here]
            if away.get(other) == away[here] - 1
            and (other == second or _forwards(topo, other))
            and frozenset((here, other)) not in without
        ]
        way.append(min(nearer, key=lambda other: (_dpid_or_none(topo, other) or 0, linked[here].index(other))))
    return way


def _forwards(topo: Topo, node: str) -> bool:
    return bool(topo.isSwitch(node)) or topo.nodeInfo(node).get("role") == "router"


def _dpid_or_none(topo: Topo, node: str) -> int | None:
    digits = re.search(r"\d+", node)
    told = topo.nodeInfo(node).get("dpid")
    try:
        return int(str(told).replace(":", ""), 16) if told is not None else int(digits[0]) if digits else None
    except ValueError:
        return None


def switches_between(topo: Topo, first: str, second: str) -> list[str]:
    """The switches on the way from one host to another, in order.

    :raises TopologyError: there is no way, or no such node.
    """
    way = path(topo, first, second)
    if way is None:
        raise TopologyError(f"no path between {first} and {second}")
    return [node for node in way if topo.isSwitch(node)]


def find_loop(topo: Topo) -> list[str] | None:
    """The switches of a loop, in order, or None. Two links between two switches are a loop.

    Without a spanning tree a broadcast goes round in it for ever. Hosts do not forward and close no loop; links that a
    switch bonds (option ``bond``, the switch that they lead to) are one.
    """
    linked = neighbours(topo)
    parent: dict[str, str | None] = {}
    for root in topo.switches():
        if root in parent:
            continue
        parent[root] = None
        waiting = [root]
        while waiting:
            node = waiting.pop()
            others = _once_where_bonded(topo, node, [other for other in linked[node] if topo.isSwitch(other)])
            came_by = parent[node]
            if came_by is not None:
                others.remove(came_by)  # that link, once
            for other in others:
                if other in parent:
                    return _joined(node, other, parent)
                parent[other] = node
                waiting.append(other)
    return None


def _once_where_bonded(topo: Topo, node: str, others: list[str]) -> list[str]:
    kept: list[str] = []
    for other in others:
        bonded = topo.nodeInfo(node).get("bond") == other or topo.nodeInfo(other).get("bond") == node
        if not (bonded and other in kept):
            kept.append(other)
    return kept


def has_spanning_tree(topo: Topo) -> bool:
    """Whether every switch takes part in a spanning tree (option ``stp``): then loops do no harm."""
    return all(topo.nodeInfo(switch).get("stp") for switch in topo.switches())


def _joined(node: str, other: str, parent: dict[str, str | None]) -> list[str]:
    """The loop that the link between two nodes of a tree closes."""
    up: list[str] = []
    walk: str | None = node
    while walk is not None:
        up.append(walk)
        walk = parent[walk]
    down: list[str] = []
    walk = other
    while walk is not None and walk not in up:
        down.append(walk)
        walk = parent[walk]
    top = up if walk is None else up[: up.index(walk) + 1]
    return [*top, *reversed(down)]


def switch_dpids(topo: Topo) -> dict[str, int]:
    """The datapath id of each switch, as Mininet gives it: its option ``dpid`` (hex), else the first digits of its
    name.

    :raises TopologyError: a switch has none, or two have the same.
    """
    dpids: dict[str, int] = {}
    for switch in topo.switches():
        told = topo.nodeInfo(switch).get("dpid")
        digits = re.search(r"\d+", switch)
        if told is None and digits is None:
            raise TopologyError(f"switch {switch}: give it digits in its name or an option dpid")
        try:
            dpid = int(str(told).replace(":", ""), 16) if told is not None else int(digits[0] if digits else "")
        except ValueError:
            raise TopologyError(f"switch {switch}: dpid {told!r} is no hexadecimal number") from None
        for other, taken in dpids.items():
            if taken == dpid:
                raise TopologyError(f"switches {other} and {switch} have the same dpid {dpid}: give one an option dpid")
        dpids[switch] = dpid
    return dpids
