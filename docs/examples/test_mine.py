"""Does a guest come through a migration in our own topology? Run it as root: pytest docs/examples."""

from pathlib import Path

import pytest

# Three switches in a row: less than a busy machine forwards, and a delay that it keeps.
SETTINGS = ("links.default.bandwidth=100Mbit", "calibration.delay_tolerance=100ms")


@pytest.mark.bench("smallest", *SETTINGS, topo=f"{Path(__file__).with_name('mine.py')}:row")
def test_clients_survive_a_migration_in_our_row(bench_run):
    result = bench_run("expect.downtime=< 2s", "expect.flows.died=== 0", "expect.relearn.max=< 5s")
    assert {switch.name for switch in result.relearn.switches} >= {"s1", "s2"}
