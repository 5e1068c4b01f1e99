"""What 20 MB/s of disk writes add to a migration's downtime, against the most that the handover of a disk may take:
three round trips of the storage network and 5 ms. A 64 MiB guest over 1 Gbit/s, without a disk and with a shared one
that it writes to; the median of some migrations of each. Memory that is idle shows what the handover itself adds; where
memory is written, disk and memory also share the link, so that the rounds take longer, and a guest with disks sends
pages while they are flushed before the pause. As root.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from typing import Any

from _moving import Moving, report, with_moving_guest

from bench.timeline import Timeline

MOVES = 10
DELAY_MS = 0.2
RATE = 20_000_000
DISK = {
    "disks": [{"kind": "shared", "format": "raw", "size": "128MiB"}],
    "disk_workload": {"rate": f"{RATE}B/s", "reads": 0.0, "block": "64KiB"},
}
WORKLOADS: dict[str, dict[str, Any]] = {
    "idle memory": {"pattern": "idle"},
    "memory written at 8 MiB/s": {"pattern": "hotset", "rate": "8MiB/s", "working_set": "8MiB"},
}


def moved(workload: dict[str, Any], guest: dict[str, Any]) -> list[dict[str, float]]:
    """Of each of some migrations there and back, in ms: the downtime, and the parts of it that are the disks'."""
    with tempfile.NamedTemporaryFile("r+", encoding="ascii") as file:  # out of the sandbox, which is a process

        def body(moving: Moving) -> None:
            for _ in range(MOVES):
                _outcome, engine = moving.move()
                events = [
                    event
                    for path in (moving.directory / "events").glob("guest.*.jsonl")
                    for event in Timeline.read(path)
                    if event.name in ("disks_drained", "pause_begin")
                ]
                times = {event.name: event.t_ns for event in sorted(events, key=lambda event: event.t_ns)}
                steps = {event.name: event.t_ns for event in engine}
                found = {
                    "downtime": moving.downtime_ns(),
                    "drain": times.get("disks_drained", 0) - times["pause_begin"] if guest else 0,
                    "flush and release, beside the last pages": steps["storage_released"] - steps["paused"]
                    if guest
                    else 0,
                    "of them waited for": steps["storage_end"] - steps["storage_begin"],
                }
                print(json.dumps({name: ns / 1e6 for name, ns in found.items()}), file=file, flush=True)

        links: dict[str, Any] = {"workload": workload, "delay": f"{DELAY_MS}ms", "guest": guest, "place": "/dev/shm"}  # noqa: S108
        if with_moving_guest("1Gbit", "64MiB", body, **links):
            raise SystemExit(1)
        file.seek(0)
        return [json.loads(line) for line in file]


def median(found: list[dict[str, float]], name: str) -> float:
    """Of one of the parts."""
    return statistics.median(one[name] for one in found)


def main() -> int:
    """Print the rows."""
    limit_ms = 3 * 4 * DELAY_MS + 5  # each round trip crosses two links, there and back
    for memory, workload in WORKLOADS.items():
        without, with_disk = moved(workload, {}), moved(workload, DISK)
        base_ms = median(without, "downtime")
        report(f"{memory}, no disk: downtime", base_ms, "ms", base_ms)
        for name in with_disk[0]:
            report(f"{memory}, 20 MB/s of disk writes: {name}", median(with_disk, name), "ms", base_ms)
        added_ms = median(with_disk, "downtime") - base_ms
        report(f"{memory}: what the disk writes add", added_ms, "ms", limit_ms, "ratio <= 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
