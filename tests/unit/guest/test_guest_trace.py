"""The workload that replays a trace: its pages at its times, over and over, and on where it was."""

import numpy as np
import pytest

from bench.errors import GuestError
from bench.guest.pacing import BATCH_WRITES, Pacer, Traced
from bench.guest.workload import Workload, split
from bench.memory.trace import dump_trace, load_trace

MS = 10**6
LOOKS = [(10 * MS, np.array([1, 2, 7])), (20 * MS, np.array([], dtype=np.int64)), (30 * MS, np.array([2, 9, 15]))]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_bytes(dump_trace(20, LOOKS))
    return file


def workload(path, vcpus=1):
    told = {
        "pattern": "trace",
        "rate_bytes_per_s": 1 << 20,
        "working_set_bytes": 4096,
        "hot_share": 0.9,
        "write_bytes": 64,
        "seed": 1,
        "trace": str(path),
        "trace_digest": load_trace(path).digest,
    }
    return [Workload(part) for part in split(told, 20 * 4096, 4 * 4096, vcpus)]


def test_pages_come_in_the_traces_order_again_and_again(path):
    (one,) = workload(path)
    assert one.sequence(0, 12).pages.tolist() == [1, 2, 7, 2, 9, 15] * 2
    assert Workload.restore(one.export()).sequence(4, 3).pages.tolist() == [9, 15, 1]


def test_vcpus_share_a_trace_by_its_pages(path):
    first, second = workload(path, vcpus=2)
    assert first.sequence(0, 4).pages.tolist() == [1, 2, 7, 2]
    assert second.sequence(0, 2).pages.tolist() == [9, 15]


def test_a_vcpu_without_pages_in_the_trace_never_writes(tmp_path):
    file = tmp_path / "low.jsonl"
    file.write_bytes(dump_trace(20, [(MS, np.array([0]))]))
    assert [one.writes for one in workload(file, vcpus=2)] == [True, False]


def test_another_file_than_the_guest_was_started_with_is_refused(path):
    registers = workload(path)[0].export()
    path.write_bytes(dump_trace(20, LOOKS[:1]))
    with pytest.raises(GuestError, match="another file"):
        Workload.restore(registers)


def test_writes_are_due_when_the_trace_says(path):
    schedule = Traced(load_trace(path))
    assert [schedule.count(t * MS) for t in (0, 4, 10, 20, 30, 34, 60)] == [0, 1, 3, 3, 6, 7, 12]
    for number in range(1, 14):
        assert schedule.count(schedule.time_ns(number)) == number
        assert schedule.count(schedule.time_ns(number) - 1) == number - 1


def test_a_replay_goes_on_where_it_was(path):
    pacer = Pacer(Traced(load_trace(path)))
    pacer.restart(1000 * MS, position=3)  # which was written at 10 ms; the next one comes at 23.3 ms
    assert pacer.due(1013 * MS) == 0
    assert pacer.due(1014 * MS) == 1
    assert pacer.next_ns(1005 * MS) == 1000 * MS + pacer._schedule.time_ns(4) - 10 * MS


def test_a_replay_that_was_held_up_does_not_burst(path):
    pacer = Pacer(Traced(load_trace(path)))
    pacer.restart(0)
    done = 0
    while due := pacer.due(60_000 * MS):
        pacer.did(due)
        done += due
    assert done <= BATCH_WRITES
    assert done + pacer.missed == 12_000
