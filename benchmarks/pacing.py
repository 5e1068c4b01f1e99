"""How exactly ``max_bandwidth`` is kept, on an unshaped link: what the engine's connection delivered in the first
round, by its time, against what was asked. It counts what the engine sends, as QEMU's ``max-bandwidth`` does; what
frames, IP and TCP add comes on top of that (about 5 %).
"""

from __future__ import annotations

import statistics
import sys

from _moving import MIGRATION, Moving, report, with_moving_guest

RATES_MBIT = (100, 400, 900)
ROUND_S = 4  # that the first round is to take: the guest's memory is chosen by it
REPEATS = 2


def measure(rate: int) -> None:
    """One guest, there and back."""

    def body(moving: Moving) -> None:
        settings = {**MIGRATION, "max_bandwidth_bps": rate * 10**6}
        found = [moving.goodput_bps(settings) / 1e6 for _ in range(REPEATS)]
        worst = max(found, key=lambda value: abs(value - rate))
        report(f"max_bandwidth {rate} Mbit/s: delivered", statistics.median(found), "Mbit/s", rate)
        report(f"max_bandwidth {rate} Mbit/s: off by, at most", abs(worst / rate - 1), "", 0.02, "ratio <= 1")

    if with_moving_guest("unlimited", f"{rate * 10**6 * ROUND_S // 8 >> 20}MiB", body):
        raise RuntimeError(f"{rate} Mbit/s: the sandbox failed")


if __name__ == "__main__":
    for each in RATES_MBIT:
        measure(each)
    sys.exit(0)
