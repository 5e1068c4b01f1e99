"""What the two engines need beyond the guest's own pages: their proportional share of memory (PSS of
/proc/PID/smaps_rollup) less that of shared memory, which is the guest, at the most of several moments of a migration.

A guest of 4 GiB against one of 64 MiB: what grows are bitmaps, page numbers and hashes, some 25 bytes a page in all.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _moving import Moving, report, with_moving_guest

from bench.migration.driver import Migration
from bench.timeline import Event

SMALL_MIB = 64
MEMORY_MIB = 4096
LIMIT_MIB = 64
MOMENTS = ("setup_end", "round_progress", "round_end", "paused", "handover_confirmed", "source_gone")
SIDES = ("source", "destination")


def own_kib(pid: int) -> int:
    """PSS without shared memory (the guest's pages) of one process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0])
    return fields["Pss"] - fields["Pss_Shmem"]


def measure(memory_mib: int) -> None:
    """Of each engine, in one migration of a guest of that size."""
    most = dict.fromkeys(SIDES, 0)

    def look(event: Event, migration: Migration) -> None:
        if event.name in MOMENTS:
            for name, pid in migration.pids().items():
                most[name] = max(most[name], own_kib(pid))

    def body(moving: Moving) -> None:
        moving.move(look)
        for name, kib in most.items():
            report(f"{name} engine, guest of {memory_mib} MiB", kib / 1024, "MiB", memory_mib)
        goal = f"value < {LIMIT_MIB}" if memory_mib == MEMORY_MIB else None
        report(f"both engines, guest of {memory_mib} MiB", sum(most.values()) / 1024, "MiB", memory_mib, goal)

    if with_moving_guest("unlimited", f"{memory_mib}MiB", body):
        raise RuntimeError(f"{memory_mib} MiB: the sandbox failed")


if __name__ == "__main__":
    for size in (SMALL_MIB, MEMORY_MIB):
        measure(size)
    sys.exit(0)
