"""Silences of flows that are no part of their outages, for terminal and page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.clock import NS_PER_MS
from bench.report.text import clean, duration
from bench.result import FlowResult

_LEAST_NS: Final = 100 * NS_PER_MS
_GAPS: Final = 10
"""So many usual gaps beyond the outage: flows that rarely speak are silent most of the time."""


def other_silences(flows: Sequence[FlowResult]) -> list[str]:
    """A sentence for each flow that was silent for longer than its outage, since its migration began.

    An outage spans the guest's resume (:mod:`bench.analysis.flows`); what silences a client again a moment later is
    another thing, and would be overlooked.
    """
    told = []
    for flow in flows:
        gap_ns, usual_ns = flow.longest_gap_ns, flow.typical_gap_ns
        if gap_ns is None or usual_ns is None or flow.outage_ns is None:
            continue
        if gap_ns > flow.outage_ns + max(_LEAST_NS, _GAPS * usual_ns):
            told.append(
                f"{clean(flow.name)} heard nothing for {duration(gap_ns)} at another time since the migration began: "
                "that is no part of its outage and budget"
            )
    return told
