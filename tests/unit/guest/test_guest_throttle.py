"""Holding vCPUs back: by groups where they can be made, else by their loop; what was on goes off, once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.clock import NS_PER_S
from bench.errors import GuestError
from bench.guest.throttle import VcpuThrottle
from bench.guest.vcpu import THROTTLE_PERIOD_NS, WriteCap
from bench.host.cgroup import FULL_PPM


class Vcpu:
    def __init__(self, index):
        self.index = index
        self.calls = []

    def throttle(self, share_ppm, writes_per_s, deadline):
        self.calls.append((share_ppm, writes_per_s))
        return 5


def test_without_a_group_the_loop_is_the_mechanism(tmp_path):
    vcpus = [Vcpu(0), Vcpu(1)]
    throttle = VcpuThrottle(vcpus, "g")
    assert throttle.mechanism == ""
    assert throttle.set_share(800_000, "") == "loop"
    assert throttle.set_writes(100) == 10
    throttle.release()
    throttle.release()
    for vcpu in vcpus:
        assert vcpu.calls[:2] == [(800_000, 0), (800_000, 100)]
        assert vcpu.calls[-1] == (FULL_PPM, 0)
        assert len(vcpu.calls) == 4
    assert VcpuThrottle([Vcpu(0)], "g").set_share(1_000, str(tmp_path / "missing")) == "loop"


def test_a_throttle_that_was_never_on_asks_nobody():
    vcpu = Vcpu(0)
    throttle = VcpuThrottle([vcpu], "g")
    assert throttle.set_share(FULL_PPM, "") == ""
    throttle.release()
    throttle.close()
    assert vcpu.calls == []


@pytest.mark.parametrize("share_ppm", [0, -1, FULL_PPM + 1])
def test_a_share_out_of_range_is_refused(share_ppm):
    with pytest.raises(GuestError):
        VcpuThrottle([], "g").set_share(share_ppm, "")


@given(
    st.integers(1, 200_000),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, NS_PER_S // 5)), min_size=1, max_size=60),
)
def test_a_cap_is_never_exceeded(writes_per_s, wishes):
    cap = WriteCap(writes_per_s)
    now = begin = 10**12
    done = 0
    for wanted, later_ns in wishes:
        now += later_ns
        count = cap.take(wanted, now)
        assert 0 <= count <= wanted
        done += count
    burst = max(1, writes_per_s * THROTTLE_PERIOD_NS // NS_PER_S)
    # each write's time is rounded down to whole ns
    assert done <= ((now - begin) * writes_per_s / NS_PER_S + burst) * 1.001 + 2


def test_without_a_cap_all_is_allowed():
    assert WriteCap(0).take(256, 0) == 256
