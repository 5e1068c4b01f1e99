"""The switchover rule, the bandwidth estimate and the states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import MigrationError
from bench.migration.policy import (
    WINDOW_NS,
    Action,
    BandwidthEstimate,
    Limits,
    Progress,
    expected_downtime_ns,
    next_step,
)
from bench.migration.states import ENDS, State, StateMachine

LIMITS = Limits(downtime_limit_ns=300 * NS_PER_MS, max_rounds=30, max_time_ns=60 * NS_PER_S)
GBIT = 10**9


@pytest.mark.parametrize(
    ("remaining", "action"),
    [(0, Action.SWITCHOVER), (37_500_000, Action.SWITCHOVER), (37_500_001, Action.ROUND), (10**9, Action.ROUND)],
)
def test_the_switchover_comes_when_the_rest_fits_the_downtime_limit(remaining, action):
    assert next_step(Progress(remaining, GBIT, 3, NS_PER_S), LIMITS).action is action


def test_nothing_is_decided_on_an_unknown_bandwidth():
    assert next_step(Progress(4096, None, 1, 0), LIMITS).action is Action.ROUND
    assert next_step(Progress(0, None, 1, 0), LIMITS).action is Action.SWITCHOVER


@pytest.mark.parametrize("progress", [Progress(10**9, GBIT, 30, 0), Progress(10**9, GBIT, 2, 60 * NS_PER_S)])
def test_no_convergence_is_forced_or_cancelled_as_asked(progress):
    forced = next_step(progress, LIMITS)
    assert forced.action is Action.SWITCHOVER
    assert "forced" in forced.reason
    cancelling = Limits(LIMITS.downtime_limit_ns, 30, 60 * NS_PER_S, on_no_convergence="cancel")
    assert next_step(progress, cancelling).action is Action.CANCEL


@given(st.integers(0, 2**40), st.integers(1, 4 * 10**11), st.integers(0, 10**10), st.integers(0, 10**6))
def test_less_work_or_more_bandwidth_never_turns_a_switchover_into_a_round(remaining, bandwidth, limit_ns, less):
    limits = Limits(limit_ns, 10**6, 10**15)
    if next_step(Progress(remaining, bandwidth, 1, 0), limits).action is Action.SWITCHOVER:
        assert next_step(Progress(max(0, remaining - less), bandwidth + less, 1, 0), limits).action is Action.SWITCHOVER


@given(st.integers(1, 2**40), st.integers(1, 4 * 10**11))
def test_the_expected_downtime_is_enough_and_not_more(remaining, bandwidth):
    expected = expected_downtime_ns(remaining, bandwidth)
    assert expected * bandwidth >= remaining * 8 * NS_PER_S
    assert (expected - 1) * bandwidth < remaining * 8 * NS_PER_S


def test_a_long_sample_replaces_the_estimate_and_a_short_one_only_moves_it():
    estimate = BandwidthEstimate()
    assert estimate.bps is None
    estimate.add(0, NS_PER_S)
    estimate.add(10, 0)
    assert estimate.bps is None
    estimate.add(125_000_000, NS_PER_S)
    assert estimate.bps == GBIT
    estimate.add(WINDOW_NS // 100, WINDOW_NS // 10)  # 0.8 Gbit/s for a tenth of the window
    assert estimate.bps == pytest.approx(0.98 * GBIT, rel=0.01)
    estimate.add(WINDOW_NS // 16, WINDOW_NS)
    assert estimate.bps == pytest.approx(0.5 * GBIT, rel=0.01)


def test_states_follow_in_order_only():
    machine = StateMachine()
    for state in (State.SETUP, State.ACTIVE, State.DEVICE, State.COMPLETED):
        machine.enter(state)
    assert machine.ended
    for state in State:
        with pytest.raises(MigrationError):
            machine.enter(state)


def test_a_migration_is_cancellable_until_the_destination_owns_the_guest():
    machine = StateMachine()
    for state in (State.SETUP, State.ACTIVE, State.DEVICE):
        machine.enter(state)
        assert machine.cancellable
    machine.enter(State.POSTCOPY_ACTIVE)
    assert not machine.cancellable
    with pytest.raises(MigrationError, match="'postcopy-active' to 'cancelled'"):
        machine.enter(State.CANCELLED)
    for state in (State.POSTCOPY_PAUSED, State.POSTCOPY_RECOVER, State.POSTCOPY_ACTIVE):
        machine.enter(state)
        assert not machine.cancellable
    machine.enter(State.FAILED)
    assert State.FAILED in ENDS
