"""The engine against the least that any engine could need on the same link.

The link's goodput is the best that iperf3 gets on it, before and after each migration. An idle guest at 1 Gbit/s: the
transfer (total time without the set-up) against all pages once over that goodput.
A hot set of 64 MiB written at 40 MiB/s: the downtime against the pages that were dirty at the pause over the goodput,
plus a round trip; and what being tracked costs such a guest in writes, while it is paced and when it writes all it can.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from _moving import GUEST, IDLE, Moving, report, with_moving_guest

from bench.analysis import model
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.guest.client import GuestControl
from bench.guest.dirty_rate import sample_dirty
from bench.guest.vcpu_client import Vcpu
from bench.guest.workload import split
from bench.memory.bitmap import DirtyBitmap
from bench.memory.image import GuestMemory
from bench.memory.tracker import DirtyTracker, open_tracker, probe
from bench.timeline import Timeline

MIB = 1 << 20
MEMORY = "1024MiB"
REPEATS = 3
IPERF_S = 2
GRACE_MS = 5
HOT_SET = {"pattern": "hotset", "rate": "40MiB/s", "working_set": "64MiB", "hot_share": 0.9}
ROUND_NS = 500 * NS_PER_MS  # between two looks: a round of pre-copy at 1 Gbit/s that sends half of the hot set
WRITING_NS = 4 * NS_PER_S


def bound_of(timeline: Timeline, goodput_bps: float) -> tuple[model.Bound, int]:
    """The lower bound of a migration, and its transfer in ns."""
    rounds = [event.data for event in timeline.select("round_end")]
    (device,), (connected,) = timeline.select("device_state_sent"), timeline.select("connected")
    still = sum(item["pages"] - item["zero_pages"] for item in rounds if item["paused"])
    bound = model.lower_bound(
        rounds[0]["pages"] - rounds[0]["zero_pages"],
        still,
        int(device.data["bytes"]),
        goodput_bps,
        int(connected.data["rtt_ns"]),
    )
    (begin,), (end,) = timeline.select("setup_end"), timeline.select("handover_confirmed")
    return bound, end.t_ns - begin.t_ns


def moves(moving: Moving) -> Iterator[tuple[Timeline, int]]:
    """Migrations there and back: the source engine's events, and the downtime in ns."""
    for _ in range(REPEATS):
        _outcome, timeline = moving.move()
        yield timeline, moving.downtime_ns()


def measured(moving: Moving) -> list[tuple[model.Bound, int, int]]:
    """Lower bound, transfer and downtime in ns of each migration; iperf3 runs before and after each."""
    rates = [moving.iperf3_bps(IPERF_S)]
    done = []
    for timeline, still_ns in moves(moving):
        done.append((timeline, still_ns))
        rates.append(moving.iperf3_bps(IPERF_S))
    return [(*bound_of(timeline, max(rates)), still_ns) for timeline, still_ns in done]


def idle(moving: Moving) -> None:
    """There and back, and the medians."""
    done = measured(moving)
    value = statistics.median(took_ns for _bound, took_ns, _still_ns in done) / NS_PER_S
    reference = statistics.median(bound.total_ns for bound, _took_ns, _still_ns in done) / NS_PER_S
    report("idle 1 GiB, transfer at 1 Gbit/s against lower bound", value, "s", reference, "ratio <= 1.03")


def hot(moving: Moving) -> None:
    """Downtimes, and then the same guest's writes with and without tracking."""
    done = measured(moving)
    value = statistics.median(still_ns for _bound, _took_ns, still_ns in done) / NS_PER_MS
    reference = statistics.median(bound.downtime_ns for bound, _took_ns, _still_ns in done) / NS_PER_MS
    goal = "ratio <= 1.25" if 1.25 * reference > reference + GRACE_MS else f"value <= {reference + GRACE_MS:.2f}"
    report("hot set 64 MiB, downtime at 1 Gbit/s against lower bound", value, "ms", reference, goal)
    plain = [written_per_s(moving, tracked=False), written_per_s(moving, tracked=True)]
    plain += [written_per_s(moving, tracked=False), written_per_s(moving, tracked=True)]
    untracked, tracked = statistics.mean(plain[::2]), statistics.mean(plain[1::2])
    report("writes while tracked, hot set at 40 MiB/s", tracked, "1/s", untracked, "ratio >= 0.9")


def written_per_s(moving: Moving, *, tracked: bool) -> float:
    """Pages that the guest writes in a second."""
    guest = moving.testbed.guests[GUEST]

    def wait(until: Deadline) -> None:
        time.sleep(until.remaining_s)  # a measurement of a stated length

    with GuestControl.connect(guest.socket_path) as control:
        before, begin_ns = int(control.stats()["pages_written"]), now_ns()
        if tracked:
            sample_dirty(guest.socket_path, WRITING_NS, wait, intervals=WRITING_NS // ROUND_NS)
        else:
            wait(Deadline(WRITING_NS))
        return (int(control.stats()["pages_written"]) - before) * NS_PER_S / (now_ns() - begin_ns)


def unpaced() -> None:
    """One vCPU that writes its hot set as fast as it can."""
    memory_bytes = 1024 * MIB
    workload: dict[str, Any] = {
        "pattern": "hotset",
        "rate_bytes_per_s": 0,
        "working_set_bytes": 64 * MIB,
        "hot_share": 1.0,
        "write_bytes": 256,
        "seed": 1,
    }
    soon = Deadline(120 * NS_PER_S)
    with GuestMemory.create(memory_bytes) as memory:
        memory.populate()
        vcpu = Vcpu.start(memory.fd, memory_bytes, split(workload, memory_bytes, MIB, 1)[0], deadline=soon)
        try:
            _writes_per_s(vcpu, None)  # warm up
            untracked = _writes_per_s(vcpu, None)
            method = probe()
            tracker = open_tracker(method, [vcpu.track(True, method, soon)], memory_bytes)
            tracked = _writes_per_s(vcpu, tracker)
            tracker.close()
        finally:
            vcpu.quit()
    report("writes while tracked, hot set alone, unpaced", tracked, "1/s", untracked)


def _writes_per_s(vcpu: Vcpu, tracker: DirtyTracker | None) -> float:
    bitmap = DirtyBitmap(1024 * MIB // 4096)
    soon = Deadline(60 * NS_PER_S)
    before, begin_ns = int(vcpu.stats(soon)["writes"]), now_ns()
    vcpu.run(soon)
    while (left_ns := begin_ns + WRITING_NS - now_ns()) > 0:
        time.sleep(min(left_ns, ROUND_NS) / NS_PER_S)  # a measurement of a stated length
        if tracker is not None:
            tracker.collect(bitmap)
    vcpu.pause(soon)
    return (int(vcpu.stats(soon)["writes"]) - before) * NS_PER_S / (now_ns() - begin_ns)


if __name__ == "__main__":
    for what, workload in ((idle, IDLE), (hot, HOT_SET)):
        if with_moving_guest("1Gbit", MEMORY, what, workload=workload):
            raise RuntimeError(f"{what.__name__}: the sandbox failed")
    unpaced()
    sys.exit(0)
