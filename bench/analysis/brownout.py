"""A flow's throughput through brownout, blackout and ramp. Pure.

*Brownout*: from the migration's first round until the guest begins to pause; its memory shares the links with the flow.
*Blackout*: the flow's outage. *Ramp*: from the outage's end until what arrives in :data:`WINDOW_NS` is back at
:data:`BACK` of what it was before the migration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S
from bench.records import StructuredArray
from bench.result import FlowResult, MigrationResult

WINDOW_NS: Final = 50 * NS_PER_MS
BACK: Final = 0.9
LONGEST_RAMP_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True)
class Brownout:
    """Of one flow through one migration; None where it was not observed.

    :param before_bps: between the flow's begin (at most 5 s before) and the migration's.
    :param brownout_bps: mean while the memory was copied.
    :param blackout_ns: the outage.
    :param ramp_ns: 0 when it was back at once.
    """

    flow: str
    before_bps: float | None
    brownout_bps: float | None
    blackout_ns: int | None
    ramp_ns: int | None


def brownout(flow: FlowResult, migration: MigrationResult, records: StructuredArray) -> Brownout:
    """*records*: of *flow*, as they were stored."""
    arrived = records["received_ns"]
    order = np.argsort(arrived, kind="stable")
    order = order[arrived[order] > 0]
    when, total = arrived[order], np.concatenate([[0], np.cumsum(records["bytes"][order].astype(np.int64))])

    def between(begin_ns: int, end_ns: int) -> float | None:
        if end_ns <= begin_ns:
            return None
        first, last = np.searchsorted(when, [begin_ns, end_ns])
        return float(total[last] - total[first]) * 8 * NS_PER_S / (end_ns - begin_ns)

    copying = [phase for phase in migration.phases if phase.name == "precopy"]
    begin_ns = copying[0].start_ns if copying else migration.start_ns
    first_ns = int(when[0]) if len(when) else begin_ns
    before = between(max(first_ns, migration.start_ns - 5 * NS_PER_S), migration.start_ns)
    pause_ns = flow.outage_start_ns or migration.pause_ns
    ramp = None
    if before and flow.outage_end_ns is not None:
        ramp = _ramp_ns(flow.outage_end_ns, before, int(when[-1]) if len(when) else 0, between)
    return Brownout(
        flow.name, before, between(begin_ns, pause_ns) if pause_ns is not None else None, flow.outage_ns, ramp
    )


def _ramp_ns(end_ns: int, before_bps: float, last_ns: int, between: Callable[[int, int], float | None]) -> int | None:
    """The first window after the outage in which enough arrives; None when there was none."""
    for begin in range(end_ns, min(last_ns, end_ns + LONGEST_RAMP_NS), WINDOW_NS // 5):
        if begin + WINDOW_NS > last_ns:
            return None
        rate = between(begin, begin + WINDOW_NS)
        if rate is not None and rate >= BACK * before_bps:
            return begin - end_ns
    return None
