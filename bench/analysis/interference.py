"""What a migration's copying did to others: clients' flows and the guests' disks, before it and while it went on. Pure.

*Before*: up to :data:`BEFORE_NS` before the migration began. *While copying*: from the first round to the pause of the
guest, or to the end of the migration where it was never paused; the outage itself is not in it. Latencies are those of
requests that were begun in the stretch and answered, throughputs of what arrived in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bench.clock import NS_PER_S, NS_PER_US
from bench.records import REQUEST_KINDS, StructuredArray
from bench.result import InterferenceResult, Observed, PhaseResult
from bench.timeline import Event

BEFORE_NS: Final = 5 * NS_PER_S
LEAST_NS: Final = NS_PER_S // 50
DISK_EVENT: Final = "disk_requests"

Stretch = tuple[int, int]
_Ints = npt.NDArray[np.int64]


def stretches(
    phases: Sequence[PhaseResult], start_ns: int, pause_ns: int | None, end_ns: int
) -> tuple[Stretch, Stretch] | None:
    """Before, and while copying; None when nothing was copied for :data:`LEAST_NS`."""
    begins = [phase.start_ns for phase in phases if phase.name == "precopy"]
    if not begins:
        return None
    copying = begins[0], pause_ns if pause_ns is not None else end_ns
    if copying[1] - copying[0] < LEAST_NS:
        return None
    return (start_ns - BEFORE_NS, start_ns), copying


def of_flow(
    name: str, host: str, kind: str, records: StructuredArray, before: Stretch, copying: Stretch
) -> InterferenceResult | None:
    """Of a client's flow; None when it was not seen before the migration."""
    arrived = records["received_ns"].astype(np.int64)
    kept = arrived > 0
    sent, arrived = records["sent_ns"].astype(np.int64)[kept], arrived[kept]
    latencies = arrived - sent if kind in REQUEST_KINDS else None
    sizes = None if kind in REQUEST_KINDS else records["bytes"].astype(np.int64)[kept]
    at = sent if kind in REQUEST_KINDS else arrived
    return _compared(name, "flow", host, (at, latencies, sizes), before, copying)


def of_disks(
    events: Iterable[Event], guest: str, host: str, before: Stretch, copying: Stretch
) -> list[InterferenceResult]:
    """Of the disks of one guest, by its own account."""
    found: dict[str, list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]] = {}
    for event in events:
        told, begin_ns = event.data.get("latencies_us"), event.data.get("from_ns")
        if event.name != DISK_EVENT or event.guest not in ("", guest):
            continue
        if not isinstance(told, list) or not told or not isinstance(begin_ns, int):
            continue
        count = len(told)
        at = np.linspace(begin_ns, event.t_ns, count).astype(np.int64)  # evenly, as they are told without their times
        sizes = np.full(count, int(event.data.get("bytes", 0)) / count)
        latencies = np.array(told, dtype=np.int64) * NS_PER_US
        found.setdefault(str(event.data.get("disk")), []).append((at, latencies, sizes))
    results = []
    for disk, parts in sorted(found.items()):
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        result = _compared(f"{guest}/{disk}", "disk", host, (joined[0], joined[1], joined[2]), before, copying)
        if result is not None:
            results.append(result)
    return results


def _compared(
    name: str,
    kind: Literal["flow", "disk"],
    host: str,
    seen: tuple[_Ints, _Ints | None, npt.NDArray[Any] | None],
    before: Stretch,
    copying: Stretch,
) -> InterferenceResult | None:
    at = seen[0]
    first_ns = int(at.min()) if len(at) else copying[1]
    earlier = max(before[0], first_ns), before[1]
    if earlier[1] - earlier[0] < LEAST_NS:
        return None
    return InterferenceResult(
        name=name, kind=kind, host=host, before=_observed(seen, earlier), copying=_observed(seen, copying)
    )


def _observed(seen: tuple[_Ints, _Ints | None, npt.NDArray[Any] | None], stretch: Stretch) -> Observed:
    at, latencies, sizes = seen
    inside = (at >= stretch[0]) & (at < stretch[1])
    count = int(np.count_nonzero(inside))
    result = Observed(duration_ns=stretch[1] - stretch[0], requests=count)
    if latencies is not None and count:
        result.median_ns, result.p99_ns = (round(float(value)) for value in np.percentile(latencies[inside], (50, 99)))
    if sizes is not None:
        result.bps = round(float(sizes[inside].sum()) * 8 * NS_PER_S / result.duration_ns)
    return result
