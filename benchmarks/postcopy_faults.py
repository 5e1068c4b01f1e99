"""How long a guest waits for a page in post-copy at 1 Gbit/s while the rest is pushed: a hot set of 64 MiB written at
40 MiB/s of 1 GiB of random pages. The reference is what the network alone costs: the round trip of an idle link and
one page at the link's rate; the ratio says how much of the wait is queueing behind the push, and the engines' work.
"""

from __future__ import annotations

import statistics
import sys

from _moving import MIGRATION, Moving, report, with_moving_guest

from bench.clock import NS_PER_S

LIMIT_MS = 3
MEMORY_MIB = 1024
REPEATS = 3
RATE_BPS = 10**9
HOT_SET = {"pattern": "hotset", "rate": "40MiB/s", "working_set": "64MiB", "hot_share": 0.9}


def body(moving: Moving) -> None:
    """There and back, and the medians of the migrations' medians."""
    medians, highest, trips, pushes = [], [], [], []
    for _ in range(REPEATS):
        outcome, timeline = moving.move(settings={**MIGRATION, "mode": "postcopy"})
        latency = outcome["cost"]["postcopy"]["fault_latency"]
        if not latency["count"]:
            raise RuntimeError("the guest never waited for a page: nothing to measure")
        medians.append(latency["p50_ns"])
        highest.append(latency["p99_ns"])
        (connected,), (begin,), (end,) = map(timeline.select, ("connected", "postcopy_begin", "postcopy_end"))
        pushes.append((end.t_ns - begin.t_ns) / NS_PER_S)
        trips.append(int(connected.data["rtt_ns"]))
    alone_ms = (statistics.median(trips) + 4096 * 8 * 10**9 / RATE_BPS) / 1e6
    report(
        "post-copy at 1 Gbit/s: median fault", statistics.median(medians) / 1e6, "ms", alone_ms, f"value < {LIMIT_MS}"
    )
    report("post-copy at 1 Gbit/s: 99th percentile of faults", statistics.median(highest) / 1e6, "ms", alone_ms)
    at_line_rate_s = MEMORY_MIB * 2**20 * 8 / RATE_BPS
    report("post-copy at 1 Gbit/s: from resume to last page", statistics.median(pushes), "s", at_line_rate_s)


if __name__ == "__main__":
    sys.exit(with_moving_guest("1Gbit", f"{MEMORY_MIB}MiB", body, workload=HOT_SET))
