"""The survival map by migrations: each flow in each migration as a cell, set against theory. Pure.

The outage of a cell is what the flow's budget says passed before the network was ready for it again, from the moment
at which its client's first lost request was sent (or, of bulk, the last byte got through). Theory
(:mod:`bench.analysis.tcp_timers`) gets that, the timer and the round trip that the client's kernel stated just before,
and says when the next try is due; measured is when the client was answered. What the guest sends itself is no ladder:
its timers stand still with it, and it goes on when it resumes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.analysis import tcp_timers
from bench.analysis.survival import close
from bench.analysis.tcp_timers import RTO_MIN_NS, Sender
from bench.clock import NS_PER_MS
from bench.result import FlowResult, RunResult, Trust
from bench.survival.cells import Variant
from bench.survival.result import CellResult, Fate, SurvivalResult, Theory, VariantResult

LIBRARY_CHUNK_NS: Final = 5 * NS_PER_MS  # a slow upload offers its bytes so often
AFTER: Final = ("client's wait", "reply")
GUEST_TIMER_NS: Final = RTO_MIN_NS  # where a moved connection's timer begins


def evaluate_moves(
    runs: Sequence[tuple[int, int, RunResult]],
    kinds: Mapping[str, Variant],
    labels: Mapping[str, str],
    *,
    interval_ns: int,
    title: str,
) -> SurvivalResult:
    """The whole map.

    :param runs: (stretch, repeat, result) of each migration.
    :param kinds: flow -> what it is, *labels* in words.
    """
    cells = [
        cell for stretch_ns, repeat, run in runs for cell in _cells(run, stretch_ns, repeat, kinds, labels, interval_ns)
    ]
    compared = [cell for cell in cells if cell.in_flight and cell.agrees is not None]
    reasons = [f"the migration stretched by {stretch} ns: {r}" for stretch, _n, run in runs for r in run.trust.reasons]
    reasons += [f"a migration failed: {run.reason}" for _stretch, _n, run in runs if run.outcome != "completed"]
    return SurvivalResult(
        title=title,
        cells=cells,
        variants=[_variant([cell for cell in cells if cell.variant == label]) for label in labels.values()],
        agreement=sum(bool(cell.agrees) for cell in compared) / len(compared) if compared else None,
        compared=len(compared),
        environment=runs[-1][2].environment if runs else {},
        trust=Trust(ok=not reasons, reasons=reasons),
    )


def _variant(cells: Sequence[CellResult]) -> VariantResult:
    survived = [cell.outage_ns for cell in cells if cell.fate == "survived"]
    died = [cell.outage_ns for cell in cells if cell.fate == "died"]
    limits = [int(limit) for cell in cells if (limit := cell.details.get("longest_survivable_ns"))]
    return VariantResult(
        variant=cells[0].variant if cells else "",
        longest_survived_ns=max(survived, default=None),
        shortest_died_ns=min(died, default=None),
        longest_survivable_ns=min(limits, default=None),
    )


def _cells(
    run: RunResult,
    stretch_ns: int,
    repeat: int,
    kinds: Mapping[str, Variant],
    labels: Mapping[str, str],
    interval_ns: int,
) -> list[CellResult]:
    flows = [flow for flow in run.flows if flow.name in kinds]
    ready = {flow.name: _ready_ns(flow) for flow in flows}
    known = [value for value in ready.values() if value is not None]
    usual_ns = int(median(known)) if known else stretch_ns
    return [
        _cell(flow, kinds[flow.name], labels[flow.name], stretch_ns, repeat, ready[flow.name] or usual_ns, interval_ns)
        for flow in flows
    ]


def _ready_ns(flow: FlowResult) -> int | None:
    """From the beginning of a flow's outage until the network was ready for it."""
    if not flow.budget or not flow.outage_ns or not flow.alive:
        return None
    return sum(part.ns for part in flow.budget if part.stage not in AFTER)


