"""The wave, by distance, with its differences."""

from __future__ import annotations

import io

from rich.console import Console

from bench.report.wave import print_wave
from bench.result import CardRelearn, NeighbourChange, RelearnResult, SwitchRelearn

MS = 1_000_000


def shown(relearn: RelearnResult) -> str:
    out = io.StringIO()
    print_wave(relearn, 100 * MS, Console(file=out, width=120))
    return out.getvalue()


def test_switches_come_by_distance_and_differences_are_said() -> None:
    far = SwitchRelearn(name="s1", distance=2, by="garp", state_ns=113 * MS, state_by="poll", differ="it does")
    near = SwitchRelearn(name="s9", distance=0, by="rarp", state_ns=101 * MS, state_by="poll", stable_ns=102 * MS)
    changed = NeighbourChange(host="c1", t_ns=120 * MS, ip="10.0.1.1", mac="", state="failed")
    relearn = RelearnResult(
        announce_ns=100 * MS, tolerance_ns=5 * MS, switches=[far, near], neighbours=[changed], conntrack={"r1 new": 2}
    )
    text = shown(relearn)
    assert text.index("s9") < text.index("s1")
    assert "s1: witnesses differ: it does" in text
    assert "+13 ms" in text
    assert "c1: 10.0.1.1 is at nobody (failed)" in text
    assert "2 x r1 new" in text


def test_every_card_has_its_wave() -> None:
    first = SwitchRelearn(name="s1", distance=0, vlan=10, state_ns=101 * MS, state_by="poll")
    second = SwitchRelearn(name="s1", distance=0, vlan=20, state_ns=109 * MS, state_by="poll", differ="it does")
    card = CardRelearn(
        card=1, mac="52:54:00:01:00:01", address="10.20.0.1", vlan=20, announce_ns=101 * MS, switches=[second]
    )
    text = shown(RelearnResult(announce_ns=100 * MS, tolerance_ns=5 * MS, switches=[first], cards=[card]))
    assert "card 1, 10.20.0.1 in VLAN 20" in text
    assert "+8 ms" in text
    assert "s1 VLAN 20: witnesses differ: it does" in text


def test_agreement_is_said_and_nothing_without_the_second_witness() -> None:
    switch = SwitchRelearn(name="s1", state_ns=101 * MS, state_by="netlink")
    assert "agree to within 5 ms" in shown(RelearnResult(announce_ns=None, tolerance_ns=5 * MS, switches=[switch]))
    assert shown(RelearnResult(announce_ns=None, switches=[SwitchRelearn(name="s1")])) == ""
