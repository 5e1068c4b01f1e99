"""Dirty tracking of real writing processes: no write is lost, and a writer that cannot be trusted is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import MemoryTrackingError
from bench.guest.vcpu_client import Vcpu, pause_all, start_all
from bench.guest.workload import split
from bench.memory.bitmap import DirtyBitmap
from bench.memory.hashes import PageHashes
from bench.memory.hold import held
from bench.memory.image import GuestMemory
from bench.memory.tracker import TRACKERS, PagemapScanTracker, open_tracker, probe, problem_of
from bench.memory.uffd import arm_write_tracking

pytestmark = pytest.mark.root

MEMORY_BYTES = 32 << 20
ROUNDS = 25


def soon() -> Deadline:
    return Deadline(60 * NS_PER_S)


def need(method: str) -> None:
    if problem := problem_of(method):
        pytest.skip(f"{method}: {problem}")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(MEMORY_BYTES) as made:
        made.fill({"zero": 0.3, "text": 0.4, "random": 0.3}, 1)
        yield made


@pytest.fixture
def vcpus(memory: GuestMemory, request: pytest.FixtureRequest) -> Iterator[list[Vcpu]]:
    workload: dict[str, Any] = {
        "pattern": "hotset",
        "rate_bytes_per_s": 0,
        "working_set_bytes": 8 << 20,
        "hot_share": 0.5,
        "write_bytes": 64,
        "seed": 1,
        **getattr(request, "param", {}),
    }
    started = start_all(memory.fd, MEMORY_BYTES, split(workload, MEMORY_BYTES, 1 << 20, 2), deadline=soon())
    yield started
    for vcpu in started:
        vcpu.quit()


@pytest.mark.parametrize("method", TRACKERS)
@pytest.mark.parametrize("vcpus", [{"pattern": name} for name in ("hotset", "sequential", "uniform")], indirect=True)
def test_no_write_is_lost_while_pages_are_copied(memory: GuestMemory, vcpus: list[Vcpu], method: str) -> None:
    need(method)
    shadow = np.zeros_like(memory.words)
    hashes = PageHashes(memory.page_count)
    writers = [vcpu.track(True, method, soon()) for vcpu in vcpus]
    tracker = open_tracker(method, writers, MEMORY_BYTES)
    bitmap = DirtyBitmap(memory.page_count, dirty=True)

    def copy() -> int:
        copied = 0
        while len(pages := bitmap.take(500)):
            shadow[pages] = memory.words[pages]
            hashes.update(shadow, pages)
            copied += len(pages)
        return copied

    try:
        for vcpu in vcpus:
            vcpu.run(soon())
        assert copy() == memory.page_count
        dirty = 0
        for _ in range(ROUNDS):
            dirty += tracker.collect(bitmap)
            copy()
        registers = pause_all(vcpus, soon())
        tracker.collect(bitmap)
        copy()
        assert tracker.collect(bitmap) == 0
    finally:
        tracker.close()
    assert dirty > ROUNDS
    assert sum(state["position"] for state in registers) > dirty
    assert np.array_equal(shadow, memory.words)
    final = PageHashes(memory.page_count)
    final.update_range(memory.words)
    assert final.digest() == hashes.digest()


def test_a_writer_is_looked_through_from_its_first_page_on(memory: GuestMemory) -> None:
    need("pagemap-scan")
    armed = arm_write_tracking(memory.base, MEMORY_BYTES)
    tracker = PagemapScanTracker([(os.getpid(), memory.base, 100)], MEMORY_BYTES)
    memory.words[[99, 100, memory.page_count - 1], 0] = 1
    bitmap = DirtyBitmap(memory.page_count)
    assert tracker.collect(bitmap) == 2
    assert bitmap.pages().tolist() == [100, memory.page_count - 1]
    tracker.close()
    armed.disarm()


def test_exactly_the_written_pages_are_found_over_all_writers(memory: GuestMemory) -> None:
    need("pagemap-scan")
    with GuestMemory.from_fd(os.dup(memory.fd)) as other:
        armed = [arm_write_tracking(item.base, MEMORY_BYTES) for item in (memory, other)]
        tracker = PagemapScanTracker([(os.getpid(), item.base) for item in (memory, other)], MEMORY_BYTES)
        bitmap = DirtyBitmap(memory.page_count)
        assert tracker.collect(bitmap) == 0
        for page in (0, 7, 8, 9, 4000, memory.page_count - 1):
            memory.words[page, 3] = 1
        other.words[[8, 9, 10], 3] = 1
        assert int(memory.words[:, 3].sum()) >= 0  # reading marks nothing
        assert tracker.peek() == tracker.peek() == 7
        assert tracker.collect(bitmap) == 7
        assert bitmap.pages().tolist() == [0, 7, 8, 9, 10, 4000, memory.page_count - 1]
        assert tracker.collect(bitmap) == 0
        everything = np.arange(memory.page_count)
        memory.words[everything[::2], 1] = 1  # more separate regions than fit one answer would be fine, too
        assert tracker.collect(bitmap) == memory.page_count // 2
        tracker.close()
        for tracking in armed:
            tracking.disarm()
            tracking.disarm()


def test_more_regions_than_one_answer_holds(vcpus: list[Vcpu]) -> None:
    del vcpus
    need("pagemap-scan")
    with GuestMemory.create(160 << 20) as large:
        large.populate()
        armed = arm_write_tracking(large.base, large.size_bytes)
        tracker = PagemapScanTracker([(os.getpid(), large.base)], large.size_bytes)
        large.words[::2, 0] = 1
        bitmap = DirtyBitmap(large.page_count)
        assert tracker.collect(bitmap) == large.page_count // 2
        assert bitmap.pages().tolist() == list(range(0, large.page_count, 2))
        assert tracker.collect(bitmap) == 0
        tracker.close()
        armed.disarm()


def test_untouched_mappings_are_tracked_too() -> None:
    need("pagemap-scan")
    with GuestMemory.create(64 * 4096) as fresh:
        armed = arm_write_tracking(fresh.base, fresh.size_bytes)
        tracker = PagemapScanTracker([(os.getpid(), fresh.base)], fresh.size_bytes)
        bitmap = DirtyBitmap(64)
        assert tracker.collect(bitmap) == 0
        assert fresh.words[5, 0] == 0
        fresh.words[6, 0] = 1
        assert tracker.collect(bitmap) == 1
        assert bitmap.pages().tolist() == [6]
        tracker.close()
        armed.disarm()


def test_a_writer_that_does_not_track_is_refused(vcpus: list[Vcpu]) -> None:
    need("pagemap-scan")
    with pytest.raises(MemoryTrackingError, match=str(vcpus[0].pid)):
        PagemapScanTracker([vcpus[0].writer], MEMORY_BYTES)


def test_a_writer_that_stops_tracking_is_an_error(vcpus: list[Vcpu]) -> None:
    need("pagemap-scan")
    tracker = PagemapScanTracker([vcpus[0].track(True, "pagemap-scan", soon())], MEMORY_BYTES)
    vcpus[0].track(False, "pagemap-scan", soon())
    with pytest.raises(MemoryTrackingError, match="does not track"):
        tracker.collect(DirtyBitmap(MEMORY_BYTES // 4096))
    tracker.close()


def test_a_writer_that_dies_is_an_error_not_clean_memory(vcpus: list[Vcpu]) -> None:
    need("pagemap-scan")
    tracker = PagemapScanTracker([vcpu.track(True, "pagemap-scan", soon()) for vcpu in vcpus], MEMORY_BYTES)
    bitmap = DirtyBitmap(MEMORY_BYTES // 4096)
    vcpus[0].run(soon())
    wait_until(lambda: tracker.peek() > 0, soon(), "a write")
    vcpus[0].process.kill()
    vcpus[0].process.wait(60)
    with pytest.raises(MemoryTrackingError, match=f"{vcpus[0].pid}.*died"):
        tracker.collect(bitmap)
    tracker.close()


def test_probe_chooses_what_works() -> None:
    method = probe()
    assert not problem_of(method)


COUNTING = """
import mmap, sys, threading
shared = mmap.mmap(int(sys.argv[1]), 4096)
words = memoryview(shared).cast("Q")
def count(index):
    while True:
        words[index] += 1
