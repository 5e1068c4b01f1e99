"""What the levers save: the same guest moved with and without each, in one run; total time as the source engine's first
to last page, bytes as its connection's. The text memory at 100 Mbit/s is the one with a goal.
"""

from __future__ import annotations

import sys
from typing import Any

from _moving import MIGRATION, Moving, report, with_moving_guest

from bench.clock import NS_PER_S
from bench.timeline import Timeline

MEMORY = "64MiB"


def total_s(timeline: Timeline) -> float:
    """From the first round's begin to the end of the last."""
    rounds = timeline.select("round_end")
    return float(rounds[-1].data["end_ns"] - rounds[0].data["start_ns"]) / NS_PER_S


def compare(what: str, name: str, plain: tuple[dict[str, Any], float], with_it: tuple[dict[str, Any], float]) -> None:
    """The rows of one lever against no lever, and what the lever cost."""
    goal = "ratio <= 0.5" if name == "zstd" and what == "text" else None
    report(f"{what} memory at 100 Mbit/s: {name} total time vs plain", with_it[1], "s", plain[1], goal)
    report(
        f"{what} memory at 100 Mbit/s: {name} bytes vs plain",
        with_it[0]["bytes_sent"] / 2**20,
        "MiB",
        plain[0]["bytes_sent"] / 2**20,
        goal,
    )
    cpu_ns = sum(part.get("cpu_ns", 0) for part in with_it[0]["cost"].values())
    report(f"{what} memory at 100 Mbit/s: {name} CPU of both engines vs total time", cpu_ns / NS_PER_S, "s", with_it[1])


def measure(what: str, content: dict[str, float], workload: dict[str, Any], levers: dict[str, dict[str, Any]]) -> None:
    """Move a guest plainly, then with each lever, there and back."""

    def body(moving: Moving) -> None:
        def move(**lever: Any) -> tuple[dict[str, Any], float]:
            outcome, timeline = moving.move(settings={**MIGRATION, "max_rounds": 8, **lever})
            return outcome, total_s(timeline)

        plain = move()
        for name, lever in levers.items():
            compare(what, name, plain, move(**lever))

    if with_moving_guest("100Mbit", MEMORY, body, content=content, workload=workload):
        raise RuntimeError(f"{what}: the sandbox failed")


def carry(bandwidth: str) -> None:
    """Goodput of the engines' connection through TLS and through SSH against plain TCP, random memory."""

    def body(moving: Moving) -> None:
        plain = moving.goodput_bps()
        for security in ("tls", "ssh"):
            carried = moving.goodput_bps({**MIGRATION, "security": security})
            report(f"links of {bandwidth}: {security} goodput vs plain", carried / 1e6, "Mbit/s", plain / 1e6)

    if with_moving_guest(bandwidth, "256MiB", body, content={"zero": 0.0, "text": 0.0, "random": 1.0}):
        raise RuntimeError(f"carriers at {bandwidth}: the sandbox failed")


IDLE = {"pattern": "idle"}
WRITING = {"pattern": "hotset", "rate": "16MiB/s", "working_set": "16MiB", "hot_share": 1.0}

if __name__ == "__main__":
    text = {"zero": 0.0, "text": 1.0, "random": 0.0}
    measure("text", text, IDLE, {"zstd": {"compression": "zstd"}, "lz4": {"compression": "lz4"}})
    measure(
        "rewritten random",
        {"zero": 0.0, "text": 0.0, "random": 1.0},
        WRITING,
        {"delta": {"delta_cache_bytes": 64 << 20}, "auto-converge": {"auto_converge": True}},
    )
    carry("1Gbit")
    carry("unlimited")
    sys.exit(0)
