"""The controller that knows the topology: at every instant of a move, no frame is lost or goes round."""

from __future__ import annotations

import itertools

import pytest
from fake_flow_table import arp, rarp
from network_lab import Lab

import topologies
from controllers import lldp
from controllers.activation_logic import ActivationNetwork
from controllers.graph import Graph, layers
from controllers.proactive_logic import ProactiveNetwork
from topologies.paths import path, switch_dpids

GUEST = "52:54:00:00:00:01"
ALL = ["single", "linear,switches=4", "tree,depth=3", "ring,switches=5", "dumbbell", "leaf-spine", "fat-tree", "wan"]


def name_of(dpid: int) -> str:
    return f"s{dpid}"


def mac_of(index: int) -> str:
    return f"02:00:00:00:00:{index:02x}"


@pytest.fixture(params=ALL)
def lab(request: pytest.FixtureRequest) -> Lab:
    topo = topologies.load(request.param)
    lab = Lab(topo, ProactiveNetwork(len(topo.switches()), name_of))
    lab.start()
    return lab


def settle(lab: Lab) -> dict[str, str]:
    """Every host and the guest at h1 have been heard. :returns: host -> its address."""
    macs = {host: mac_of(index + 1) for index, host in enumerate(lab.topo.hosts())}
    for host, mac in macs.items():
        lab.walk(host, arp(mac, "10.0.0.1", "10.0.0.2"))
        lab.confirm_all()
    lab.walk("h1", rarp(GUEST))
    lab.confirm_all()
    lab.tick(100)  # from the tree to the shortest ways
    return macs


def test_the_topology_is_found_and_nothing_is_flooded_before(lab: Lab) -> None:
    logic = lab.logic
    assert logic.ready
    assert logic.graph.links == lab.wires
    fresh = Lab(lab.topo, ProactiveNetwork(len(lab.topo.switches()), name_of))
    for dpid, table in fresh.tables.items():
        fresh.apply(fresh.logic.connected(0, dpid, sorted(table.ports)))
    assert fresh.walk("c1", rarp(mac_of(1))) == []


def test_a_broadcast_reaches_every_other_host_once(lab: Lab) -> None:
    for host in lab.topo.hosts():
        assert lab.walk(host, rarp(mac_of(9)), ask=False) == sorted(set(lab.topo.hosts()) - {host})


def test_known_addresses_go_the_way_that_the_bench_expects(lab: Lab) -> None:
    macs = settle(lab)
    dpids = switch_dpids(lab.topo)
    for here, there in itertools.permutations(lab.topo.hosts()[:6], 2):
        assert lab.talk(here, macs[here], macs[there]) == [there]
    for switch, dpid in dpids.items():
        following = (path(lab.topo, switch, "h2") or [])[1]
        ports, _copied = lab.tables[dpid].output(0, bytes.fromhex(macs["h2"].replace(":", "")) + bytes(6) + b"\x08\0")
        (port,) = ports
        assert lab.topo.ports[switch][port][0] == following


def test_no_host_gets_a_frame_twice_while_an_address_becomes_known(lab: Lab) -> None:
    """What has no flow yet is flooded, what has one goes the shortest way: both at once would meet at the new host."""
    hosts = lab.topo.hosts()
    macs = {host: mac_of(index + 1) for index, host in enumerate(hosts)}
    for host in hosts:
        others = [other for other in hosts if other != host]
        lab.apply(lab.logic.packet_in(lab.now_ns, *lab.place[host], arp(macs[host], "10.0.0.1", "10.0.0.2"), 0))
        for _ in range(4):
            while True:
                for other in others:
                    assert lab.talk(other, macs[other], macs[host], ask=False).count(host) == 1
                if not lab.confirm():
                    break
            lab.wait(100)
            lab.apply(lab.logic.tick(lab.now_ns))
        for other in others:
            assert lab.talk(other, macs[other], macs[host], ask=False) == [host]
    assert not [event for event in lab.seen if event.name == "mac_moved"]


def test_at_every_instant_of_a_move_frames_reach_the_old_or_the_new_place(lab: Lab) -> None:
    macs = settle(lab)
    lab.wait(2000)
    others = [host for host in lab.topo.hosts() if host not in ("h1", "h2")]
    lab.walk("h2", rarp(GUEST))
    instants = 0
    while True:
        for host in others:
            assert lab.talk(host, macs[host], GUEST, ask=False) in (["h1"], ["h2"])
        instants += 1
        if not lab.confirm():
            break
    for host in others:
        assert lab.talk(host, macs[host], GUEST) == ["h2"]
    moved = [event.data["switch"] for event in lab.seen if event.name == "mac_moved"]
    assert len(moved) == len(set(moved)) >= 1
    assert moved[0] == name_of(lab.place["h2"][0])  # the outermost switch, at the new place, first
    assert instants >= len(moved)


