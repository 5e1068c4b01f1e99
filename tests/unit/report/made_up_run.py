"""A made-up run's directory, for tests of what reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from made_up import MS, RESUME, result

from bench.records import RECORD
from bench.timeline import Event, Timeline


def write_run(place: Path, *, span_ms: int = 20_000, every_us: int = 5_000, **changes: Any) -> Path:
    """A directory with a result, events and records of every flow around the made-up migration."""
    made = result(**changes)
    place.mkdir(parents=True)
    made.write(place)
    (place / "scenario.json").write_text(json.dumps({"title": made.title, "guest": {"memory": 1 << 30}}))
    events = [Event(RESUME + number * 50 * MS, "guest", "announce_sent", {"kind": "rarp"}) for number in range(5)]
    Timeline(events).write(place / "events.jsonl")
    for flow in made.flows:
        directory = place / "requests" / flow.host
        directory.mkdir(parents=True, exist_ok=True)
        if all(part not in flow.name for part in "/\0"):
            progress = flow.kind in ("tcp-download", "tcp-upload")
            np.save(directory / f"{flow.name}.npy", records(span_ms, every_us, progress=progress), allow_pickle=False)
    (place / "logs").mkdir()
    (place / "logs" / "guest.log").write_text("hello\n")
    return place


def records(span_ms: int, every_us: int, *, progress: bool) -> np.ndarray[Any, np.dtype[np.void]]:
    count = span_ms * 1000 // every_us
    made = np.zeros(count, RECORD)
    made["seq"] = np.arange(count)
    made["sent_ns"] = RESUME - span_ms * MS // 2 + np.arange(count) * every_us * 1000
    took = np.random.default_rng(1).exponential(300_000, count).astype(np.int64)
    made["received_ns"] = made["sent_ns"] + (0 if progress else took)
    outage = (made["sent_ns"] > RESUME - 25 * MS) & (made["sent_ns"] < RESUME + 30 * MS)
    made["bytes"] = 1400
    if progress:
        return made[~outage]
    made["received_ns"][outage] = 0
    return made
