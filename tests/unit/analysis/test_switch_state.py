"""When a switch's own tables were right for good, and whether the witnesses agree."""

from __future__ import annotations

from bench.analysis.switch_state import TOLERANCE_NS, disagreement, neighbour_changes, state_of
from bench.clock import NS_PER_MS
from bench.timeline import Event

MAC = "52:54:00:00:00:01"


def fdb(ms: float, port: str, switch: str = "s1", mac: str = MAC) -> Event:
    told = {"switch": switch, "mac": mac, "vlan": 0, "port": port, "how": "poll"}
    return Event(round(ms * NS_PER_MS), "probe.switches", "fdb_changed", told)


def flow(ms: float, *ports: str, event: str = "modified") -> Event:
    told = {"switch": "s1", "event": event, "mac": MAC, "outputs": list(ports)}
    return Event(round(ms * NS_PER_MS), "probe.switches", "flow_changed", told)


def test_state_settles_with_the_first_change_that_lasts() -> None:
    events = [fdb(5, "s1-eth1"), fdb(12, "s1-eth2"), fdb(13, "s1-eth2", "s2"), fdb(14, "s1-eth2", mac="other")]
    state = state_of("s1", "s1-eth2", MAC, events, 10 * NS_PER_MS)
    assert (state.settled_ns, state.how, state.changes, state.vlan) == (12 * NS_PER_MS, "poll", 1, 0)


def test_a_flap_unsettles_it() -> None:
    events = [fdb(12, "s1-eth2"), fdb(13, "s1-eth1")]
    assert state_of("s1", "s1-eth2", MAC, events, 0).settled_ns is None
    events.append(fdb(500, "s1-eth2"))
    state = state_of("s1", "s1-eth2", MAC, events, 0)
    assert (state.settled_ns, state.changes) == (500 * NS_PER_MS, 3)


def test_a_flow_that_goes_to_both_places_is_not_settled() -> None:
    events = [flow(1, "s1-eth1", "s1-eth2"), flow(4, "s1-eth2"), flow(6, "s1-eth1", event="deleted")]
    state = state_of("s1", "s1-eth2", MAC, events, 0)
    assert (state.settled_ns, state.how) == (4 * NS_PER_MS, "flow monitor")


def test_witnesses_agree_within_the_tolerance_or_are_named() -> None:
    at, off = 100 * NS_PER_MS, TOLERANCE_NS + NS_PER_MS
    assert disagreement(at, at - NS_PER_MS, [at], [at - off]) == ""
    assert disagreement(None, None, [1], [2]) == ""
    assert "control plane and switch state by 6.0 ms" in disagreement(at, at - off, [], [])
    assert "went elsewhere 6.0 ms later" in disagreement(None, at, [at], [at + off])
    assert "went right 6.0 ms earlier" in disagreement(None, at, [at - off], [])
    assert "control plane and frames" in disagreement(at, None, [at], [at + off])


def test_neighbours_are_those_after_the_resume() -> None:
    told = {"host": "c1", "ip": "10.0.1.1", "mac": MAC, "state": "reachable"}
    events = [Event(t_ns, "probe.switches", "neighbour_changed", told) for t_ns in (1, 9)]
    assert [change.t_ns for change in neighbour_changes(events, 5)] == [9]
