"""Made-up results, for tests of reports."""

from __future__ import annotations

from typing import Any

from bench.result import RunResult

MS = 1_000_000
RESUME = 10_000 * MS
STAGES = {
    "onset": 0.4,
    "pause": 1.2,
    "final pages": 17.5,
    "device state": 3.1,
    "storage": 0,
    "resume": 0.6,
    "port wired": 0.1,
    "announce": 0.2,
    "relearned": 7.4,
    "client's wait": 201.3,
    "reply": 0.9,
}


def flow(name: str, scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    budget = [{"stage": stage, "ns": round(ms * scale * MS)} for stage, ms in STAGES.items()]
    total = sum(part["ns"] for part in budget)
    return {
        "name": name,
        "kind": name.partition("-2")[0],
        "host": "c1",
        "requests": 5903,
        "lost": 36,
        "duplicated": 1,
        "reordered": 2,
        "corrupted": 0,
        "alive": True,
        "outage_ns": total,
        "outage_start_ns": RESUME - 30 * MS,
        "outage_end_ns": RESUME - 30 * MS + total,
        "retransmits": None if name == "udp-echo" else 3,
        "budget": budget,
        "budget_sum_ns": total,
        **changes,
    }


def direction(rate_bps: int, delay_ns: int, **more: Any) -> dict[str, Any]:
    return {"rate_bps": rate_bps, "delay_ns": delay_ns, "jitter_ns": 0, "loss": 0.0, **more}


def link(name: str) -> dict[str, Any]:
    both = {"forward": direction(10**9, 200_000), "backward": direction(10**9, 200_000)}
    return {
        "name": name,
        "mechanism": "htb+delay-line",
        "asked": both,
        "applied": both,
        "measured": {
            "round_trip": {"path": "c1-s1-h1", "asked_ns": 800_000, "median_ns": 997_216, "minimum_ns": 972_958},
            "forward": {"rate_bps": 944_591_130, "path": "c1-s1-h1"},
            "backward": {"rate_bps": 941_135_775, "path": "c1-s1-h1"},
        },
    }


def prediction(**changes: Any) -> dict[str, Any]:
    return {
        "predicted": {"rounds": 4, "bytes": 880 << 20, "total_ns": 5300 * MS, "downtime_ns": 21 * MS},
        "bound": {"bytes": 717 << 20, "total_ns": 5005 * MS, "downtime_ns": 17 * MS},
        "efficiency": {"bytes": 0.796, "total": 0.927, "downtime": 0.739},
        "transfer_ns": 5400 * MS,
        "inputs": {
            "dirty_bytes_per_s": 40 << 20,
            "working_set_bytes": 63 << 20,
            "goodput_bps": 881_000_000,
            "round_trip_ns": 1_100_000,
        },
        **changes,
    }


def migration(**changes: Any) -> dict[str, Any]:
    start = RESUME - 6000 * MS
    phases = ["setup", "precopy", "stop-and-copy", "device-state", "storage", "resume", "announce"]
    return {
        "outcome": "completed",
        "source": "h1",
        "destination": "h2",
        "start_ns": start,
        "end_ns": RESUME + 900 * MS,
        "pause_ns": RESUME - 23 * MS,
        "resume_ns": RESUME,
        "total_ns": 6100 * MS,
        "downtime_ns": 23 * MS,
        "bytes_sent": 901 << 20,
        "phases": [
            {"name": name, "start_ns": start + number * 700 * MS, "end_ns": start + (number + 1) * 700 * MS}
            for number, name in enumerate(phases)
        ],
        "rounds": [
            {
                "pages": 262_144 >> 3 * number,
                "zero_pages": 78_000 >> 4 * number,
                "bytes_sent": (700 << 20) >> 3 * number,
                "dirty_pages_after": 16_384 >> 3 * number,
                "start_ns": start + number * 1000 * MS,
                "end_ns": start + (number + 1) * 1000 * MS,
                "paused": number == 3,
            }
            for number in range(4)
        ],
        "memory": {"bytes": 1 << 30, "identical": True, "digest": "0123456789abcdef" * 4},
        "flows": [flow("udp-echo", 0.2), flow("tcp-request"), flow("tcp-download", 1.1), flow("tcp-upload", 0.9)],
        "relearn": {
            "announce_ns": RESUME + MS // 5,
            "announcements": 10,
            "switches": [
                {
                    "name": "s1",
                    "controller_ns": RESUME + 2 * MS,
                    "confirmed_ns": RESUME + 6 * MS,
                    "first_frame_ns": RESUME + 4 * MS,
                    "stable_ns": RESUME + 31 * MS,
                    "frames_to_old_port": 5,
                    "frames_flooded": 2,
                    "flapped": 1,
                },
                {"name": "s2"},
            ],
        },
        "connections": 3,
        "prediction": prediction(),
        **changes,
    }


def result(**changes: Any) -> RunResult:
    raw = {
        **migration(),
        "schema": "migration-bench/result/1",
        "title": "reference: 1 GiB over 1 Gbit/s",
        "started_at": "2026-11-22T21:01:08+00:00",
        "guest": "g1",
        "links": [link("h1-s1"), link("h2-s1"), link("c1-s1")],
        "environment": {
            "kernel": "6.18.44",
            "distribution": "Debian GNU/Linux 12 (bookworm)",
            "cpu_model": "AMD EPYC",
            "cpu_count": 2,
            "memory_bytes": 25_276_510_208,
            "versions": {"bench": "0.1.0", "python": "3.11.2", "openvswitch": "3.1.0", "os-ken": None},
            "datapath": "user",
            "delay": ["htb+delay-line"],
            "controller": "ryu/learning",
            "cpu": {"mean": 0.61, "max": 0.97, "steal": 0.0011},
        },
        **changes,
    }
    return RunResult.model_validate({"migrations": [migration()], **raw})
