"""What several streams gain over one: 512 MiB of random pages of an idle guest, goodput of the first round, the numbers
of streams alternating in one run; unshaped, at 1 Gbit/s, and unshaped over a round trip of 20 ms, where one
connection's window is the limit.
"""

from __future__ import annotations

import statistics
import sys

from _moving import MIGRATION, Moving, report, with_moving_guest

MEMORY = "512MiB"
STREAMS = (1, 2, 4)


def measure(name: str, bandwidth: str, delay: str, repeats: int) -> None:
    """Alternate, there and back."""

    def body(moving: Moving) -> None:
        found: dict[int, list[float]] = {streams: [] for streams in STREAMS}
        for _ in range(repeats):
            for streams in STREAMS:
                found[streams].append(moving.goodput_bps({**MIGRATION, "streams": streams}))
        one = statistics.median(found[1])
        for streams in STREAMS[1:]:
            report(f"{streams} streams vs 1, {name}", statistics.median(found[streams]) / 1e9, "Gbit/s", one / 1e9)

    if with_moving_guest(bandwidth, MEMORY, body, delay=delay):
        raise RuntimeError(f"{name}: the sandbox failed")


if __name__ == "__main__":
    measure("unshaped", "unlimited", "0ms", repeats=3)
    measure("1 Gbit/s", "1Gbit", "0ms", repeats=1)
    measure("unshaped, 20 ms", "unlimited", "5ms", repeats=3)
    sys.exit(0)
