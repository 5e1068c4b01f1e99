"""A spanning tree has settled when nothing changes any more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.host import spanning_tree

ROWS = """{"headings":["name","rstp_status"],"data":[
["s1-eth1",["map",[["rstp_port_role","Designated"],["rstp_port_state","Forwarding"]]]],
["s1-eth2",["map",[["rstp_port_role","Alternate"],["rstp_port_state","Discarding"]]]],
["s1-eth3",["map",[["rstp_port_role","Root"],["rstp_port_state","Learning"]]]],
["s1",["map",[]]]]}"""


def test_open_vswitch_says_what_each_port_does() -> None:
    ovs = SimpleNamespace(vsctl=lambda *_words: ROWS)
    assert spanning_tree.ovs_states(ovs) == {  # type: ignore[arg-type]
        "s1-eth1": "forwarding",
        "s1-eth2": "blocked",
        "s1-eth3": "changing",
    }


def test_it_is_waited_for_until_several_looks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spanning_tree, "_INTERVAL_NS", 1)
    looks = iter([{}, {"a": "changing"}, {"a": "forwarding", "b": "blocked"}, {"a": "blocked", "b": "forwarding"}])
    last = {"a": "forwarding", "b": "blocked"}
    assert spanning_tree.wait_settled(lambda: next(looks, last)) == {"b"}
