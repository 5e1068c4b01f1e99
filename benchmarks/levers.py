"""What each lever saves and costs: the same guest moved without and with it, in turn, in one run.

Four rows for each: *time* from the first page to the confirmed handover, *bytes* of all connections, *CPU* of both
engine processes until the handover (``/proc/PID/stat``; the tunnel of SSH, whose processes are others, by its own
``cost``), *downtime*. The value is with the lever, the reference without, the ratio what it changed. The text memory at
100 Mbit/s is the one with a goal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from _moving import IDLE, MIGRATION, RANDOM, Moving, cpu_s, report, with_moving_guest

from bench.clock import NS_PER_MS, NS_PER_S
from bench.migration.driver import Migration
from bench.timeline import Event

MIXED = {"zero": 0.3, "text": 0.4, "random": 0.3}
TEXT = {"zero": 0.0, "text": 1.0, "random": 0.0}
WRITING = {"pattern": "hotset", "rate": "16MiB/s", "working_set": "8MiB", "hot_share": 1.0}
# whole pages at a rate that no vCPU reaches: what it writes is a matter of its CPU time alone
OUTRUNNING = {**WRITING, "rate": "64GiB/s", "working_set": "32MiB", "write_bytes": "4KiB"}

Lever = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Took:
    """One migration: see this module."""

    total_s: float
    sent_mib: float
    cpu_s: float
    downtime_ms: float


@dataclass(frozen=True, slots=True)
class Case:
    """One guest on one link, and what is tried on it.

    :param plain: the settings that all moves share, also the one without a lever.
    :param goals: of the time, by lever.
    """

    name: str
    bandwidth: str
    memory: str
    content: Mapping[str, float]
    workload: Mapping[str, Any]
    levers: Mapping[str, Lever]
    plain: Lever
    goals: Mapping[str, str]


CASES: Final = {
    "squeezing": Case(
        "mixed memory, 100 Mbit/s",
        "100Mbit",
        "48MiB",
        MIXED,
        IDLE,
        {
            "zero_pages": {"zero_pages": True},
            "zstd": {"zero_pages": True, "compression": "zstd"},
            "lz4": {"zero_pages": True, "compression": "lz4"},
        },
        {"zero_pages": False},
        {},
    ),
    "text": Case(
        "text memory, 100 Mbit/s",
        "100Mbit",
        "48MiB",
        TEXT,
        IDLE,
        {"zstd": {"compression": "zstd"}, "lz4": {"compression": "lz4"}},
        {},
        {"zstd": "ratio <= 0.5"},
    ),
    "rewriting": Case(
        "random memory, 8 MiB rewritten at 16 MiB/s, 100 Mbit/s",
        "100Mbit",
        "32MiB",
        RANDOM,
        WRITING,
        {
            "delta": {"delta_cache_bytes": 64 << 20},
            "dirty limit 4 MiB/s": {"dirty_limit_bytes_per_s": 4 << 20},
        },
        {"max_rounds": 8, "downtime_limit_ns": 50 * NS_PER_MS},
        {},
    ),
    "outrunning": Case(
        "random memory, 32 MiB rewritten as fast as a vCPU can, 1 Gbit/s",
        "1Gbit",
        "64MiB",
        RANDOM,
        OUTRUNNING,
        {
            "auto-converge": {"auto_converge": True},
            "dirty limit 64 MiB/s": {"dirty_limit_bytes_per_s": 64 << 20},
        },
        {"max_rounds": 1000, "max_time_ns": 20 * NS_PER_S, "downtime_limit_ns": 50 * NS_PER_MS},
        {},
    ),
    "carrying": Case(
        "random memory, 1 Gbit/s",
        "1Gbit",
        "256MiB",
        RANDOM,
        IDLE,
        {
            "2 streams": {"streams": 2},
            "tls": {"security": "tls"},
            "ssh": {"security": "ssh"},
        },
        {},
        {},
    ),
    "unshaped": Case(
        "random memory, unshaped",
        "unlimited",
        "256MiB",
        RANDOM,
        IDLE,
        {"2 streams": {"streams": 2}, "tls": {"security": "tls"}, "ssh": {"security": "ssh"}},
        {},
        {},
    ),
}


def move(moving: Moving, settings: Lever) -> Took:
    """Once, to the other side."""
    used = 0.0

    def look(event: Event, migration: Migration) -> None:
        nonlocal used
        if event.name == "handover_confirmed":
            used = sum(map(cpu_s, migration.pids().values()))

    outcome, timeline = moving.move(look, {**MIGRATION, **settings})
    (end,), rounds = timeline.select("handover_confirmed"), timeline.select("round_end")
    tunnel = outcome["cost"].get("security", {})
    if tunnel.get("carrier") == "ssh":
        used += (tunnel["cpu_ns"] + tunnel["destination"]["cpu_ns"]) / NS_PER_S
    return Took(
        total_s=(end.t_ns - rounds[0].data["start_ns"]) / NS_PER_S,
        sent_mib=outcome["bytes_sent"] / (1 << 20),
        cpu_s=used,
        downtime_ms=moving.downtime_ns() / NS_PER_MS,
    )


def measure(case: Case) -> None:
    """Without any, then with each lever, there and back."""

    def body(moving: Moving) -> None:
        plain = move(moving, case.plain)
        for name, lever in case.levers.items():
            took = move(moving, {**case.plain, **lever})
            for what, unit in (("time", "s"), ("bytes", "MiB"), ("CPU", "s"), ("downtime", "ms")):
                attribute = {"time": "total_s", "bytes": "sent_mib", "CPU": "cpu_s", "downtime": "downtime_ms"}[what]
                goal = case.goals.get(name) if what == "time" else None
                report(f"{case.name}: {name}, {what}", getattr(took, attribute), unit, getattr(plain, attribute), goal)

    if with_moving_guest(case.bandwidth, case.memory, body, content=case.content, workload=case.workload):
        raise RuntimeError(f"{case.name}: the sandbox failed")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        measure(CASES[wanted])
    sys.exit(0)
