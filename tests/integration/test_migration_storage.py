"""A guest with disks moves: a reader of the image finds each acknowledged write once, in order.

What else may happen to such a migration: ``test_migration_storage_faults.py``.
"""

import os
import signal

import pytest
from disk_mover import DISK_WORKLOAD, moving_disks
from guest_mover import MIB
from held import LONG_NS, go_on, hold_source, wait_until_held

from bench.clock import NS_PER_S, Deadline
from bench.storage.reader import read_disk
from bench.timeline import Timeline

pytestmark = pytest.mark.root
STEPS = ["pause_begin", "storage_flushed", "storage_released", "storage_end", "handover_sent"]


@pytest.fixture
def mover():
    with moving_disks() as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "form", "moves"),
    [
        ("shared", "qcow2", 2),
        ("shared", "vhd", 1),
        ("shared", "vhdx", 1),
        ("pass-through", "raw", 1),
        ("local", "raw", 2),
    ],
)
def test_every_kind_of_disk_moves(mover, kind, form, moves):
    mover.boot_with_disk(kind, form)
    for _ in range(moves):
        outcome = mover.move()
        assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
        assert mover.assert_one_runs() == mover.host
        events = Timeline.read(mover.lab.directory / f"engine.source-{mover.count}.jsonl")
        assert [event.name for event in events if event.name in STEPS] == STEPS
    proof = mover.proved()
    assert len(proof["found"].generations) == moves + 1
    assert proof["expected"]["workload"]["writes"] > 0


def test_requests_under_way_at_the_pause_are_done_exactly_once(mover):
    """By the count of what the storage side carried out, and by what each block then holds."""
    busy = {**DISK_WORKLOAD, "rate_bytes_per_s": 0, "reads": 0.0}
    mover.boot_with_disk("shared", "raw", workload=busy, rate=16 * MIB, log=False)
    outcome = mover.move()
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
    events = Timeline.read(mover.first.events)
    (drained,) = events.select("disks_drained")
    assert drained.data["requests"] > 0
    expected = mover.control.stats(Deadline(30 * NS_PER_S), quiet=True)["disks"]["disks"]["vda"]
    server = mover.servers["st1"]
    carried_out = server.stats()["guests"]["g"]["written_bytes"]
    server.stop()
    workload = expected["workload"]
    assert carried_out == workload["writes"] * workload["block_bytes"]
    assert workload["wrong_reads"] == workload["failed"] == 0
    assert read_disk(mover.lab.directory / "images" / "st1" / "g.vda.raw", "raw", expected).problems == []


def test_a_disk_that_hangs_is_waited_for_before_the_pause_and_then_the_guest_stays(mover, monkeypatch):
    mover.boot_with_disk("shared", "raw", timeout_s=2)
    (image_server,) = mover.servers["st1"].stats()["pids"].values()
    hold_source(monkeypatch, after=["setup_end"])
    moving = mover.start()
    wait_until_held(moving)
    os.kill(image_server, signal.SIGSTOP)
    go_on(moving)
    outcome = mover.end(moving.wait(None, Deadline(LONG_NS)))
    assert outcome["outcome"] == "failed"
    assert "the disks are not flushed within 2 s" in outcome["reason"]
    events = Timeline.read(mover.lab.directory / "engine.source-1.jsonl")
    assert not events.select("pause_begin")
    rounds = [event.data for event in events.select("round_end")]
    assert len(rounds) > 2  # memory crossed meanwhile, again and again
    os.kill(image_server, signal.SIGCONT)
    assert mover.assert_one_runs() == "h1"
    monkeypatch.undo()
    again = mover.move()
    assert (again["outcome"], again["reason"], again["identical"]) == ("completed", "", True)
    mover.proved()
