"""What a load by stress-ng really was: processor time and bytes written by its workers, and its own figure of memory.

Sources: proc(5) for ``/proc/PID/stat`` and ``/proc/PID/io``; stress-ng(1), ``--metrics`` and ``--yaml``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, now_ns

STRESSORS: Final = {"cpu": "stress-ng-cpu", "memory": "stress-ng-strea", "io": "stress-ng-hdd"}
_TICK_NS: Final = NS_PER_S // os.sysconf("SC_CLK_TCK")
_MAX_METRICS_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """At one time: kind of worker -> processor time in ns; and bytes written to disks by all."""

    t_ns: int
    cpu_ns: Mapping[str, int]
    written_bytes: int


def take_reading(pid: int) -> Reading:
    """Of stress-ng *pid* and its workers, as far as they live."""
    cpu_ns = dict.fromkeys(STRESSORS, 0)
    written = 0
    for one in tree(pid):
        text = _read(Path(f"/proc/{one}/stat"))
        name, fields = text[text.find("(") + 1 : text.rfind(")")], text[text.rfind(")") + 2 :].split()
        for kind, begins in STRESSORS.items():
            if name.startswith(begins) and len(fields) > 12:
                cpu_ns[kind] += (int(fields[11]) + int(fields[12])) * _TICK_NS  # utime, stime
        found = re.search(r"^write_bytes: (\d+)$", _read(Path(f"/proc/{one}/io")), re.MULTILINE)
        written += int(found[1]) if found else 0
    return Reading(now_ns(), cpu_ns, written)


def measured(begin: Reading, end: Reading) -> dict[str, Any]:
    """The load between two readings: processors' worth of each kind, and bytes written per second."""
    elapsed_ns = max(1, end.t_ns - begin.t_ns)
    result: dict[str, Any] = {
        f"{kind}_processors": round((end.cpu_ns[kind] - begin.cpu_ns[kind]) / elapsed_ns, 3) for kind in STRESSORS
    }
    result = {key: value for key, value in result.items() if value}
    written = (end.written_bytes - begin.written_bytes) * NS_PER_S // elapsed_ns
    return {**result, **({"written_bytes_per_s": written} if written > 0 else {})}


def memory_rate(metrics: Path, workers: int) -> int | None:
    """What ``--stream`` says of memory in bytes/s, reads and writes of all its workers; None when it says nothing."""
    try:
        with metrics.open("rb") as file:
            text = file.read(_MAX_METRICS_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = re.findall(r"memory(?:-read|-write)?-rate-mb-per-sec: ([0-9.]+)", text)
    return round(sum(map(float, found)) * (1 << 20)) * workers if found else None


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            todo += [int(word) for word in _read(task).split()]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
