"""``bench record-trace``: a testbed, a guest that works, and the file of what it wrote when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.guest.trace_recorder import record_trace
from bench.memory.trace import dump_trace
from bench.plan import Plan
from bench.scenario import Scenario
from bench.surroundings import at_work, wait


@dataclass(frozen=True, slots=True)
class Recorded:
    """:param data: the file. *pages* are the guest's, *distinct* of them were written."""

    data: bytes
    looks: int
    duration_ns: int
    writes: int
    distinct: int
    pages: int


def record(
    scenario: Scenario,
    plan: Plan,
    directory: Path,
    guest: str,
    duration_ns: int,
    interval_ns: int,
    notify: Callable[[str], None],
    record_cgroup: Callable[[Path], Path] | None = None,
) -> Recorded:
    """Raise the testbed with its surroundings but without calibration and clients, let the guests work for the warm-up,
    and record one. To be called in a sandbox.

    :raises BenchError: what could not be raised or recorded.
    """
    with at_work(scenario, plan, directory, record_cgroup, notify) as testbed:
        notify("recording the pages that it writes")
        pages, looks = record_trace(testbed.guests[guest].socket_path, duration_ns, interval_ns, wait)
    data = dump_trace(pages, looks, scenario.title)
    written = [numbers for _time_ns, numbers in looks]
    return Recorded(
        data,
        len(looks),
        looks[-1][0],
        sum(map(len, written)),
        len(np.unique(np.concatenate(written))),
        pages,
    )
