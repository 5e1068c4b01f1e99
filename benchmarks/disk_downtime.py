"""What 20 MB/s of disk writes add to a migration's downtime, against the most that the handover of a disk may take:
three round trips of the storage network and 5 ms. A 64 MiB guest over 1 Gbit/s, without a disk and with a shared one
that it writes to; the median of some migrations of each. As root.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from typing import Any

from _moving import Moving, report, with_moving_guest

MOVES = 6
DELAY_MS = 0.2
RATE = 20_000_000
DISK = {
    "disks": [{"kind": "shared", "format": "raw", "size": "128MiB"}],
    "disk_workload": {"rate": f"{RATE}B/s", "reads": 0.0, "block": "64KiB"},
}
WORKLOAD = {"pattern": "uniform", "rate": "8MiB/s", "working_set": "8MiB"}


def downtimes_ms(guest: dict[str, Any]) -> list[float]:
    """Of some migrations there and back."""
    with tempfile.NamedTemporaryFile("r+", encoding="ascii") as file:  # out of the sandbox, which is a process

        def body(moving: Moving) -> None:
            for _ in range(MOVES):
                moving.move()
                print(moving.downtime_ns() / 1e6, file=file, flush=True)

        if with_moving_guest("1Gbit", "64MiB", body, workload=WORKLOAD, delay=f"{DELAY_MS}ms", guest=guest):
            raise SystemExit(1)
        file.seek(0)
        return [float(line) for line in file]


def main() -> int:
    """Print the rows."""
    without, with_disk = (statistics.median(downtimes_ms(guest)) for guest in ({}, DISK))
    limit_ms = 3 * 4 * DELAY_MS + 5  # each round trip crosses two links, there and back
    report("downtime without a disk", without, "ms", without)
    report("downtime with 20 MB/s of disk writes", with_disk, "ms", without)
    report("what the disk writes add", with_disk - without, "ms", limit_ms, "ratio <= 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
