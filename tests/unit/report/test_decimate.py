from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.records import RECORD
from bench.report.decimate import Detail, keep, latencies, thin, throughput


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=500), st.integers(1, 40))
def test_thinning_keeps_the_extremes_in_order(values: list[float], buckets: int) -> None:
    made = np.array(values)
    kept = thin(np.arange(len(made)), made, buckets)
    assert len(kept) <= max(2 * buckets, 1)
    assert np.all(np.diff(kept) > 0)
    assert made[kept].max() == made.max()
    assert made[kept].min() == made.min()


def test_everything_in_the_detail_is_kept() -> None:
    t_ns = np.arange(100_000, dtype=np.int64)
    kept = keep(t_ns, np.zeros(100_000), Detail(((50_000, 51_000),)))
    assert set(range(50_000, 51_000)) <= set(kept.tolist())
    assert len(kept) < 4_000


def test_throughput_loses_no_byte() -> None:
    made = np.zeros(1000, RECORD)
    made["received_ns"] = np.arange(1, 1001) * 1_000_000
    made["bytes"] = 1500
    shown = throughput(made, Detail(((300_000_000, 400_000_000),)), 0, 1_100_000_000)
    carried = (shown.rates_bps * np.diff(shown.edges_ns) / 8e9).sum()
    assert round(carried) == 1_500_000


def test_lost_requests_are_counted_whole() -> None:
    made = np.zeros(5000, RECORD)
    made["sent_ns"] = np.arange(5000)
    found = latencies(made, Detail(()))
    assert found.counts == (0, 5000)
    assert len(found.lost_ns) == 400