threading.Thread(target=count, args=(1,), daemon=True).start()
count(0)
"""

HOLDING = """
import sys
from bench.memory.hold import held
with held(int(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def counter() -> Iterator[tuple[subprocess.Popen[bytes], GuestMemory]]:
    with GuestMemory.create(4096) as shared:
        process = subprocess.Popen([sys.executable, "-c", COUNTING, str(shared.fd)], pass_fds=[shared.fd])
        wait_until(lambda: bool(shared.words[0, :2].all()), soon(), "both threads count")
        yield process, shared
        process.kill()
        process.wait()


def states(pid: int) -> list[str]:
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]


def test_a_held_process_stands_still_with_all_threads_and_goes_on(
    counter: tuple[subprocess.Popen[bytes], GuestMemory],
) -> None:
    process, shared = counter
    for _ in range(5):
        with held(process.pid):
            before = shared.words[0, :2].tolist()
            assert states(process.pid) == ["t", "t"]
            assert shared.words[0, :2].tolist() == before
        for index in (0, 1):
            wait_until(lambda at=index, old=before[index]: int(shared.words[0, at]) > old, soon(), "it counts on")


def test_a_process_whose_holder_is_killed_goes_on(counter: tuple[subprocess.Popen[bytes], GuestMemory]) -> None:
    process, shared = counter
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(process.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        before = int(shared.words[0, 0])
        assert states(process.pid) == ["t", "t"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        holder.stdin.close()
    wait_until(lambda: int(shared.words[0, 0]) > before, soon(), "it counts on")


def test_holding_what_is_gone_is_an_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(MemoryTrackingError, match="held still"), held(process.pid):
        pass
