"""What dirty tracking costs: finding 20,000 dirty pages in 1 GiB, and a writer's speed while it is tracked."""

from __future__ import annotations

import json
import os
import statistics
import time

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.guest.vcpu_client import Vcpu
from bench.guest.workload import split
from bench.memory.bitmap import DirtyBitmap
from bench.memory.image import GuestMemory
from bench.memory.tracker import DirtyTracker, open_tracker, probe
from bench.memory.uffd import arm_write_tracking

MEMORY_BYTES = 1 << 30
DIRTY_PAGES = 20_000
REPEATS = 15
LIMIT_MS = 10
WRITING_NS = 2 * NS_PER_S
ROUND_NS = 200 * NS_PER_MS
WORKLOAD = {
    "pattern": "uniform",
    "rate_bytes_per_s": 0,
    "working_set_bytes": MEMORY_BYTES,
    "hot_share": 1.0,
    "write_bytes": 256,
    "seed": 1,
}


def soon() -> Deadline:
    """For one command."""
    return Deadline(60 * NS_PER_S)


def report(name: str, value: float, unit: str, reference: float, goal: str | None) -> None:
    """One JSON line; see run.py."""
    row = {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": value / reference, "goal": goal}
    print(json.dumps(row), flush=True)


def scans(memory: GuestMemory, method: str) -> tuple[float, float]:
    """Dirty exactly :data:`DIRTY_PAGES` scattered pages and scan, again and again; this process is the writer.

    :returns: medians in ms of the scans and of scans of clean memory.
    """
    tracking = arm_write_tracking(memory.base, MEMORY_BYTES) if method == "pagemap-scan" else None
    tracker = open_tracker(method, [(os.getpid(), memory.base)], MEMORY_BYTES)
    random = np.random.default_rng(1)
    bitmap = DirtyBitmap(memory.page_count)
    took: list[float] = []
    clean: list[float] = []
    tracker.collect(bitmap)
    for repeat in range(REPEATS):
        memory.words[random.permutation(memory.page_count)[:DIRTY_PAGES], 0] = repeat
        for times, expected in ((took, DIRTY_PAGES), (clean, 0)):
            begin = time.perf_counter()
            found = tracker.collect(bitmap)
            times.append((time.perf_counter() - begin) * 1e3)
            if found != expected:
                raise SystemExit(f"{found} dirty pages found where {expected} were written")
    tracker.close()
    if tracking is not None:
        tracking.disarm()
    return statistics.median(took), statistics.median(clean)


def writes_per_s(vcpu: Vcpu, tracker: DirtyTracker | None) -> float:
    """The unthrottled speed of the vCPU, with a scan every :data:`ROUND_NS` when it is tracked."""
    bitmap = DirtyBitmap(MEMORY_BYTES // 4096)
    before = int(vcpu.stats(soon())["writes"])
    begin = now_ns()
    vcpu.run(soon())
    while (left := begin + WRITING_NS - now_ns()) > 0:
        time.sleep(min(left, ROUND_NS) / NS_PER_S)  # a measurement of a stated length
        if tracker is not None:
            tracker.collect(bitmap)
    vcpu.pause(soon())
    return (int(vcpu.stats(soon())["writes"]) - before) * NS_PER_S / (now_ns() - begin)


def main() -> None:
    """Run it."""
    method = probe()
    with GuestMemory.create(MEMORY_BYTES) as memory:
        memory.populate()
        vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, split(WORKLOAD, MEMORY_BYTES, 4096, 1)[0], deadline=soon())
        try:
            writes_per_s(vcpu, None)  # warm up
            untracked = writes_per_s(vcpu, None)
            tracker = open_tracker(method, [vcpu.track(True, method, soon())], MEMORY_BYTES)
            tracked = writes_per_s(vcpu, tracker)
            tracker.close()
        finally:
            vcpu.quit()
        took, clean = scans(memory, method)
    report(f"dirty scan, 1 GiB, {DIRTY_PAGES} dirty pages", took, "ms", LIMIT_MS, "value < 10")
    report("dirty scan, 1 GiB, clean", clean, "ms", took, None)
    report("writes while tracked", tracked, "writes/s", untracked, None)


if __name__ == "__main__":
    main()
