"""The shape of each built-in topology, and its drawing."""

from __future__ import annotations

import itertools
from collections import Counter
from xml.etree import ElementTree

import pytest

import topologies
from topologies import TopologyError, drawing, paths


@pytest.mark.parametrize("name", topologies.BUILTIN)
def test_the_hypervisors_can_reach_everybody_and_somebody_plays_each_part(name: str) -> None:
    topo = topologies.load(name)
    hosts = topo.hosts()
    roles = Counter(drawing.role(topo, host) for host in hosts)
    assert roles["hypervisor"] >= 2
    assert roles["client"] >= 1
    assert roles["storage"] == 1
    for first, second in itertools.product(["h1", "h2"], hosts):
        assert paths.path(topo, first, second) is not None, (first, second)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_a_fat_tree_has_the_papers_numbers(k: int) -> None:
    topo = topologies.load("fat-tree", {"k": k})
    assert len(topo.switches()) == k * k + k * k // 4
    assert len(topo.hosts()) == k**3 // 4 + (k == 2)
    ports = Counter(end for link in topo.links() for end in link if topo.isSwitch(end))
    assert max(ports.values()) <= k + (k == 2)
    if k == 4:
        assert len(topo.switches()) == 20
        assert len(topo.hosts()) == 16
        assert len(paths.switches_between(topo, "h1", "h2")) == 5  # edge, aggregation, core, aggregation, edge


def test_the_dumbbells_ends_share_one_link() -> None:
    topo = topologies.load("dumbbell,left=2,right=3")
    assert paths.switches_between(topo, "h1", "h2") == ["s1", "s2"]
    assert [host for host in topo.hosts() if ("s2", host) in topo.links() or (host, "s2") in topo.links()] == [
        *("c3", "c4", "c5", "h2", "st1")
    ]


def test_the_wide_area_lies_between_the_sites() -> None:
    assert paths.switches_between(topologies.load("wan"), "h1", "h2") == ["s1", "s3", "s4", "s2"]


def test_a_tree_has_its_hypervisors_at_different_leaves() -> None:
    topo = topologies.load("tree,depth=3,fanout=2")
    assert len(topo.switches()) == 7
    assert paths.switches_between(topo, "h1", "h2") == ["s4", "s2", "s1", "s3", "s7"]
    assert paths.find_loop(topo) is None


@pytest.mark.parametrize("switches", [3, 4, 7])
def test_a_ring_is_a_loop_with_a_spanning_tree(switches: int) -> None:
    topo = topologies.load("ring", {"switches": switches})
    assert len(paths.find_loop(topo) or []) == switches
    assert all(topo.nodeInfo(switch)["stp"] for switch in topo.switches())
    without = topologies.load("ring,stp=false", {"switches": switches})
    assert not any(without.nodeInfo(switch)["stp"] for switch in without.switches())


def test_hyper_v_networks_are_separate_or_converged() -> None:
    topo = topologies.load("hyperv")
    assert [topo.nodeInfo(switch)["network"] for switch in topo.switches()] == [
        *("vm", "migration", "storage", "management")
    ]
    assert paths.neighbours(topo)["h1"] == ["s1", "s2", "s3", "s4"]
    purposes = [info["params1"]["network"] for _a, _b, info in topo.links(withInfo=True) if "params1" in info]
    assert Counter(purposes) == {"migration": 2, "storage": 2, "management": 3}
    assert topologies.load("hyperv,converged=true").switches() == ["s1"]


def test_the_gateway_is_between_the_clients_and_the_guest() -> None:
    topo = topologies.load("routed")
    assert paths.path(topo, "c1", "h2") == ["c1", "s3", "r1", "s1", "s2", "h2"]


def test_bonded_links_are_no_loop() -> None:
    topo = topologies.load("bond,uplinks=3")
    assert paths.find_loop(topo) is None
    assert len(paths.neighbours(topo)["s2"]) == 5
    assert paths.switches_between(topo, "h1", "h2") == ["s2", "s1"]


def test_equally_short_paths_turn_to_the_lowest_switch_and_make_a_tree() -> None:
    topo = topologies.load("leaf-spine,spines=3,leaves=4,clients=4")
    for host in topo.hosts():
        if host != "h2":
            assert "s2" not in paths.switches_between(topo, host, "h2")
            assert "s3" not in paths.switches_between(topo, host, "h2")
    way = paths.path(topo, "h1", "h2", [frozenset(("s1", "s4"))])
    assert way == ["h1", "s4", "s2", "s7", "h2"]
    topo = topologies.load("fat-tree")
    for host in topo.hosts():
        for number, node in enumerate(way := paths.path(topo, host, "h2") or []):
            assert paths.path(topo, node, "h2") == way[number:]


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "tree,depth=0",
            "tree,depth=30",
            "tree,fanout=1",
            "ring,switches=2",
            "dumbbell,left=0",
            "leaf-spine,leaves=1",
        ),
        *("fat-tree,k=3", "fat-tree,k=10", "wan,clients=0", "hyperv,hypervisors=1", "routed,clients=0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(TopologyError, match=r"at least|from|even"):
        topologies.load(spec)


@pytest.mark.parametrize("name", topologies.BUILTIN)
def test_drawings_show_every_node_and_link_once(name: str) -> None:
    topo = topologies.load(name)
    root = ElementTree.fromstring(drawing.svg(topo, name))
    shapes = Counter(element.tag.rpartition("}")[2] for element in root.iter())
    assert shapes["rect"] == len(topo.nodes())
    assert shapes["line"] + shapes["path"] == len(topo.links())
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert sorted(texts) == sorted([*topo.nodes(), name])
    shown = drawing.text(topo)
    assert {*topo.nodes()} <= {*shown.replace("\n", " ").split()}
    assert ("it has loops" in shown) is (paths.find_loop(topo) is not None)
    places = list(drawing.layout(topo).place.values())
    assert len(set(places)) == len(places) == len(topo.nodes())
