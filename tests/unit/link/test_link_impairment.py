"""From a scenario's link to two directions, and the choice of mechanism."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import LinkError
from bench.link.impairment import MAX_HELD_BYTES, MIN_HELD_BYTES, Direction, from_spec
from bench.link.links import BenchLink, End, Wire, choose_wire
from bench.scenario import LinkSpec, Scenario

MS = 10**6


def directions(**values: Any) -> tuple[Direction, Direction]:
    return from_spec(LinkSpec.model_validate(values))


def test_both_directions_are_alike_without_reverse() -> None:
    forward, backward = directions(bandwidth="1Gbit", delay="0.2ms", jitter="0.1ms", loss=0.01, queue=7)
    assert forward == backward == Direction(10**9, MS // 5, MS // 10, 0.01, 7)


def test_reverse_overrides_what_it_names() -> None:
    forward, backward = directions(delay="5ms", jitter="2ms", reverse={"bandwidth": "10Mbit", "delay": "1ms"})
    assert forward == Direction(10**9, 5 * MS, 2 * MS)
    assert backward == Direction(10**7, MS, MS)


def test_reverse_may_undo() -> None:
    _, backward = directions(delay="5ms", loss=0.5, reverse={"bandwidth": "unlimited", "delay": "0ms", "loss": 0.0})
    assert backward == Direction(0, 0, 0, 0.0)


def test_a_link_named_the_other_way_round_keeps_its_directions() -> None:
    link = LinkSpec.model_validate({"delay": "5ms", "reverse": {"delay": "1ms", "queue": 9}})
    scenario = Scenario(links={"s1-h1": link})
    assert scenario.link("s1", "h1") == link
    forward, backward = from_spec(link)
    assert from_spec(scenario.link("h1", "s1")) == (backward, forward)


def test_held_memory_grows_with_the_wire_and_is_bounded() -> None:
    assert Direction(10**9, MS).held_limit_bytes == MIN_HELD_BYTES
    assert Direction(10**10, 100 * MS).held_limit_bytes == 2 * 125_000_000
    assert Direction(400 * 10**9, 60_000 * MS).held_limit_bytes == MAX_HELD_BYTES


@pytest.mark.parametrize(
    ("direction", "netem", "tun", "wire"),
    [
        (Direction(10**9), False, False, "veth"),
        (Direction(10**9, MS), True, True, "netem"),
        (Direction(10**9, MS), False, True, "delay-line"),
        (Direction(10**9, MS, MS), True, True, "delay-line"),
        (Direction(10**9, 0, 0, 0.1), True, True, "delay-line"),
        (Direction(10**9, 0, 0, 0.1), True, False, "netem"),
        (Direction(10**9, MS, queue_packets=10), True, True, "delay-line"),
    ],
)
def test_the_wire(direction: Direction, netem: bool, tun: bool, wire: Wire) -> None:
    assert choose_wire(direction, Direction(10**9), netem=netem, tun=tun) == wire


def test_a_kernel_with_neither_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(LinkError, match="modprobe"):
        choose_wire(Direction(0, MS), Direction(), netem=False, tun=False)


@pytest.mark.parametrize(
    ("wire", "forward", "backward", "name"),
    [
        ("veth", Direction(), Direction(), "none"),
        ("veth", Direction(10**9), Direction(), "htb"),
        ("netem", Direction(10**9, MS), Direction(10**9, MS), "htb+netem"),
        ("delay-line", Direction(10**9, MS), Direction(10**9, MS), "htb+delay-line"),
        ("delay-line", Direction(10**9, MS), Direction(10**9, queue_packets=5), "htb/tbf+delay-line"),
        ("delay-line", Direction(0, MS), Direction(), "delay-line"),
    ],
)
def test_the_mechanism_is_derived(wire: Wire, forward: Direction, backward: Direction, name: str) -> None:
    ends = (End("h1", "h1-eth0", 1), End("s1", "s1-eth1", None))
    assert BenchLink("h1-s1", ends, wire, (forward, backward)).mechanism == name
