"""How fast the engine moves memory: 1 GiB of random pages of an idle guest through the switch, against iperf3 on the
same path in the same run, the two alternating; unshaped and at 1 Gbit/s. The ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import sys

from _moving import Moving, report, with_moving_guest

MEMORY = "1024MiB"


def measure(name: str, goal: str, repeats: int, seconds: int) -> None:
    """Alternate iperf3 and migrations, there and back again."""

    def body(moving: Moving) -> None:
        references, values = [], []
        for _ in range(repeats):
            references.append(moving.iperf3_bps(seconds))
            values.append(moving.goodput_bps())
        reference, value = statistics.median(references), statistics.median(values)
        report(name, value / 1e9, "Gbit/s", reference / 1e9, goal)

    bandwidth = "unlimited" if name.endswith("unshaped") else "1Gbit"
    if with_moving_guest(bandwidth, MEMORY, body):
        raise RuntimeError(f"{name}: the sandbox failed")


if __name__ == "__main__":
    measure("engine goodput, unshaped", "ratio >= 0.9", repeats=5, seconds=2)
    measure("engine goodput, 1 Gbit/s", "ratio >= 0.98", repeats=2, seconds=5)
    sys.exit(0)
