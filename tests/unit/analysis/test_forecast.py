"""Predictions from what a run knows, and what becomes of them when the migration is over."""

from __future__ import annotations

from typing import Any

import pytest

from bench.analysis.forecast import Path, compare, forecast, path_of, sharers
from bench.analysis.model import PAGE_BYTES, DirtyCurve, Levers, goodput_bps
from bench.clock import NS_PER_MS, NS_PER_S
from bench.result import LinkResult, RoundResult

LIMITS = {"downtime_limit_ns": 300 * NS_PER_MS, "max_rounds": 30, "max_time_ns": 600 * NS_PER_S, "max_bandwidth_bps": 0}
PATH = Path(900_000_000, NS_PER_MS, measured=True, most_bps=10**9, least_round_trip_ns=NS_PER_MS // 2)


def link(name: str, forward_bps: int | None, backward_bps: int | None = None, asked_bps: int = 10**9) -> LinkResult:
    measured: dict[str, Any] = {
        "forward": {"rate_bps": forward_bps} if forward_bps else {"rate_note": "not measured"},
        "backward": {"rate_bps": backward_bps} if backward_bps else {},
        "round_trip": {"path": "x", "asked_ns": 800_000, "median_ns": 1_000_000, "minimum_ns": 900_000},
    }
    asked = {"rate_bps": asked_bps, "delay_ns": 200_000}
    return LinkResult(
        name=name, mechanism="htb", asked={"forward": asked, "backward": asked}, applied={}, measured=measured
    )


def made(**changes: Any):
    arguments = {"pages": 4096, "zero_pages": 1024, "limits": LIMITS, "connections": 3, **changes}
    mode, path = arguments.pop("mode", "precopy"), arguments.pop("path", PATH)
    return forecast(mode, path, arguments.pop("curve", DirtyCurve.hot_set(4096, 1000)), **arguments)


def rounds() -> list[RoundResult]:
    common = {"dirty_pages_after": 0, "start_ns": 0, "end_ns": 1, "bytes_sent": 1}
    return [
        RoundResult(pages=4096, zero_pages=1000, **common),
        RoundResult(pages=80, zero_pages=0, **common),
        RoundResult(pages=50, zero_pages=10, paused=True, **common),
    ]


def test_the_slowest_link_in_the_migrations_direction_counts():
    links = [link("h1-s1", 940_000_000, 100), link("h2-s1", 100, 930_000_000), link("c1-s1", 1)]
    path = path_of(links, ["h1", "s1", "h2"])
    assert (path.frame_rate_bps, path.measured) == (930_000_000, True)
    assert path.round_trip_ns == 1_000_000  # 0.8 ms asked, and what the calibration's probes took beyond that
    assert (path.most_bps, path.least_round_trip_ns) == (10**9, 900_000)
    assert path_of(links, ["h2", "s1", "h1"]).frame_rate_bps == 100


def test_what_was_not_measured_is_taken_as_asked():
    path = path_of([link("h1-s1", None), link("h2-s1", None, None)], ["h1", "s1", "h2"])
    assert (path.frame_rate_bps, path.measured) == (10**9, False)


def test_an_unshaped_path_gives_a_note_instead_of_numbers():
    path = path_of([link("h1-s1", None, asked_bps=0), link("h2-s1", None, asked_bps=0)], ["h1", "s1", "h2"])
    nothing = made(path=path)
    result = compare(nothing, rounds(), bytes_sent=1, transfer_ns=5, downtime_ns=1)
    assert (result.predicted, result.bound, result.transfer_ns) == (None, None, 5)
    assert "unshaped" in result.note


def test_a_mode_without_a_model_still_has_its_bound():
    result = compare(made(mode="by-carrier-pigeon"), rounds(), bytes_sent=10**8, transfer_ns=10**9, downtime_ns=10**8)
    assert result.predicted is None
    assert result.bound is not None
    assert result.efficiency.total is not None
    assert "by-carrier-pigeon" in result.note


def test_the_bound_is_of_the_pages_that_turned_out():
    result = compare(
        made(), rounds(), bytes_sent=20 << 20, transfer_ns=200 * NS_PER_MS, downtime_ns=20 * NS_PER_MS, device_bytes=0
    )
    assert result.predicted is not None
    assert result.bound is not None
    assert result.bound.bytes == 3096 * PAGE_BYTES
    goodput = goodput_bps(10**9)  # as shaped, although the calibration saw less
    assert result.inputs["goodput_bps"] == pytest.approx(0.9 * goodput)
    assert result.bound.total_ns == pytest.approx(3096 * PAGE_BYTES * 8 * NS_PER_S / goodput, rel=1e-6)
    assert result.bound.downtime_ns == pytest.approx(40 * PAGE_BYTES * 8 * NS_PER_S / goodput + NS_PER_MS / 2, rel=1e-6)
    assert result.efficiency.bytes == pytest.approx(3096 * PAGE_BYTES / (20 << 20))
    assert result.efficiency.downtime == pytest.approx(result.bound.downtime_ns / (20 * NS_PER_MS))


def test_a_migration_that_did_not_complete_has_a_prediction_and_no_efficiency():
    result = compare(made(), [], bytes_sent=None, transfer_ns=None, downtime_ns=None)
    assert result.predicted is not None
    assert result.bound is not None
    assert result.efficiency.model_dump() == {"bytes": None, "total": None, "downtime": None}


def test_what_clients_take_of_the_link_is_not_the_migrations():
    assert made(background_bps=100_000_000).prediction.total_ns > made().prediction.total_ns
    assert made(background_bps=10**12).inputs.goodput_bps > 0


def test_levers_make_a_prediction_shorter_and_those_that_nobody_knows_are_named():
    squeezed = made(levers=Levers(wire_share=0.25, work_bps=8e9), unknown=["delta"])
    assert squeezed.prediction.bytes < made().prediction.bytes / 3
    assert squeezed.prediction.total_ns < made().prediction.total_ns / 2
    assert "as if without delta" in squeezed.note
    assert squeezed.shown["levers"]["wire_share"] == 0.25
    assert not made().note


def test_migrations_share_a_link_only_in_the_same_direction():
    way = ["h1", "s1", "s2", "h2"]
    assert sharers(way, [way]) == 1
    assert sharers(way, [way, way[::-1]]) == 1
    assert sharers(way, [way, ["h1", "s1", "h3"]]) == 2
    assert sharers(way, [way, ["h1", "s1", "h3"], ["h4", "s1", "s2", "h2"], ["h4", "s2", "h2"]]) == 3
    assert sharers(way, []) == 1


def test_a_shared_link_makes_a_prediction_longer_and_the_prediction_says_so():
    alone, shared = made(), made(sharers=2)
    assert alone.prediction is not None
    assert shared.prediction is not None
    assert shared.prediction.total_ns > 1.9 * alone.prediction.total_ns
    assert (alone.note, alone.shown["sharers"]) == ("", 1)
    assert "1/2 of it" in shared.note
    bounds = [compare(one, rounds(), bytes_sent=1, transfer_ns=1, downtime_ns=1).bound for one in (alone, shared)]
    assert bounds[0] == bounds[1]
