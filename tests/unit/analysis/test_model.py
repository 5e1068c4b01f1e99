"""The analytic model: what must hold whatever the numbers are."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.analysis.model import (
    PAGE_BYTES,
    PREDICTORS,
    DirtyCurve,
    Inputs,
    Levers,
    PageClass,
    goodput_bps,
    lower_bound,
    predict,
)
from bench.clock import NS_PER_MS, NS_PER_S

GIB_PAGES = 1 << 18
curves = st.lists(st.builds(PageClass, st.floats(0, 20_000), st.floats(0, 1000)), max_size=3).map(
    lambda classes: DirtyCurve(tuple(classes))
)


@st.composite
def all_inputs(draw):
    pages = draw(st.integers(1, 100_000))
    curve = draw(curves)
    total = sum(item.pages for item in curve.classes)
    if total > pages:  # no more pages are written than there are
        share = pages / total
        curve = DirtyCurve(tuple(PageClass(item.pages * share, item.rate_per_s) for item in curve.classes))
    return Inputs(
        pages=pages,
        zero_pages=draw(st.integers(0, pages)),
        curve=curve,
        goodput_bps=draw(st.floats(1e6, 1e11)),
        round_trip_ns=draw(st.integers(0, NS_PER_S // 2)),
        downtime_limit_ns=draw(st.none() | st.integers(0, NS_PER_S)),
        max_rounds=draw(st.integers(1, 50)),
        max_bandwidth_bps=draw(st.sampled_from([0, 10**7, 10**9])),
        device_bytes=draw(st.integers(0, 1 << 20)),
        fixed_ns=draw(st.integers(0, 10**7)),
        round_ns=draw(st.integers(0, 10**7)),
        socket_bytes=draw(st.integers(0, 4 << 20)),
    )


def inputs(**changes) -> Inputs:
    """1 GiB without zero pages over a goodput of 1 Gbit/s, with nothing in the way."""
    plain = {
        "pages": GIB_PAGES,
        "zero_pages": 0,
        "curve": DirtyCurve(),
        "goodput_bps": 1e9,
        "round_trip_ns": 0,
        "downtime_limit_ns": 30 * NS_PER_MS,
        "socket_bytes": 0,
        "door_ns": 0,
    }
    return Inputs(**{**plain, **changes})


def uniform(share_of_bandwidth: float, pages: int = GIB_PAGES) -> DirtyCurve:
    """lambda = D/B for :func:`inputs`."""
    return DirtyCurve.hot_set(pages, share_of_bandwidth * 1e9 / 8 / PAGE_BYTES)


# the curve


@given(curves, st.integers(0, 10**11), st.integers(0, 10**11))
def test_a_curve_grows_never_faster_than_the_writes_and_never_beyond_its_pages(curve, first_ns, second_ns):
    one, two, both = (curve.pages_in(ns) for ns in (first_ns, second_ns, first_ns + second_ns))
    assert max(one, two) <= both + 1e-6
    assert both <= one + two + 1e-6
    assert both <= min(curve.written_pages, curve.writes_per_s * (first_ns + second_ns) / NS_PER_S) + 1e-6
    assert curve.working_set_pages <= curve.written_pages + 1e-6


def test_a_hot_set_caps_what_a_long_round_dirties():
    curve = DirtyCurve.hot_set(GIB_PAGES, 10_240, hot_pages=16_384, hot_share=1.0)
    assert curve.pages_in(NS_PER_S // 100) == pytest.approx(102.4, rel=0.01)
    assert curve.pages_in(60 * NS_PER_S) == pytest.approx(16_384, rel=1e-3)
    assert curve.working_set_pages == pytest.approx(0.8 * 16_384)
    assert DirtyCurve().working_set_pages == 0


# predictions and bounds


@pytest.mark.parametrize("mode", PREDICTORS)
@given(given_inputs=all_inputs())
def test_no_prediction_is_below_its_lower_bound(mode, given_inputs):
    made = predict(given_inputs, mode)
    full = given_inputs.pages - given_inputs.zero_pages
    bound = lower_bound(
        full, made.pause_pages, given_inputs.device_bytes, given_inputs.goodput_bps, given_inputs.round_trip_ns
    )
    page_ns = PAGE_BYTES * 8 * NS_PER_S / given_inputs.goodput_bps  # pages at the pause are rounded to whole ones
    assert bound.bytes <= made.bytes + 1
    assert bound.total_ns <= made.total_ns + 2
    assert bound.downtime_ns <= made.downtime_ns + page_ns + 2
    assert made.downtime_ns <= made.total_ns


@pytest.mark.parametrize("mode", PREDICTORS)
@given(given_inputs=all_inputs(), faster=st.floats(1, 100))
def test_more_bandwidth_never_makes_a_guest_that_writes_nothing_slower(mode, given_inputs, faster):
    idle = dataclasses.replace(given_inputs, curve=DirtyCurve())
    quick = dataclasses.replace(idle, goodput_bps=idle.goodput_bps * faster)
    # With a limit between the two (or at the slower one) only the faster one is paced, which the final copy (here what
    # waits in the socket) is not: then it may take a moment longer.
    assume(not idle.goodput_bps <= idle.max_bandwidth_bps < quick.goodput_bps)
    assert predict(quick, mode).total_ns <= predict(idle, mode).total_ns + idle.round_ns * 2 + idle.door_ns
    assert predict(quick, mode).bytes <= predict(idle, mode).bytes + 1


@given(st.floats(0, 3), st.floats(1, 10))
def test_more_bandwidth_never_makes_pre_copy_longer(share, faster):
    slow = inputs(curve=uniform(share))
    quick = inputs(curve=uniform(share), goodput_bps=1e9 * faster)
    assert predict(quick).total_ns <= predict(slow).total_ns
    assert predict(quick).rounds <= predict(slow).rounds


@given(st.floats(1, 100))
def test_lambda_of_one_and_more_does_not_converge(share):
    made = predict(inputs(curve=uniform(share)))
    assert not made.converged
    assert made.rounds >= 30
    assert made.downtime_ns > 30 * NS_PER_MS


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_it_is_the_textbook_while_the_cap_is_far(share):
    """Total about (M/B)(1 - lambda^(n+1))/(1 - lambda); the distinct pages of a round are a little fewer."""
    made = predict(inputs(curve=uniform(share)))
    once_s = GIB_PAGES * PAGE_BYTES * 8 / 1e9
    textbook_s = once_s * (1 - share**made.rounds) / (1 - share)
    assert made.converged
    assert 0.93 * textbook_s <= made.total_ns / NS_PER_S <= 1.002 * textbook_s
    assert made.downtime_ns <= 30 * NS_PER_MS * 1.01


def test_a_working_set_ends_what_the_uniform_model_calls_divergent():
    small = predict(inputs(curve=uniform(4, pages=256)))  # 1 MiB, written at four times the bandwidth
    assert small.converged
    assert small.downtime_ns <= 10 * NS_PER_MS


def test_zero_pages_cost_next_to_nothing():
    full, half = predict(inputs()), predict(inputs(zero_pages=GIB_PAGES // 2))
    assert half.bytes == pytest.approx(full.bytes / 2, rel=0.01)
    assert half.total_ns == pytest.approx(full.total_ns / 2, rel=0.01)


def test_zero_pages_that_nobody_looks_for_cost_as_much_as_others():
    unseen = predict(inputs(zero_pages=GIB_PAGES // 2, levers=Levers(find_zeros=False)))
    assert unseen.bytes == predict(inputs()).bytes


@pytest.mark.parametrize("mode", sorted(set(PREDICTORS) - {"postcopy"}))
@given(given_inputs=all_inputs(), share=st.floats(0, 1))
def test_compression_at_no_cost_never_makes_an_idle_guest_slower(mode, given_inputs, share):
    plain = dataclasses.replace(given_inputs, curve=DirtyCurve(), max_bandwidth_bps=0)
    squeezed = dataclasses.replace(plain, levers=Levers(wire_share=share))
    assert predict(squeezed, mode).bytes <= predict(plain, mode).bytes
    assert predict(squeezed, mode).total_ns <= predict(plain, mode).total_ns + 2 * plain.round_ns


def test_a_slow_compressor_is_what_the_link_waits_for():
    quick = predict(inputs(levers=Levers(wire_share=0.25)))
    slow = predict(inputs(levers=Levers(wire_share=0.25, work_bps=5e8)))  # half of what the link would carry plain
    assert quick.total_ns == pytest.approx(predict(inputs()).total_ns / 4, rel=0.02)
    assert slow.total_ns == pytest.approx(predict(inputs()).total_ns * 2, rel=0.02)
    assert slow.bytes == quick.bytes


def test_post_copy_does_not_compress():
    assert predict(inputs(levers=Levers(wire_share=0.25)), "postcopy") == predict(inputs(), "postcopy")


def test_a_dirty_limit_lets_a_guest_converge():
    writing = inputs(curve=uniform(3))
    limit = round(0.2 * 1e9 / 8)
    held = predict(dataclasses.replace(writing, levers=Levers(dirty_bytes_per_s=limit)))
    assert not predict(writing).converged
    assert held.converged


def test_what_waits_in_the_socket_is_part_of_the_downtime():
    dirty = uniform(0.1)
    lean, deep = predict(inputs(curve=dirty)), predict(inputs(curve=dirty, socket_bytes=4 << 20))
    assert deep.downtime_ns > lean.downtime_ns or deep.rounds > lean.rounds


def test_what_waits_in_the_socket_crosses_before_the_pause_as_far_as_it_does_so_soon():
    """At 100 Mbit/s a socket of 1 MiB takes 84 ms, at 10 Mbit/s most of it is left after the wait."""
    idle = {"downtime_limit_ns": 10 * NS_PER_S, "socket_bytes": 1 << 20}
    assert predict(inputs(goodput_bps=1e8, **idle)).downtime_ns < NS_PER_MS
    assert predict(inputs(goodput_bps=1e7, **idle)).downtime_ns > 600 * NS_PER_MS


def test_without_a_limit_rounds_go_on_as_long_as_they_shrink():
    dirty = uniform(0.1)
    limited, least = predict(inputs(curve=dirty)), predict(inputs(curve=dirty, downtime_limit_ns=None))
    assert least.downtime_ns < limited.downtime_ns
    assert least.converged
    assert predict(inputs(curve=uniform(3), downtime_limit_ns=None)).rounds < 30


def test_modes_differ_as_they_should():
    common = inputs(curve=uniform(0.1), fixed_ns=NS_PER_MS)
    precopy, cold, post, hybrid = (predict(common, mode) for mode in ("precopy", "stop-and-copy", "postcopy", "hybrid"))
    assert hybrid.downtime_ns <= precopy.downtime_ns
    assert post.bytes < hybrid.bytes < 2 * post.bytes
    assert post.downtime_ns < precopy.downtime_ns < cold.downtime_ns
    assert cold.bytes == post.bytes < precopy.bytes
    assert predict(common, "no such mode") is None


@pytest.mark.parametrize("changes", [{"goodput_bps": 0}, {"goodput_bps": float("inf")}, {"zero_pages": GIB_PAGES + 1}])
def test_nonsense_is_refused(changes):
    with pytest.raises(ValueError, match=r"bit/s|zero pages"):
        inputs(**changes)


def test_goodput_is_what_frames_carry():
    assert goodput_bps(1e9) == pytest.approx(956.4e6, rel=1e-3)