def test_every_order_of_steps_within_a_wave_is_safe(lab: Lab) -> None:
    """A switch may take its flow a moment before or after another of the same distance."""
    macs = settle(lab)
    lab.wait(2000)
    wave = lab.logic.packet_in(lab.now_ns, *lab.place["h2"], rarp(GUEST), 0)
    while wave:
        for at in reversed(wave):
            lab.apply([at])
            for host in lab.topo.hosts():
                if host not in ("h1", "h2"):
                    assert lab.talk(host, macs[host], GUEST, ask=False) in (["h1"], ["h2"])
        wave = []
        while lab.asked and not wave:
            wave = lab.logic.confirmed(lab.now_ns, *lab.asked.popleft())
    assert lab.talk("c1", macs["c1"], GUEST) == ["h2"]


def test_late_frames_from_the_old_place_move_nothing(lab: Lab) -> None:
    macs = settle(lab)
    lab.wait(2000)
    lab.walk("h2", rarp(GUEST))
    lab.confirm_all()
    lab.wait(5)
    lab.talk("h1", GUEST, macs["c1"])
    lab.confirm_all()
    assert lab.talk("c1", macs["c1"], GUEST) == ["h2"]
    lab.wait(3000)
    lab.walk("h1", rarp(GUEST))  # a real return
    lab.confirm_all()
    assert lab.talk("c1", macs["c1"], GUEST) == ["h1"]


def test_a_link_that_fails_is_gone_round() -> None:
    topo = topologies.load("ring,switches=5")
    lab = Lab(topo, ProactiveNetwork(5, name_of))
    lab.start()
    macs = settle(lab)
    (here, there) = next(pair for pair in lab.wires.items() if {pair[0][0], pair[1][0]} == {2, 3})
    for dpid, port in (here, there):
        lab.apply(lab.logic.port_changed(lab.now_ns, dpid, port, False))
        lab.wires.pop((dpid, port))
        lab.tables[dpid].ports -= {port}
    for host in topo.hosts():
        if host != "h2":
            assert lab.talk(host, macs[host], macs["h2"]) == ["h2"]
        assert lab.walk(host, rarp(mac_of(9)), ask=False) == sorted(set(topo.hosts()) - {host})


@pytest.mark.parametrize("dual", [False, True])
def test_a_port_waits_for_its_announcement(dual: bool) -> None:
    topo = topologies.load("linear,switches=3")
    dpids = {f"s{number}": number for number in (1, 2, 3)}
    lab = Lab(topo, ActivationNetwork(3, name_of, dpids.get, dual=dual, hold_ns=10**9))
    lab.start()
    macs = settle(lab)
    lab.wait(2000)
    dpid, port = lab.place["h2"]
    lab.order(order="expect", mac=GUEST, switch=name_of(dpid), port=port)
    lab.confirm_all()
    both = ["h1", "h2"] if dual else ["h1"]
    assert lab.talk("c1", macs["c1"], GUEST) == both
    assert lab.talk("h2", GUEST, macs["c1"]) == []  # not announced: it may not speak
    assert lab.talk("c1", macs["c1"], GUEST) == both
    assert lab.talk("h2", macs["h2"], macs["c1"]) == ["c1"]  # the hypervisor's own traffic goes on
    assert "c1" in lab.walk("h2", rarp(GUEST))
    lab.confirm_all()
    assert lab.talk("c1", macs["c1"], GUEST) == ["h2"]
    assert lab.talk("h2", GUEST, macs["c1"]) == ["c1"]
    assert [event.name for event in lab.seen if event.name.startswith("port_")] == ["port_blocked", "port_unblocked"]


def test_a_port_that_waits_in_vain_is_opened_again() -> None:
    topo = topologies.load("single")
    lab = Lab(topo, ActivationNetwork(1, name_of, {"s1": 1}.get, dual=True, hold_ns=10**9))
    lab.start()
    macs = settle(lab)
    lab.order(order="expect", mac=GUEST, switch="s1", port=lab.place["h2"][1])
    lab.order(order="forget", mac=GUEST)
    lab.confirm_all()
    assert lab.talk("c1", macs["c1"], GUEST) == ["h1"]
    lab.order(order="expect", mac=GUEST, switch="s9", port=1)
    assert lab.seen[-1].name == "order_refused"


def test_lldp_frames_say_where_they_left() -> None:
    frame = lldp.build(0xABC, 7)
    assert frame[:6] == bytes.fromhex("0180c200000e")
    assert frame[12:14] == b"\x88\xcc"
    assert len(frame) == 60
    assert lldp.parse(frame) == (0xABC, 7)
    for broken in (b"", frame[:20], frame[:12] + b"\x08\x00" + frame[14:], frame[:17] + b"x" + frame[18:]):
        assert lldp.parse(broken) is None


def test_graphs_have_distances_trees_and_layers() -> None:
    graph = Graph({1: {1, 2}, 2: {1, 2}, 3: {1, 2}})
    for here, there in (((1, 1), (2, 1)), ((2, 2), (3, 1)), ((3, 2), (1, 2))):
        assert graph.add_link(here, there)
        assert not graph.add_link(here, there)
    assert graph.distances(3) == {3: 0, 2: 1, 1: 1}
    assert graph.ports_towards(3) == {1: 2, 2: 2}
    assert graph.tree_ports() == {1: {1, 2}, 2: {1}, 3: {2}}
    assert layers(graph.distances(3), [1, 2, 3]) == [[3], [1, 2]]
    graph.remove_switch(2)
    assert graph.distances(3) == {3: 0, 1: 1}
    assert graph.host_ports(1) == [1]
