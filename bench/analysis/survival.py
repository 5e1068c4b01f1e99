"""Theory against measurement for each cell of a survival map. Pure.

What is compared is the *stall*: from the beginning of the outage until data got through again, at the end that waited
for it. Theory (:mod:`bench.analysis.tcp_timers`) gets the timer and the round trip that the kernel stated just before
the outage, and the moment at which the first segment was lost, as the blackout saw it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.analysis import tcp_timers
from bench.analysis.tcp_timers import Sender
from bench.clock import NS_PER_MS
from bench.result import Trust
from bench.scenario import SurvivalSpec
from bench.survival.cells import End, Variant, base_of
from bench.survival.result import CellResult, Fate, SurvivalResult, Theory, VariantResult

TOLERANCE_SHARE: Final = 0.05
TOLERANCE_NS: Final = 20 * NS_PER_MS
_OTHER: Final[Mapping[End, End]] = {"client": "guest", "guest": "client"}


@dataclass(frozen=True)
class CellSeen:
    """One cell as the laboratory saw it.

    :param begin_ns: when its outage began.
    :param ends: each end's report; see :meth:`bench.survival.endpoint.Endpoint.report`. Empty: it never connected.
    :param dropped_ns: for each end, when frames *to* it were dropped, a time for each burst.
    :param syn_retries, syn_linear: ``tcp_syn_retries`` and ``tcp_syn_linear_timeouts`` of this kernel.
    """

    variant: Variant
    outage_ns: int
    repeat: int
    begin_ns: int
    ends: Mapping[End, Mapping[str, Any]]
    dropped_ns: Mapping[End, Sequence[int]]
    syn_retries: int
    syn_linear: int


def evaluate(
    spec: SurvivalSpec,
    seen: Sequence[CellSeen],
    *,
    title: str,
    environment: Mapping[str, Any],
    max_cpu_load: float,
) -> SurvivalResult:
    """The whole map."""
    cells = [_cell(spec, item) for item in seen]
    compared = [cell for cell in cells if cell.in_flight and cell.agrees is not None]
    reasons = []
    busy = environment.get("cpu", {}).get("mean")
    if busy is not None and busy > max_cpu_load:
        reasons.append(f"cpu: the machine was {busy:.0%} busy, over run.max_cpu_load of {max_cpu_load:.0%}")
    unseen = sum(1 for cell in cells if cell.fate == "not observed")
    if unseen:
        reasons.append(f"{unseen} of {len(cells)} cells had no end that was observed")
    return SurvivalResult(
        title=title,
        cells=cells,
        variants=[_variant(label, list(group)) for label, group in itertools.groupby(cells, lambda cell: cell.variant)],
        agreement=sum(bool(cell.agrees) for cell in compared) / len(compared) if compared else None,
        compared=len(compared),
        environment=dict(environment),
        trust=Trust(ok=not reasons, reasons=reasons),
    )


def _variant(label: str, cells: Sequence[CellResult]) -> VariantResult:
    survived = [cell.outage_ns for cell in cells if cell.fate == "survived"]
    died = [cell.outage_ns for cell in cells if cell.fate == "died"]
    limits = [cell.details["longest_survivable_ns"] for cell in cells if cell.details["longest_survivable_ns"]]
    return VariantResult(
        variant=label,
        longest_survived_ns=max(survived, default=None),
        shortest_died_ns=min(died, default=None),
        longest_survivable_ns=min(limits, default=None),
    )


def _cell(spec: SurvivalSpec, seen: CellSeen) -> CellResult:
    variant = seen.variant
    first, other = variant.sends_first, _OTHER[variant.sends_first]
    before = seen.ends[first].get("before") or {}
    fate, stall_ns, error = _measured(seen)
    sender = _sender(spec, variant, before)
    lost_ns = _lost_after(seen, sender)
    theory = _theory(spec, seen, sender, lost_ns, before)
    tries = [at_ns - seen.begin_ns for at_ns in seen.dropped_ns[other]]
    agrees = None if theory is None or stall_ns is None else _agree(fate, stall_ns, theory)
    return CellResult(
        variant=f"{first}: {variant.label(base_of(spec, first))}",
        details={**dataclasses.asdict(variant), "longest_survivable_ns": _survivable(seen, sender)},
        outage_ns=seen.outage_ns,
        repeat=seen.repeat,
        fate=fate,
        stall_ns=stall_ns,
        error=error,
        rto_ns=before.get("rto_ns"),
        rtt_ns=before.get("rtt_ns"),
        tries=len(tries),
        tries_ns=tries,
        beyond_ns=stall_ns - seen.outage_ns if fate == "survived" and stall_ns is not None else None,
        in_flight=bool(tries) and variant.pattern in ("stream", "request"),
        theory=theory,
        agrees=agrees,
        reason=_reason(seen, theory, fate, stall_ns, agrees),
    )


def _measured(seen: CellSeen) -> tuple[Fate, int | None, str]:
    """What became of the connection, when after its outage's beginning, and its error."""
    waits = seen.variant.sends_first
    if seen.variant.pattern == "stream":
        waits = _OTHER[waits]  # the end that takes the stream sees what gets through
    through = seen.ends[waits].get("through")
    died = [(int(report["error_ns"]), str(report["error"])) for report in seen.ends.values() if report.get("error")]
    if through is not None:
        return "survived", int(through[2]) - seen.begin_ns, ""
    if died:
        at_ns, error = min(died)
        return "died", at_ns - seen.begin_ns, error
    return "not observed", None, ""


