"""Which switches share Open vSwitch daemons."""

from __future__ import annotations

import pytest

from bench.host.ovs_daemons import FEW_PORTS, MOST_DAEMONS, spread


def test_few_ports_share_one_daemon() -> None:
    assert spread({"s1": 4, "s2": 2}) == [["s1", "s2"]]
    assert spread({"s1": FEW_PORTS, "s2": 0}) == [["s1", "s2"]]


def test_there_is_a_daemon_without_any_switch() -> None:
    assert spread({}) == [[]]


def test_a_fat_tree_has_a_daemon_for_each_switch() -> None:
    ports = {f"s{number}": 4 for number in range(1, 21)}
    assert spread(ports) == [[name] for name in ports]


@pytest.mark.parametrize("count", [MOST_DAEMONS, MOST_DAEMONS + 1, 2 * MOST_DAEMONS, 80, 200])
def test_every_switch_has_one_daemon_and_there_are_not_too_many(count: int) -> None:
    names = [f"s{number}" for number in range(1, count + 1)]
    groups = spread(dict.fromkeys(names, 3))
    assert [name for group in groups for name in group] == names
    assert len(groups) <= MOST_DAEMONS
    assert max(map(len, groups)) - min(map(len, groups)) < max(map(len, groups))
