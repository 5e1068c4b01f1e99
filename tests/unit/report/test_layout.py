from __future__ import annotations

import math

from bench.report.layout import edges_of, positions


def test_links_name_their_ends() -> None:
    assert edges_of(["h1-s1", "s1-s2", "broken", "-x", "a-a"]) == [("h1", "s1"), ("s1", "s2")]


def test_nodes_come_apart_and_stay_within() -> None:
    edges = [("s1", f"h{number}") for number in range(6)] + [("s1", "s2"), *(("s2", f"c{n}") for n in range(6))]
    nodes = list(dict.fromkeys(node for edge in edges for node in edge))
    places = positions(nodes, edges)
    assert all(0 <= value <= 1 for place in places.values() for value in place)
    apart = [math.dist(places[a], places[b]) for a in nodes for b in nodes if a < b]
    assert min(apart) > 0.05
    assert places == positions(nodes, edges)


def test_even_the_smallest_networks_are_drawn() -> None:
    assert positions([], []) == {}
    assert positions(["a"], []) == {"a": (0.5, 0.5)}
    assert set(positions(["a", "b"], [("a", "b")])) == {"a", "b"}
    assert set(positions(["a", "b", "c", "d"], [("a", "b"), ("c", "d")])) == {"a", "b", "c", "d"}
