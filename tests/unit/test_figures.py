from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "report"))

from made_up import MS, RESUME, flow, migration, result

from bench.figures import figure_dimension, format_value, parse_value, percentile, values


def of(figure: str, **changes: object) -> list[float]:
    run = result(**changes)
    return values(figure, run.migrations[0], run)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ("downtime", [23 * MS]),
        ("total", [6100 * MS]),
        ("sent", [901 << 20]),
        ("rounds", [4]),
        ("relearn.max", [31 * MS]),
        ("flows.died", [0]),
        ("flows.lost", [36, 36, 36, 36]),
        ("flows.lost.sum", [144]),
        ("flows.tcp-request.lost", [36]),
        ("flows.0.lost", [36]),
        ("flows.udp-echo.retransmits", []),
        ("flows.tcp-request.budget.final pages", [17.5 * MS]),
        ("relearn.switches.s1.flapped", [1]),
        ("prediction.efficiency.total", [0.927]),
        ("environment.cpu.mean", [0.61]),
        ("environment.cpu.nothing", []),
        ("memory.identical", [1]),
        ("resume", [RESUME]),
        ("links.h1-s1.measured.round_trip.median", [997_216]),
        ("rounds.pages.max", [262_144]),
    ],
)
def test_any_number_of_a_result_is_a_figure(figure: str, expected: list[float]) -> None:
    assert of(figure) == pytest.approx(expected)


def test_an_aggregate_is_over_the_flows_of_one_migration() -> None:
    outages = [flow("udp-echo", 0.2), flow("tcp-request")]
    assert of("outage.max", migrations=[migration(flows=outages)]) == [outages[1]["outage_ns"]]
    assert of("outage.min", migrations=[migration(flows=outages)]) == [outages[0]["outage_ns"]]


@pytest.mark.parametrize("figure", ["nothing", "flows.udp-echo.nothing", "downtime..max", "", "relearn.switches.s1.x"])
def test_what_is_no_figure_is_refused_with_what_there_is(figure: str) -> None:
    with pytest.raises(ValueError, match=r"figure|one of"):
        figure_dimension(figure)


@pytest.mark.parametrize(
    ("figure", "dimension"),
    [
        ("downtime", "duration"),
        ("outage.p99", "duration"),
        ("sent", "size"),
        ("bytes_sent", "size"),
        ("flows.lost", "number"),
        ("flows.tcp-request.budget.relearned", "duration"),
        ("prediction.bound.total", "duration"),
        ("environment.cpu.mean", None),
    ],
)
def test_the_dimension_follows_from_the_member(figure: str, dimension: str | None) -> None:
    assert figure_dimension(figure) == dimension


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("300ms", "duration", 300 * MS),
        ("64MiB", "size", 64 << 20),
        ("1Gbit", "bit rate", 10**9),
        ("10MB/s", "byte rate", 10**7),
        ("5", "number", 5),
        ("90%", "number", 0.9),
        ("true", "number", 1),
        ("0", "number", 0),
    ],
)
def test_a_bound_is_known_by_its_unit(text: str, dimension: str, value: float) -> None:
    number, found = parse_value(text, None)
    assert number == pytest.approx(value)
    assert found == dimension


def test_a_bound_needs_the_figure_s_own_unit() -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_value("300", "duration")
    with pytest.raises(ValueError, match="number"):
        parse_value("300ms", "number")


def test_values_are_shown_with_their_unit() -> None:
    assert format_value(23 * MS, "duration") == "23 ms"
    assert format_value(0.4449, None) == "0.4449"
    assert format_value(None, "size") == "not seen"


def test_percentiles_are_numpy_s() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([4, 1, 3, 2], 1) == 4
