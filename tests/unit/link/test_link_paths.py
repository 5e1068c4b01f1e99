"""Which paths are measured, and what a measurement says about which link."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.link.burst import steady_rate_bps
from bench.link.calibrate import Measured, burst_ns, rate_problem, round_trip_problem, skip_reason, window_bytes
from bench.link.impairment import FRAME_BYTES, Direction
from bench.link.paths import Edge, Route, by_link, choose_paths, find_paths, rounds

MS = 10**6
GBIT = Direction(10**9, MS)


def star(*directions: Direction) -> tuple[list[Edge], list[str]]:
    hosts = [f"h{number}" for number in range(1, len(directions) + 1)]
    return [Edge(f"{host}-s1", host, "s1", item, item) for host, item in zip(hosts, directions, strict=True)], hosts


def route(*directions: Direction) -> Route:
    edges, hosts = star(*directions)
    return find_paths(edges, hosts[0], hosts)[hosts[1]]


def test_a_path_adds_delays_and_takes_the_lowest_rate() -> None:
    path = route(Direction(10**9, MS, 1000, 0.5, 10), Direction(10**8, 2 * MS, 2000, 0.5, 20))
    assert path.name == "h1-s1-h2"
    assert (path.round_trip_ns, path.jitter_ns) == (6 * MS, 6000)
    assert path.rate_bps(back=False) == path.rate_bps(back=True) == 10**8
    assert path.loss(back=False) == 0.75
    assert path.queue_bytes(back=False) == 20 * FRAME_BYTES
    assert path.bottlenecks(back=False) == {("h2-s1", True)}
    assert path.bottlenecks(back=True) == {("h2-s1", False)}


def test_hosts_do_not_forward() -> None:
    edges = [Edge("a-b", "a", "b", GBIT, GBIT), Edge("b-c", "b", "c", GBIT, GBIT)]
    assert set(find_paths(edges, "a", ["a", "b", "c"])) == {"b"}


@given(st.lists(st.builds(Direction, rate_bps=st.sampled_from([0, 10**7, 10**8, 10**9])), min_size=2, max_size=8))
def test_every_link_of_a_star_is_seen_and_measured_where_possible(directions: list[Direction]) -> None:
    edges, hosts = star(*directions)
    paths = choose_paths(edges, hosts)
    assert set(by_link(paths)) == {edge.name for edge in edges}
    assert len(paths) <= len(edges)
    shown = set().union(*(path.bottlenecks(back=back) for path in paths for back in (False, True)))
    fastest = max(item.rate_bps for item in directions)
    others = [item.rate_bps for item in directions]
    for edge in edges:
        measurable = edge.forward.rate_bps > 0 and (
            edge.forward.rate_bps < fastest or others.count(fastest) > 1 or 0 in others
        )
        assert (edge.name, False) in shown or not measurable
        assert (edge.name, True) in shown or not measurable


def test_many_hosts_stay_few_pairs() -> None:
    edges, hosts = star(*[GBIT] * 60)
    assert len(choose_paths(edges, hosts)) <= 60


@given(st.integers(2, 8))
def test_groups_share_neither_links_nor_hosts_nor_too_much_load(count: int) -> None:
    edges, hosts = star(*[GBIT] * count)
    paths = choose_paths(edges, hosts)
    groups = rounds(paths, 2 * 10**9)
    assert sorted(path.name for group in groups for path in group) == sorted(path.name for path in paths)
    for group in groups:
        links = [hop.edge.name for path in group for hop in path.hops]
        assert len(links) == len(set(links))
        assert len(group) <= 2


@given(st.integers(2, 8), st.integers(1, 8))
def test_groups_have_no_more_hops_than_are_bearable_but_for_one_path(count: int, hops: int) -> None:
    edges, hosts = star(*[GBIT] * count)
    for group in rounds(choose_paths(edges, hosts), 10**12, hops):
        assert len(group) == 1 or sum(len(path.hops) for path in group) <= hops


@given(st.integers(10**6, 10**11), st.integers(10, 1000))
def test_a_steady_stream_is_measured_as_it_is(rate_bps: int, count: int) -> None:
    mss = 1448
    gap_ns = FRAME_BYTES * 8 * 10**9 // rate_bps + 1
    measured = steady_rate_bps([(number * gap_ns, mss) for number in range(count)], mss)
    true_bps = FRAME_BYTES * 8 * 10**9 // gap_ns
    assert abs(measured - true_bps) <= true_bps // 100


def test_too_little_is_no_rate() -> None:
    assert steady_rate_bps([], 1448) == 0
    assert steady_rate_bps([(0, 1448), (1, 1448)], 1448) == 0
    assert steady_rate_bps([(5, 1448)] * 3, 1448) == 0


def test_what_is_not_measured_says_why() -> None:
    burst = 150 * MS
    assert skip_reason(route(GBIT, GBIT), burst, 4 * MS, back=False) == ""
    assert "unshaped" in skip_reason(route(Direction(), Direction()), burst, MS, back=False)
    assert "loss" in skip_reason(route(GBIT, Direction(10**9, loss=0.1)), burst, MS, back=False)
    assert "burst would take" in skip_reason(route(Direction(8000), Direction(8000)), burst, MS, back=False)


def test_a_burst_fills_the_wire_but_not_the_queue() -> None:
    path = route(GBIT, GBIT)
    wire = 4 * MS * 10**9 // (8 * 10**9)
    assert wire < window_bytes(path, 4 * MS, back=False) < wire + path.queue_bytes(back=False)
    assert burst_ns(path, 150 * MS, 4 * MS, back=False) >= 150 * MS + 4 * MS


def test_round_trips_are_judged_both_ways() -> None:
    measured = Measured(route(GBIT, GBIT))
    assert round_trip_problem(measured, MS, 4 * MS) == ""
    assert round_trip_problem(measured, MS, 5 * MS - 1) == ""
    assert "instead of 4 ms" in round_trip_problem(measured, MS, 6 * MS)
    assert round_trip_problem(measured, MS, 2 * MS)
    jittery = Measured(route(Direction(10**9, 5 * MS, MS), GBIT))
    assert round_trip_problem(jittery, MS, 14 * MS) == ""


def test_every_switch_on_the_way_may_add_the_tolerance() -> None:
    row = [Edge("h1-s1", "h1", "s1", GBIT, GBIT), Edge("s1-s2", "s1", "s2", GBIT, GBIT)]
    row += [Edge("s2-s3", "s2", "s3", GBIT, GBIT), Edge("s3-h2", "s3", "h2", GBIT, GBIT)]
    measured = Measured(find_paths(row, "h1", ["h1", "h2"])["h2"])
    asked = measured.path.round_trip_ns
    assert round_trip_problem(measured, MS, asked + 3 * MS) == ""
    assert "1 ms for each of 3 switches" in round_trip_problem(measured, MS, asked + 4 * MS)
    assert round_trip_problem(measured, MS, asked - 2 * MS)  # but none makes a link quicker


def test_rates_are_judged_both_ways() -> None:
    assert rate_problem(10**9, 901 * 10**6, 0.1) == ""
    assert rate_problem(10**9, 899 * 10**6, 0.1)
    assert rate_problem(10**9, 1101 * 10**6, 0.1)
    text = rate_problem(25 * 10**9, 6 * 10**9, 0.1)
    assert "6 Gbit/s instead of 25 Gbit/s" in text
