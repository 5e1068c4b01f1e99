from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_up import MS, RESUME, result

from bench.analysis.brownout import brownout
from bench.records import RECORD


def test_a_flow_is_cut_into_brownout_blackout_and_ramp() -> None:
    one = result().migrations[0]
    flow = one.flows[1]  # its outage begins 30 ms before the resume and lasts 232.7 ms
    made = np.zeros(20_000, RECORD)
    made["received_ns"] = RESUME - 10_000 * MS + np.arange(20_000) * MS
    made["bytes"] = 1000
    assert flow.outage_start_ns is not None
    assert flow.outage_end_ns is not None
    slow = (made["received_ns"] >= flow.outage_end_ns) & (made["received_ns"] < flow.outage_end_ns + 300 * MS)
    made["bytes"][slow] = 500
    made["bytes"][(made["received_ns"] > one.start_ns + 700 * MS) & (made["received_ns"] < flow.outage_start_ns)] = 800
    gone = (made["received_ns"] > flow.outage_start_ns) & (made["received_ns"] < flow.outage_end_ns)
    found = brownout(flow, one, made[~gone])
    assert found.before_bps == 8_000_000
    assert found.brownout_bps is not None
    assert abs(found.brownout_bps / 6_400_000 - 1) < 0.01
    assert found.blackout_ns == flow.outage_ns
    assert found.ramp_ns is not None
    assert 250 * MS <= found.ramp_ns <= 310 * MS


def test_a_flow_that_never_comes_back_has_no_ramp() -> None:
    one = result().migrations[0]
    made = np.zeros(5, RECORD)
    made["received_ns"] = RESUME - 9_000 * MS + np.arange(5)
    assert brownout(one.flows[0], one, made).ramp_ns is None
    assert brownout(one.flows[0], one, made[:0]).before_bps is None
