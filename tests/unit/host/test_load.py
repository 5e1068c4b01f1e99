from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.host.load import CpuTimes, LoadSampler, Sample, parse_pressure, parse_stat, summarise

STAT = """cpu  10 1 4 80 5 1 2 7 3 0
cpu0 5 0 2 40 3 0 1 4 3 0
cpu1 5 1 2 40 2 1 1 3 0 0
intr 1 2 3
ctxt 99
"""


def sample(t_ns: int, total: int, busy: int, steal: int = 0, stalled_ns: int | None = None) -> Sample:
    times = CpuTimes(total, busy, steal)
    half = CpuTimes(total // 2, busy // 2, steal // 2)
    return Sample(t_ns, times, (half, half), stalled_ns)


def test_stat_counts_guest_time_once_and_steal_as_busy() -> None:
    machine, cpus = parse_stat(STAT)
    assert machine == CpuTimes(total=110, busy=25, steal=7)
    assert len(cpus) == 2
    assert sum(cpu.total for cpu in cpus) == machine.total


def test_old_stat_without_steal() -> None:
    assert parse_stat("cpu 1 2 3 4\n")[0] == CpuTimes(10, 6, 0)


@pytest.mark.parametrize("text", ["", "intr 5", "cpu0 1 2 3 4", "cpu one two"])
def test_not_stat(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_stat(text)


def test_pressure() -> None:
    assert parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0 total=0\n") == 12_000
    assert parse_pressure("") is None
    assert parse_pressure("some avg10=0.00") is None


def test_window_takes_the_samples_around_it() -> None:
    samples = [sample(0, 0, 0), sample(10, 100, 0), sample(20, 200, 100), sample(30, 300, 150), sample(40, 400, 250)]
    summary = summarise(samples, 15, 25)
    assert (summary["mean"], summary["max"], summary["samples"]) == (0.75, 1.0, 3)
    assert summarise(samples, 10, 20)["mean"] == 1.0
    assert summarise(samples, -5, 99)["samples"] == 5
    assert summary["busiest_cpu"] == 0.75
    assert summary["stalled"] is None


def test_steal_and_pressure_are_shares_of_the_time() -> None:
    summary = summarise([sample(0, 0, 0, 0, 0), sample(1000, 200, 100, 50, 250)], 0, 1000)
    assert (summary["mean"], summary["steal"], summary["stalled"]) == (0.5, 0.25, 0.25)


@pytest.mark.parametrize("samples", [[], [sample(5, 1, 1)]])
def test_too_few_samples_make_up_no_number(samples: list[Sample]) -> None:
    summary = summarise(samples, 0, 10)
    assert summary["mean"] is None
    assert summary["max"] is None


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(-5, 1000)), min_size=2, max_size=20),
    st.integers(-10, 3000),
    st.integers(0, 3000),
)
def test_shares_stay_shares(steps: list[tuple[int, int]], start_ns: int, length_ns: int) -> None:
    samples, total, busy = [], 0, 0
    for number, (ticks, used) in enumerate(steps):
        total, busy = total + ticks, busy + used
        samples.append(sample(number * 100, total, busy))
    summary = summarise(samples, start_ns, start_ns + length_ns)
    shares = [summary[name] for name in ("mean", "max", "steal", "busiest_cpu") if summary[name] is not None]
    assert all(0 <= share <= 1 for share in shares)


def test_sampler_spans_its_life() -> None:
    start_ns = now_ns()
    with LoadSampler(interval_ns=NS_PER_MS) as load:
        assert load.summary(start_ns, now_ns())["samples"] >= 2
    load.stop()
    samples = load.samples
    assert len(samples) >= 2
    assert [item.t_ns for item in samples] == sorted(item.t_ns for item in samples)
    assert load.summary(start_ns, start_ns + NS_PER_S)["cpus"] == len(samples[0].cpus) >= 1
