"""When vCPUs are throttled, and how much: QEMU's steps, a limit that is kept, nothing without a lever."""

from hypothesis import given
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.migration.levers import Levers
from bench.migration.policy import Action, Limits, Progress, Step, next_step
from bench.migration.throttle import FULL_PPM, AutoConverge, DirtyLimit, Throttler


def test_steps_as_in_qemu():
    auto = AutoConverge(0)
    seen = [(second, auto.percent) for second in range(1, 40) if auto.after_round(60, 100, second * NS_PER_S)]
    assert seen == [(2, 20), (4, 30), (6, 40), (8, 50), (10, 60), (12, 70), (14, 80), (16, 90), (18, 99)]
    assert not auto.step_up()


def test_half_of_what_was_sent_is_no_trigger_and_short_rounds_add_up():
    auto = AutoConverge(0)
    assert not any(auto.after_round(50, 100, second * NS_PER_S) for second in range(1, 20))
    rises = [auto.after_round(6, 10, 19 * NS_PER_S + step * 250 * NS_PER_MS) for step in range(1, 9)]
    assert rises == [False] * 7 + [True]


@given(st.integers(1 << 20, 1 << 30), st.integers(20, 2000), st.floats(0.05, 1))
def test_the_dirty_rate_ends_below_the_limit(full_rate, used_percent_of_limit, fresh):
    """A guest that writes as often as it wants or may; only a share of its writes is to fresh pages."""
    limit = full_rate * 100 // used_percent_of_limit
    wanted = int(full_rate / 4096 / fresh)
    controller = DirtyLimit(limit)
    rate = full_rate
    for _ in range(80):
        writes = min(wanted, controller.writes_per_s or wanted)
        rate = int(writes * fresh * 4096)
        controller.sample(rate, writes)
    assert rate <= max(limit, 4096)
    assert rate >= min(full_rate, limit) // 2 - 4096
    if full_rate <= limit * 8 // 10:
        assert controller.writes_per_s == 0


class Guest:
    def __init__(self):
        self.calls = []

    def throttle(self, share_ppm, cgroup=""):
        self.calls.append((share_ppm, cgroup))
        return "loop"


def report(*_args, **_data):
    return None


def test_no_convergence_throttles_step_by_step_and_then_switches_over():
    limits = Limits(0, 1, NS_PER_S, 0, "throttle")
    guest = Guest()
    throttler = Throttler(guest, Levers(throttle_late=True, cgroup="/c"), report)
    actions = []
    for rounds in range(1, 12):
        step = throttler.decided(next_step(Progress(4096, 1000, rounds, 0), limits))
        actions.append(step.action)
    assert actions[:9] == [Action.ROUND] * 9
    assert actions[9:] == [Action.SWITCHOVER] * 2
    assert [call[0] // 10_000 for call in guest.calls] == [80, 70, 60, 50, 40, 30, 20, 10, 1]
    cost = throttler.cost()["throttle"]
    assert (cost["mechanism"], cost["percent"], len(cost["steps"])) == ("loop", 99, 9)
    assert 0 < cost["guest_cpu_ns"] <= cost["throttled_ns"] * 99 // 100
    throttler.release()
    throttler.release()
    assert guest.calls[9:] == [(FULL_PPM, "")]


def test_without_a_lever_the_guest_is_not_asked():
    guest = Guest()
    throttler = Throttler(guest, Levers(), report)
    throttler.after_round(1 << 40, 1, now_ns() + 10 * NS_PER_S)
    throttler.during_round(None)
    throttler.release()
    step = Step(Action.SWITCHOVER, "converged")
    assert throttler.decided(step) is step
    assert (guest.calls, throttler.cost()) == ([], {})
