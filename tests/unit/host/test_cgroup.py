"""Shares of a processor as the kernel's quotas; a machine without a CPU controller is no error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import HostError
from bench.host import cgroup
from bench.host.cgroup import FULL_PPM, CpuGroup, make_parent, quota


@given(st.integers(1_000, FULL_PPM))
def test_a_quota_is_its_share_within_what_the_kernel_takes(share_ppm):
    limit_us, period_us = quota(share_ppm)
    assert 1_000 <= limit_us <= period_us
    assert 20_000 <= period_us <= 1_000_000
    assert abs(limit_us / period_us - share_ppm / FULL_PPM) <= 0.02 * share_ppm / FULL_PPM


def test_a_processor_is_held_back_no_longer_than_it_must_be():
    assert quota(800_000) == (16_000, 20_000)
    assert quota(10_000) == (1_000, 100_000)


def test_without_a_controller_there_is_no_group(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "cpu_hierarchy", lambda: None)
    assert make_parent("x", lambda path: path) is None
    monkeypatch.setattr(cgroup, "cpu_hierarchy", lambda: (tmp_path / "missing", 1))
    recorded = []
    assert make_parent("x", lambda path: recorded.append(path) or path) is None
    assert recorded == [tmp_path / "missing" / "x"]


def test_a_directory_that_is_no_control_group_is_refused_and_left_as_it_was(tmp_path):
    with pytest.raises(HostError, match="no CPU controller"):
        CpuGroup(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HostError, match="missing"):
        CpuGroup(tmp_path / "missing", "x")
