"""Which cells a survival map has."""

from __future__ import annotations

import pytest

from bench.errors import ScenarioError
from bench.scenario import SurvivalSpec, parse_scenario
from bench.survival.cells import base_of, cells, variants


def test_each_variant_differs_from_the_base_in_one_thing():
    spec = SurvivalSpec()
    for end in spec.sends_first:
        base = base_of(spec, end)
        mine = [variant for variant in variants(spec) if variant.sends_first == end]
        assert mine[0] == base
        for variant in mine[1:]:
            names = ("pattern", "kernel", "congestion", "user_timeout_ns")
            changed = [name for name in names if getattr(variant, name) != getattr(base, name)]
            assert len(changed) == 1


def test_the_map_is_every_outage_with_every_variant_and_repeat():
    spec = SurvivalSpec(repeats=3)
    found = cells(spec, "x")
    assert len(found) == len(variants(spec)) * len(spec.outages) * 3
    assert [cell.number for cell in found] == list(range(len(found)))


def test_only_the_client_connects_and_keeps_alive():
    kinds = [(variant.sends_first, variant.pattern) for variant in variants(SurvivalSpec())]
    assert ("guest", "connect") not in kinds
    assert ("guest", "idle") not in kinds


def test_labels_say_what_differs_and_are_unique():
    spec = SurvivalSpec()
    labels = [(variant.sends_first, variant.label(base_of(spec, variant.sends_first))) for variant in variants(spec)]
    assert len(set(labels)) == len(labels)
    assert ("client", "stream, tcp_retries2 8") in labels
    assert ("client", "idle, keepalive 1 s + 5 x 1 s") in labels


def test_a_map_that_is_too_large_is_refused():
    with pytest.raises(ScenarioError, match="max_cells"):
        cells(SurvivalSpec(max_cells=10), "here.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("outages", []),
        ("outages", ["1s", "1s"]),
        ("outages", ["601s"]),
        ("outages", ["1"]),
        ("retries2", [0]),
        ("rto_min", ["1us"]),
        ("keepalive", ["1s/1s"]),
        ("keepalive", ["1.5s/1s/3"]),
        ("keepalive", ["1s/1s/200"]),
        ("congestion", ["cubic; rm"]),
        ("patterns", ["flood"]),
        ("interval", "1us"),
    ],
)
def test_nonsense_is_refused_by_its_key(key, value):
    with pytest.raises(ScenarioError, match=f"survival.{key}"):
        parse_scenario({"survival": {key: value}}, "here.toml")
