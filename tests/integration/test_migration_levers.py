"""Levers with real guests: each did what it says, and nothing of it is left behind."""
# ruff: noqa: F811 - the fixture is imported

import contextlib
import secrets
import signal
import tempfile
from pathlib import Path

import pytest
from test_migration_guests import MIB, mover, workload  # noqa: F401

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.cgroup import cpu_hierarchy, make_parent
from bench.host.ledger import RunDirectory

pytestmark = pytest.mark.root


def test_text_takes_half_the_bytes_or_less_with_zstd(mover):
    mover.boot(content={"zero": 0.0, "text": 1.0, "random": 0.0}, workload=workload("idle"))
    sent = {}
    for compression in ("none", "zstd"):
        outcome = mover.move(max_bandwidth_bps=100_000_000, compression=compression)
        assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
        sent[compression] = outcome["bytes_sent"]
    assert sent["zstd"] * 2 <= sent["none"]


def test_rewritten_pages_cross_as_deltas(mover):
    mover.boot(content={"zero": 0.0, "text": 0.0, "random": 1.0}, workload=workload("hotset", 8 * MIB))
    outcome = mover.move(max_bandwidth_bps=100_000_000, downtime_limit_ns=1, max_rounds=5, delta_cache_bytes=64 * MIB)
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
    delta = outcome["cost"]["delta"]
    assert delta["hit_rate"] == 1  # the cache holds all of this guest
    assert delta["output_bytes"] * 3 < delta["input_bytes"]


@pytest.fixture
def cgroup():
    """A parent for groups, in the ledger of a run that is removed as after a crash."""
    if cpu_hierarchy() is None:
        pytest.skip("needs a CPU controller")
    with tempfile.TemporaryDirectory(prefix="mg-", dir="/tmp") as base, RunDirectory.create(Path(base)) as run:
        parent = make_parent(f"migration-bench-test-{secrets.token_hex(4)}", run.record_cgroup)
        assert parent is not None
        yield parent  # ask for it before the guest: a group goes when its members have
    assert not parent.exists()


def shares(parent):
    """The quotas of all groups below *parent*: None for no limit."""
    found = []
    for group in sorted(path for path in parent.iterdir() if path.is_dir()):
        with contextlib.suppress(FileNotFoundError):
            text = (group / "cpu.max").read_text().split()[0]
            found.append(None if text == "max" else int(text))
            continue
        number = int((group / "cpu.cfs_quota_us").read_text())
        found.append(None if number < 0 else number)
    return found


ENDLESS = {
    "max_bandwidth_bps": 100_000_000,
    "downtime_limit_ns": 1,
    "max_rounds": 1,
    "on_no_convergence": "throttle",
    "verify": "background",
}


@pytest.mark.parametrize("mechanism", ["cgroup", "loop"])
def test_a_guest_that_does_not_converge_is_throttled_step_by_step(cgroup, mover, mechanism):
    mover.boot(workload=workload("uniform", 24 * MIB), vcpus=2)
    seen = []

    def look(event):
        if event.name == "throttle":
            seen.append((event.data["percent"], shares(cgroup)))

    outcome = mover.move(look, cgroup=str(cgroup) if mechanism == "cgroup" else "", **ENDLESS)
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
    throttle = outcome["cost"]["throttle"]
    assert throttle["mechanism"].startswith(mechanism)
    assert [step["percent"] for step in throttle["steps"]] == [20, 30, 40, 50, 60, 70, 80, 90, 99][: len(seen)]
    assert throttle["throttled_ns"] > 0
    if mechanism == "cgroup":
        assert all(len(found) == 2 and None not in found for _, found in seen)
    assert mover.control.stats(check=True)["self_check_errors"] == 0
    assert shares(cgroup) == []  # the source's guest removed its own


@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_a_throttle_ends_with_its_migration(cgroup, mover, end):
    mover.boot(workload=workload("uniform", 24 * MIB))
    limited = []

    def stop(event):
        if event.name == "throttle" and event.data["percent"] and not limited:
            limited.extend(shares(cgroup))
            if end == "cancel":
                assert mover.moving.cancel()
            else:
                mover.moving._sides["source"].process.send_signal(signal.SIGKILL)

    outcome = mover.move(stop, cgroup=str(cgroup), **ENDLESS)
    assert outcome["outcome"] == ("cancelled" if end == "cancel" else "failed")
    assert None not in limited
    assert limited
    wait_until(lambda: shares(cgroup) == [None], Deadline(10 * NS_PER_S), "the quota is lifted")
    assert mover.assert_one_runs() == "h1"


def test_the_dirty_rate_is_brought_below_its_limit(mover):
    mover.boot(workload=workload("sequential", 24 * MIB))
    settings = {"max_bandwidth_bps": 60_000_000, "downtime_limit_ns": 1, "max_rounds": 3}
    outcome = mover.move(dirty_limit_bytes_per_s=4 * MIB, **settings)
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
    limit = outcome["cost"]["dirty_limit"]
    assert limit["last_bytes_per_s"] < limit["limit_bytes_per_s"] == 4 * MIB < limit["most_bytes_per_s"]
    assert mover.control.stats(check=True)["self_check_errors"] == 0


def test_groups_of_a_killed_guest_go_with_the_run(cgroup):
    (cgroup / "g.1.0").mkdir()
    assert shares(cgroup) == [None]
