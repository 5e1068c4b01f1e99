"""The guest as a client of a server outside, and one-way datagrams either way: nothing is lost that may not be."""

from __future__ import annotations

import numpy as np
import pytest
from bench_runs import PLAIN_LINKS, Bench, completed, flow_records, require_moved, settings

from bench.analysis.flows import in_time_limit_ns
from bench.records import STATUS_CORRUPT, load_records
from bench.result import FlowResult, MigrationResult

pytestmark = pytest.mark.root

KINDS = (
    "tcp-request",
    "tcp-download",
    "tcp-upload",
    "tcp-connect",
    "tcp-idle",
    "http",
    "redis",
    "udp-echo",
    "udp-stream",
)
OWN = "".join(
    f"""
[[clients]]
kind = "{kind}"
name = "own-{kind}"
direction = "from-guest"
interval = "10ms"
size = "200B"
rate = "{"10Mbit" if "load" in kind else "1Mbit" if kind == "udp-stream" else "0"}"
{'tcp = { user_timeout = "30s", keepalive = "1s/1s/5", retries2 = 9 }' if kind == "tcp-idle" else ""}
"""
    for kind in KINDS
)
SCENARIO = f"""
[links.default]
bandwidth = "1Gbit"
delay = "0.2ms"
[guest]
memory = "16MiB"
store_memory = "1MiB"
[guest.workload]
rate = "1MiB/s"
working_set = "1MiB"
{OWN}
[[clients]]
kind = "udp-stream"
name = "one-way"
rate = "1Mbit"
size = "200B"
[run]
warmup = "500ms"
settle = "500ms"
pause_between = "200ms"
repeat = 2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    directory = tmp_path_factory.mktemp("own")
    scenario = directory / "own.toml"
    scenario.write_text(SCENARIO)
    return completed(directory, *settings(*PLAIN_LINKS), scenario=scenario)


def moved(run: Bench) -> list[MigrationResult]:
    migrations = run.result().migrations
    assert len(migrations) == 2
    for migration in migrations:
        require_moved(migration)
    return migrations


def flow(migration: MigrationResult, name: str) -> FlowResult:
    return next(item for item in migration.flows if item.name == name)


def test_every_kind_of_the_guest_s_own_lives_through_two_migrations(run: Bench) -> None:
    for migration in moved(run):
        for kind in KINDS:
            own = flow(migration, f"own-{kind}")
            assert (own.alive, own.error, own.corrupted, own.reconnects) == (True, None, 0, 0), own
            assert own.direction == "from-guest"
            assert own.requests > (1 if kind == "tcp-idle" else 20)
            if not kind.startswith("udp"):
                assert own.lost == 0


def test_the_outage_of_a_guest_that_asks_is_at_least_its_downtime(run: Bench) -> None:
    for migration in moved(run):
        for kind in ("tcp-request", "tcp-download", "tcp-upload", "udp-stream"):
            own = flow(migration, f"own-{kind}")
            assert own.outage_ns is not None
            assert own.typical_gap_ns is not None
            assert migration.downtime_ns is not None
            # A pause no longer than what such a flow waits anyway is no outage of it: see bench.analysis.flows.
            unnoticed = own.outage_ns == 0 and migration.downtime_ns <= in_time_limit_ns(own.typical_gap_ns)
            assert unnoticed or own.outage_ns >= migration.downtime_ns * 9 // 10, own


@pytest.mark.parametrize("name", ["one-way", "own-udp-stream"])
def test_one_way_datagrams_are_numbered_without_a_gap_and_every_loss_is_known(run: Bench, name: str) -> None:
    records = load_records(flow_records(run.output, name).with_suffix(".npy"))
    assert list(records["seq"]) == list(range(len(records)))
    arrived = records["received_ns"] > 0
    assert arrived.mean() > 0.5
    assert (records["received_ns"][arrived] > records["sent_ns"][arrived]).all()
    assert not (records["status"] & STATUS_CORRUPT).any()
    assert not arrived[0] or records["bytes"][0] == 200
    if name == "one-way":  # the guest stood still while they kept coming
        assert not arrived.all()
    assert (np.diff(records["sent_ns"]) > 0).all()


def test_connections_of_the_guest_s_own_are_sampled_in_both_places(run: Bench) -> None:
    migrations = moved(run)
    for kind in ("tcp-request", "tcp-download", "tcp-upload", "tcp-idle"):
        tcp = flow(migrations[-1], f"own-{kind}").tcp
        assert tcp is not None
        assert tcp.samples > 1
    idle = flow(migrations[-1], "own-tcp-idle").tcp
    assert idle is not None
    assert idle.survivable_ns is not None
    assert idle.survivable_ns <= 31 * 10**9  # by its user timeout


def test_what_was_sent_again_is_counted_in_both_directions(run: Bench) -> None:
    for migration in moved(run):
        for kind in ("tcp-request", "tcp-download", "tcp-upload"):
            assert flow(migration, f"own-{kind}").resent is not None
