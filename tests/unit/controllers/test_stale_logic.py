"""The naive switch goes on sending to the old port until a timeout: that is what it is for."""

from __future__ import annotations

import pytest
from fake_flow_table import arp, data_frame, rarp
from network_lab import Lab

import topologies
from controllers import orders
from controllers.stale_logic import StaleNetwork

GUEST, CLIENT = "52:54:00:00:00:01", "02:00:00:00:00:01"


@pytest.fixture
def lab() -> Lab:
    lab = Lab(topologies.load("single"), StaleNetwork(10, 5, lambda dpid: f"s{dpid}"))
    for dpid, table in lab.tables.items():
        lab.apply(lab.logic.connected(0, dpid, sorted(table.ports)))
    lab.walk("h1", rarp(GUEST))
    lab.walk("c1", arp(CLIENT, "10.0.0.3", "10.0.0.3"))
    return lab


def test_a_move_is_noticed_and_changes_nothing_until_the_hard_timeout(lab: Lab) -> None:
    frame = data_frame(CLIENT, GUEST)
    lab.walk("c1", frame)
    assert lab.walk("c1", frame) == ["h1"]
    lab.walk("h2", rarp(GUEST))
    assert [event.data["port"] for event in lab.seen if event.name == "mac_noticed"][-1] == lab.place["h2"][1]
    lab.wait(4900)
    assert lab.walk("c1", frame) == ["h1"]  # the guest has been gone for 4.9 s
    lab.wait(200)
    assert "h2" in lab.walk("c1", frame)  # the flow is gone: flooded, and asked
    assert lab.walk("c1", frame) == ["h2"]


def test_orders_come_as_lines_and_nonsense_is_left_out() -> None:
    heard: list[object] = []
    orders.subscribe(heard.append)
    try:
        lines = orders.Lines()
        lines.feed(b'{"order": "expect", "mac"')
        lines.feed(b': "x"}\nnonsense\n{"event": 1}\n[1]\n{"order": "forget"}\n')
        assert heard == [{"order": "expect", "mac": "x"}, {"order": "forget"}]
        lines.feed(b"x" * (orders.MAX_LINE_BYTES + 1))
        lines.feed(b'\n{"order": "a"}\n')
        assert heard[-1] == {"order": "a"}
    finally:
        orders._subscribers.remove(heard.append)