def _cell(
    flow: FlowResult,
    variant: Variant,
    label: str,
    stretch_ns: int,
    repeat: int,
    ready_ns: int,
    interval_ns: int,
) -> CellResult:
    fate: Fate = "died" if not flow.alive else "survived" if flow.outage_ns else "not observed"
    tcp = flow.tcp
    sender = None
    if tcp is not None:
        sender = Sender(
            rto_ns=tcp.rto_ns,
            srtt_ns=tcp.rtt_ns,
            interval_ns=min(interval_ns, LIBRARY_CHUNK_NS) if variant.pattern == "stream" else None,
            rto_min_ns=variant.kernel.rto_min_ns,
        )
    theory = _theory(flow, variant, sender, ready_ns, interval_ns)
    stall_ns = flow.outage_ns
    agrees = None
    if theory is not None and stall_ns is not None:
        agrees = theory.fate == fate and close(stall_ns, theory.stall_ns)
    lost = tcp is not None and tcp.timeouts + tcp.retransmits > 0
    return CellResult(
        variant=label,
        details={
            **dataclasses.asdict(variant),
            "true_outage_ns": ready_ns,
            "longest_survivable_ns": None if tcp is None else tcp.survivable_ns,
        },
        outage_ns=stretch_ns,
        repeat=repeat,
        fate=fate,
        stall_ns=stall_ns,
        error=flow.error or "",
        rto_ns=None if tcp is None else tcp.rto_ns,
        rtt_ns=None if tcp is None else tcp.rtt_ns,
        tries=0 if tcp is None else tcp.retransmits,
        beyond_ns=stall_ns - ready_ns if fate == "survived" and stall_ns is not None else None,
        in_flight=lost and variant.sends_first == "client" and variant.pattern != "connect",
        theory=theory,
        agrees=agrees,
        reason=_reason(variant, fate, stall_ns, theory, agrees, lost=lost),
    )


def _theory(
    flow: FlowResult, variant: Variant, sender: Sender | None, ready_ns: int, interval_ns: int
) -> Theory | None:
    if not flow.outage_ns:
        return None
    reply_ns = next((part.ns for part in flow.budget if part.stage == "reply"), 0)
    if variant.sends_first == "guest":
        return Theory(fate="survived", stall_ns=ready_ns + reply_ns)
    if variant.pattern == "connect":
        begun_ns = -(-ready_ns // interval_ns) * interval_ns  # one that is begun later gets through at once
        return Theory(fate="survived", stall_ns=begun_ns + reply_ns)
    if sender is None:
        return None
    stall_ns = tcp_timers.stall_ns(ready_ns, sender)
    death_ns = tcp_timers.death_ns(sender, variant.kernel.retries2, variant.user_timeout_ns)
    if death_ns <= stall_ns:
        return Theory(fate="died", stall_ns=death_ns)
    return Theory(
        fate="survived",
        stall_ns=stall_ns + reply_ns,
        textbook_ns=tcp_timers.textbook_stall_ns(ready_ns, sender.rto_ns),
    )


def _reason(
    variant: Variant, fate: Fate, stall_ns: int | None, theory: Theory | None, agrees: bool | None, *, lost: bool
) -> str:
    if agrees or theory is None or stall_ns is None:
        return ""
    if variant.sends_first == "guest":
        late = stall_ns - theory.stall_ns
        if late > 2 * GUEST_TIMER_NS and variant.pattern == "request":
            return "its server had lost the answer, and waited for its own timer"
        return "what the guest had in flight waited for its timer" if 0 < late <= 2 * GUEST_TIMER_NS else ""
    if variant.pattern == "stream":
        return "the guest's kernel spoke first: it probes the window when it leaves TCP_REPAIR"
    if not lost:
        return "nothing of the client's was lost: the guest had it, and answered when it resumed"
    return "the other end sent first" if fate == "survived" and stall_ns < theory.stall_ns else ""