def _sender(spec: SurvivalSpec, variant: Variant, before: Mapping[str, Any]) -> Sender | None:
    if not before:
        return None
    return Sender(
        rto_ns=int(before["rto_ns"]),
        srtt_ns=int(before["rtt_ns"]),
        probes=variant.kernel.probes,
        interval_ns=spec.interval if variant.pattern == "stream" else None,
        rto_min_ns=variant.kernel.rto_min_ns,
    )


def _lost_after(seen: CellSeen, sender: Sender | None) -> int | None:
    """When, after the outage's beginning, the oldest lost segment left: negative when it was under way.

    The blackout saw it arrive half a round trip later; or it dropped the segment's acknowledgement first, which left
    a whole round trip after it.
    """
    if sender is None:
        return None
    data = seen.dropped_ns[_OTHER[seen.variant.sends_first]]
    acks = seen.dropped_ns[seen.variant.sends_first]
    moments = [at_ns - sender.srtt_ns // 2 for at_ns in data[:1]]
    moments += [at_ns - sender.srtt_ns for at_ns in acks[:1] if not data or at_ns < data[0]]
    return min(moments) - seen.begin_ns if moments else None


def _theory(
    spec: SurvivalSpec, seen: CellSeen, sender: Sender | None, lost_ns: int | None, before: Mapping[str, Any]
) -> Theory | None:
    variant = seen.variant
    if variant.pattern == "connect":
        return _connect_theory(seen)
    if sender is None:
        return None
    if variant.pattern == "idle":
        return _idle_theory(seen, sender, before)
    if lost_ns is None:  # nothing was lost: the outage was shorter than the pause between two messages
        return None
    way_ns = sender.srtt_ns // 2
    stall_ns = tcp_timers.stall_ns(seen.outage_ns, sender, lost_ns, way_ns)
    if variant.pattern == "request":
        stall_ns += way_ns
    end_ns = lost_ns + tcp_timers.death_ns(sender, variant.kernel.retries2, variant.user_timeout_ns)
    textbook_ns = tcp_timers.textbook_stall_ns(seen.outage_ns, sender.rto_ns)
    if end_ns < stall_ns:
        return Theory(fate="died", stall_ns=end_ns, textbook_ns=textbook_ns)
    return Theory(fate="survived", stall_ns=stall_ns, textbook_ns=textbook_ns)


def _connect_theory(seen: CellSeen) -> Theory:
    begun = seen.ends["client"]
    through = begun.get("through")
    first_ns = (int(through[1]) - seen.begin_ns) if through else 0
    for at_ns in tcp_timers.connect_ladder(seen.syn_linear):
        if first_ns + at_ns >= seen.outage_ns:
            break
    end_ns = tcp_timers.connect_death_ns(seen.syn_retries, seen.syn_linear)
    if at_ns >= end_ns:
        return Theory(fate="died", stall_ns=first_ns + end_ns)
    return Theory(fate="survived", stall_ns=first_ns + at_ns)


def _idle_theory(seen: CellSeen, sender: Sender, before: Mapping[str, Any]) -> Theory:
    """Nothing is lost but keepalive probes; what is asked after the outage is answered at once."""
    keep = seen.variant.keepalive
    if keep is not None:
        quiet_ns = min(int(before["since_ack_ns"]), keep.idle_ns)
        end_ns = tcp_timers.keepalive_death_ns(keep.idle_ns, keep.interval_ns, keep.count) - quiet_ns
        if end_ns < seen.outage_ns:
            return Theory(fate="died", stall_ns=end_ns)
    return Theory(fate="survived", stall_ns=seen.outage_ns + sender.srtt_ns)


def _survivable(seen: CellSeen, sender: Sender | None) -> int | None:
    variant = seen.variant
    if variant.pattern == "connect":
        ladder = tcp_timers.connect_ladder(seen.syn_linear)
        return list(itertools.islice(ladder, seen.syn_retries + seen.syn_linear + 1))[-1]
    if variant.pattern == "idle":
        keep = variant.keepalive
        return None if keep is None else tcp_timers.keepalive_death_ns(keep.idle_ns, keep.interval_ns, keep.count - 1)
    if sender is None:
        return None
    return tcp_timers.longest_survivable_ns(sender, variant.kernel.retries2, variant.user_timeout_ns)


def close(measured_ns: int, theory_ns: int) -> bool:
    """Within the tolerance."""
    return abs(measured_ns - theory_ns) <= max(TOLERANCE_NS, TOLERANCE_SHARE * theory_ns)


def _agree(fate: Fate, stall_ns: int, theory: Theory) -> bool:
    return fate == theory.fate and close(stall_ns, theory.stall_ns)


def _just_missed(seen: CellSeen) -> str:
    """A try so near the outage's end that the tolerance of its time decides which step of the ladder got through."""
    tries = seen.dropped_ns[_OTHER[seen.variant.sends_first]]
    before_ns = seen.begin_ns + seen.outage_ns - tries[-1] if tries else seen.outage_ns
    near = before_ns <= max(TOLERANCE_NS, TOLERANCE_SHARE * seen.outage_ns)
    return f"a try {before_ns / NS_PER_MS:.0f} ms before the outage's end was just too early" if near else ""


def _reason(seen: CellSeen, theory: Theory | None, fate: Fate, stall_ns: int | None, agrees: bool | None) -> str:
    """Why measurement and theory, or theory and textbook, differ; empty where they do not, or nobody knows."""
    if theory is None or stall_ns is None:
        return "" if stall_ns is None else "nothing was lost: the outage fell between two messages"
    if not agrees:
        if fate == "survived" and stall_ns < theory.stall_ns:
            acks = seen.dropped_ns[seen.variant.sends_first]
            return "the other end sent first" if acks and acks[-1] > seen.begin_ns + seen.outage_ns // 2 else ""
        return _just_missed(seen) if fate == "survived" == theory.fate else ""
    if theory.textbook_ns is not None and fate == "survived" and not close(stall_ns, theory.textbook_ns):
        return "tail-loss probe" if seen.variant.kernel.probes else "the data was lost later than the outage began"
    return ""
