"""What the two engines need beyond the guest's own pages while they move a guest of 1 GiB: their proportional share of
memory (PSS of /proc/PID/smaps_rollup) less that of shared memory, which is the guest, at the most of several moments.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _moving import Moving, report, with_moving_guest

from bench.migration.driver import Migration
from bench.timeline import Event

MEMORY_MIB = 1024
MOMENTS = ("setup_end", "round_progress", "round_end", "paused", "handover_confirmed", "source_gone")


def own_kib(pid: int) -> int:
    """PSS without shared memory (the guest's pages) of one process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0])
    return fields["Pss"] - fields["Pss_Shmem"]


def body(moving: Moving) -> None:
    """Move once and look at both engines at each of :data:`MOMENTS`."""
    most = {"source": 0, "destination": 0}

    def look(event: Event, migration: Migration) -> None:
        if event.source == "engine.source" and event.name in MOMENTS:
            for name, pid in migration.pids().items():
                most[name] = max(most[name], own_kib(pid))

    moving.move(look)
    for name, kib in most.items():
        report(f"memory of the {name} engine", kib / 1024, "MiB", MEMORY_MIB)
    total = sum(most.values()) / 1024
    report("memory of both engines", total, "MiB", MEMORY_MIB, "ratio < 0.05")


if __name__ == "__main__":
    sys.exit(with_moving_guest("1Gbit", f"{MEMORY_MIB}MiB", body))
