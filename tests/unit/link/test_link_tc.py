"""tc arguments and read-back: what is built parses back to what was asked, over the whole range."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import LinkError
from bench.link import tc
from bench.link.impairment import FRAME_BYTES, Direction

RATES = st.integers(8_000, 400 * 10**9)
DELAYS = st.integers(0, 60 * 10**9)
DIRECTIONS = st.builds(
    Direction,
    rate_bps=st.one_of(st.just(0), RATES),
    delay_ns=DELAYS,
    jitter_ns=st.integers(0, 10**6),
    loss=st.floats(0, 1),
    queue_packets=st.integers(1, 1_000_000),
)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def kernel(commands: list[list[str]]) -> tuple[str, str]:
    """What a kernel with iproute2 6.1 would print after *commands*: the fake that read-back is tested with."""
    qdiscs: list[dict[str, Any]] = []
    classes = ""
    for command in commands:
        where = {"root": True} if "root" in command else {"parent": option(command, "parent")}
        if command[0] == "class":
            rate = int(option(command, "rate").removesuffix("bit"))
            unit = next(
                name for name, size in (("Gbit", 10**9), ("Mbit", 10**6), ("Kbit", 10**3), ("bit", 1)) if rate >= size
            )
            size = {"Gbit": 10**9, "Mbit": 10**6, "Kbit": 10**3, "bit": 1}[unit]
            while rate % size and rate < 1000 * size:
                size //= 1000
            unit = {10**9: "Gbit", 10**6: "Mbit", 10**3: "Kbit", 1: "bit"}[size]
            classes = (
                f"class htb 1:1 root leaf 10: prio 0 rate {rate // size}{unit} ceil {rate // size}{unit} burst 3028b\n"
            )
            continue
        kind = next(word for word in ("htb", "tbf", "bfifo", "netem") if word in command)
        options: dict[str, Any] = {}
        if kind == "bfifo":
            options = {"limit": int(option(command, "limit"))}
        elif kind == "tbf":
            options = {
                "rate": int(option(command, "rate").removesuffix("bit")) // 8,
                "burst": int(option(command, "burst")),
            }
        elif kind == "netem":
            index = command.index("delay")
            times = [
                int(word.removesuffix("ns")) / 1e9 for word in command[index + 1 : index + 3] if word.endswith("ns")
            ]
            options = {"limit": int(option(command, "limit")), "delay": {"delay": times[0], "jitter": sum(times[1:])}}
            if "loss" in command:
                options["loss-random"] = {"loss": float(option(command, "loss").removesuffix("%")) / 100}
        qdiscs.append({"kind": kind, "handle": option(command, "handle"), **where, "options": options})
    return json.dumps(qdiscs), classes


@given(DIRECTIONS, st.booleans())
def test_what_is_built_reads_back_as_asked(direction: Direction, netem: bool) -> None:
    applied = tc.parse(*kernel(tc.build("h1-eth0", direction, netem=netem)))
    assert tc.differences(direction, applied, netem=netem) == []


@given(DIRECTIONS, st.booleans())
def test_commands_are_words(direction: Direction, netem: bool) -> None:
    """They are joined for ``tc -batch``, so no word may hold a space, and no number an exponent."""
    for command in tc.build("h1-eth0", direction, netem=netem):
        assert all(word and " " not in word and "e-" not in word for word in command)
        assert option(command, "dev") == "h1-eth0"


@given(RATES, st.integers(1, 1_000_000))
def test_a_shaped_link_lets_every_segment_pass(rate_bps: int, queue_packets: int) -> None:
    direction = Direction(rate_bps, queue_packets=queue_packets)
    commands = tc.build("x", direction, netem=False)
    assert option(commands[-1], "limit") == str(queue_packets * FRAME_BYTES)
    burst = tc.burst_bytes(direction)
    assert burst >= 2 * FRAME_BYTES
    if tc.shaper_for(direction) == "htb":
        assert direction.queue_bytes >= 2 * tc.SEGMENT_BYTES
    elif queue_packets >= 4:  # what tbf does not cut up fits the queue
        assert 2 * burst <= direction.queue_bytes


@given(RATES)
def test_htb_never_computes_its_quantum(rate_bps: int) -> None:
    shape = tc.build("x", Direction(rate_bps), netem=False)[1]
    assert 1000 <= int(option(shape, "quantum")) <= 200_000
    assert option(shape, "rate") == option(shape, "ceil") == f"{rate_bps}bit"


def test_unshaped_and_undelayed_is_nothing() -> None:
    assert tc.build("x", Direction(), netem=True) == []
    assert tc.differences(Direction(), tc.parse("[]", ""), netem=True) == []


def test_netem_stands_before_the_shaper_and_keeps_the_order() -> None:
    netem, htb, _shape, _queue = tc.build("x", Direction(10**9, 10**6, 10**5), netem=True)
    assert "root" in netem
    assert option(htb, "parent") == "5:1"
    assert option(netem, "rate") == tc.IN_ORDER_RATE


def test_the_delay_line_leaves_netem_out() -> None:
    assert not any("netem" in command for command in tc.build("x", Direction(10**9, 10**6), netem=False))


@pytest.mark.parametrize(
    ("classes", "rate_bps"),
    [
        ("class htb 1:1 root leaf 10: prio 0 rate 1Gbit ceil 1Gbit burst 31125b cburst 31125b \n", 10**9),
        ("class htb 1:1 root leaf 10: prio 0 rate 25Gbit ceil 25Gbit burst 778125b cburst 778125b \n", 25 * 10**9),
        ("class htb 1:1 root leaf 10: prio 0 rate 8Kbit ceil 8Kbit burst 3028b cburst 3028b \n", 8000),
        ('[{"class":"htb","handle":"1:1","root":true,"leaf":"10:","prio":0,"rate":125000000,"ceil":125000000}]', 10**9),
        ("", 0),
    ],
)
def test_both_forms_of_class_output_are_read(classes: str, rate_bps: int) -> None:
    qdiscs = '[{"kind":"htb","handle":"1:","root":true,"refcnt":3,"options":{"r2q":10,"default":"0x1"}}]'
    assert tc.parse(qdiscs, classes).rate_bps == rate_bps


def test_deviations_are_named() -> None:
    asked = Direction(10**9, 10**6)
    found = tc.differences(asked, tc.Applied("htb", 10**8, 1000), netem=True)
    assert found == [
        "rate 100000000 bit/s instead of 1000000000 bit/s",
        "queue 1000 bytes instead of 1514000 bytes",
        "netem is missing",
    ]


@pytest.mark.parametrize("text", ["not JSON", '{"kind":"htb"}', "[1]"])
def test_output_that_is_no_list_of_objects_is_an_error(text: str) -> None:
    with pytest.raises(LinkError):
        tc.parse(text, "")


def test_only_added_root_qdiscs_are_to_be_removed() -> None:
    assert not tc.is_ours('[{"kind":"noqueue","handle":"0:","root":true,"refcnt":2,"options":{}}]')
    assert tc.is_ours('[{"kind":"htb","handle":"1:","root":true,"refcnt":3,"options":{}}]')
