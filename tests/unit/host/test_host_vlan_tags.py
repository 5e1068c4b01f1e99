"""The classifiers that tag: their instructions, and what is asked of the kernel."""

from __future__ import annotations

import os
import struct

import pytest

from bench.host import vlan_tags
from bench.host.vlan_tags import attach, inward, outward


def instructions(code: bytes) -> list[tuple[int, int, int, int]]:
    """(opcode, registers, offset, immediate) of each."""
    return [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]


def test_outward_pushes_a_tag_of_8021q_and_passes() -> None:
    code = instructions(outward(10))
    assert code[:3] == [(0xB7, 2, 0, 0x0081), (0xB7, 3, 0, 10), (0x85, 0, 0, 18)]
    assert code[-2:] == [(0xB7, 0, 0, 0), (0x95, 0, 0, 0)]


def test_inward_drops_what_is_not_of_the_vlan() -> None:
    code = instructions(inward(4094))
    assert (0x85, 0, 0, 19) in code
    jumps = [(at, offset) for at, (opcode, _, offset, _) in enumerate(code) if opcode in (0x15, 0x55)]
    assert {at + offset + 1 for at, offset in jumps} == {len(code) - 2}  # both to the drop
    assert code[-2] == (0xB7, 0, 0, 2)
    assert (0x55, 2, jumps[1][1], 4094) in code


@pytest.mark.parametrize("place", ["port", "card"])
def test_both_directions_are_asked_for(place: vlan_tags.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []
    asked: list[tuple[int, bytes]] = []

    def load(code: bytes, _name: str) -> int:
        loaded.append(code)
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(vlan_tags, "load_classifier", load)
    attach(lambda kind, _flags, body: asked.append((kind, body)), 5, 10, place)
    assert [kind for kind, _body in asked] == [36, 44, 44]
    parents = [struct.unpack_from("=BxxxiIII", body)[3] for _kind, body in asked[1:]]
    outer = {"port": 0xFFFFFFF2, "card": 0xFFFFFFF3}[place]
    assert parents == [outer, 0xFFFFFFF2 + 0xFFFFFFF3 - outer]
    assert loaded == [outward(10), inward(10)]


def test_no_vlan_beyond_the_standards() -> None:
    for vlan in (0, 4095):
        with pytest.raises(ValueError, match="VLAN"):
            attach(lambda *_: None, 1, vlan, "port")
