"""The outage budget: where every millisecond of a client's outage went. Pure.

An outage is cut at the moments at which one cause ended and the next began; the stages are the differences, in this
order (:data:`STAGES`), and sum to the outage:

==============  =====================================================  =================================================
stage           ends with                                              what the client waited for
==============  =====================================================  =================================================
onset           guest ``pause_begin``                                  it asked just before the pause
pause           the later of guest ``vcpus_stopped`` and ``net_cut``   the guest to stand still
final pages     destination engine ``final_pages_received``            the pages that were dirty at the pause
device state    ``device_state_loaded`` (engine or guest ``loaded``)   registers, connections, NIC
storage         destination engine ``storage_acquired``                the disks' handover
resume          guest ``resumed``                                      the guest to run again
port wired      guest ``port_wired``                                   the hypervisor's port to forward
announce        the first guest ``announce_sent``                      the frame that tells the network
relearned       the switches of the path stably forward to the new     the network
                port (see below)
client's wait   the first segment of this flow that got through left   a retransmission timer or the probe's interval
                its sender (see :func:`first_through_ns`)
reply           the end of the outage                                  that segment's way, and the answer's
==============  =====================================================  =================================================

**Clamping.** A cut point is moved into the outage, and to the cut point before it when it lies earlier: a client that
noticed late has no onset, and a stage that was over before the outage began costs it nothing. Clamped cut points are
monotone whatever went in, so no stage is negative and the sum is exact.

**Relearned** is when the switches of the path are *stable*. A flow may be served sooner: a switch floods, or learns and
flaps back later. When its first segment passed the new port before that moment, the network was ready *for it* once no
frame for the guest went to the old port alone any more (:attr:`Through.misdelivered_ns`; else with the announcement);
the note says so.

**What makes a budget not ok**, each with a note: a cut point that was not observed (its stage is 0 and its time is in
the next one); observed ones that contradict each other by more than :data:`TOLERANCE_NS` (no effect before its cause);
an outage that ended before the guest resumed, or that nothing ended; a sum off by more than the tolerance.

A migration that was **rolled back** has no stages between its pause and the source guest's ``rolled_back``, which ends
*resume* (and *port wired*); that the others are missing is then no problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.analysis.flows import Outage, Window
from bench.clock import NS_PER_MS
from bench.timeline import Event, Timeline

TOLERANCE_NS: Final = NS_PER_MS

STAGES: Final = (
    "onset",
    "pause",
    "final pages",
    "device state",
    "storage",
    "resume",
    "port wired",
    "announce",
    "relearned",
    "client's wait",
    "reply",
)
_ROLLED_BACK_STAGES: Final = ("onset", "pause", "resume", "port wired", "client's wait")


@dataclass(frozen=True, slots=True)
class CutPoints:
    """What ended the first nine stages, in order; CLOCK_MONOTONIC ns, None for what was not observed.

    :param rolled_back: the guest went on at the source; *resumed_ns* and *port_wired_ns* are when it did.
    :param unannounced: no announcement left once the port was wired (none asked for, all lost, or all too early),
        so that stage has no end of its own: the network has to learn from the guest's other frames.
    """

    pause_begin_ns: int | None = None
    paused_ns: int | None = None
    final_pages_ns: int | None = None
    device_state_ns: int | None = None
    storage_ns: int | None = None
    resumed_ns: int | None = None
    port_wired_ns: int | None = None
    announce_ns: int | None = None
    relearned_ns: int | None = None
    rolled_back: bool = False
    unannounced: bool = False

    def chain(self) -> list[int | None]:
        """Those that cause one another, in order: all but relearning."""
        paused = [self.pause_begin_ns, self.paused_ns]
        moved = [self.final_pages_ns, self.device_state_ns, self.storage_ns]
        return [*paused, *moved, self.resumed_ns, self.port_wired_ns, self.announce_ns]


@dataclass(frozen=True, slots=True)
class Through:
    """The first segment of a flow that got through after the guest's port was wired; None for what was not observed.

    :param left_ns: when it left its sender.
    :param passed_ns: when it passed the switch port towards the destination hypervisor.
    :param misdelivered_ns: the last frame for the guest, of any flow, that went to the old port alone before that.
    """

    left_ns: int | None = None
    passed_ns: int | None = None
    misdelivered_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """*parts* maps every stage of :data:`STAGES`, in order, to ns; empty when there was no outage to explain."""

    parts: Mapping[str, int] = field(default_factory=dict)
    sum_ns: int | None = None
    ok: bool = True
    note: str = ""


def cut_points(timeline: Timeline, window: Window, relearned_ns: int | None) -> CutPoints:
    """The cut points of the migration in *window* from the events of guests and engines.

    :param relearned_ns: when every switch on the path of the flow's client was stable; from the analysis of relearning.
    """
    events = timeline.select(after_ns=window.start_ns, before_ns=window.end_ns)
    guest = [event for event in events if event.source.startswith("guest.")]
    destination = [event for event in events if event.source == "engine.destination"]

    def first(name: str, *among: Sequence[Event]) -> int | None:
        return next((event.t_ns for group in among for event in group if event.name == name), None)

    stopped = [first("vcpus_stopped", guest), first("net_cut", guest)]
    resumed, wired = first("resumed", guest, destination), first("port_wired", guest, destination)
    rolled_back = first("rolled_back", guest) if resumed is None else None
    # Those of the boot or of the migration before may still be going out when this one begins, and what leaves before
    # the port is wired does not get far.
    earliest_ns = max(resumed or 0, wired or 0)
    announced = next((e.t_ns for e in guest if e.name == "announce_sent" and e.t_ns >= earliest_ns), None)
    return CutPoints(
        pause_begin_ns=first("pause_begin", guest, events),
        paused_ns=None if None in stopped else max(time for time in stopped if time is not None),
        final_pages_ns=first("final_pages_received", destination),
        device_state_ns=first("device_state_loaded", destination) or first("loaded", guest),
        storage_ns=first("storage_acquired", destination),
        resumed_ns=resumed if rolled_back is None else rolled_back,
        port_wired_ns=wired if rolled_back is None else rolled_back,
        announce_ns=announced,
        relearned_ns=relearned_ns,
        rolled_back=rolled_back is not None,
        unannounced=announced is None and None not in (resumed, wired),
    )


def outage_budget(outage: Outage | None, cuts: CutPoints, through: Through) -> Budget:
    """Cut *outage* into its stages; *through* comes from :func:`bench.analysis.through.find_through`."""
    if outage is None:
        return Budget()
    if outage.duration_ns == 0:
        return Budget(dict.fromkeys(STAGES, 0), 0, note="the flow noticed nothing")
    ready_ns, remark = _ready_ns(cuts, through)
    points = [*cuts.chain(), ready_ns, through.left_ns]
    if cuts.unannounced:
        remark = "; ".join(text for text in ("no announcement left once the port was wired", remark) if text)
    problems = [*_missing(points, cuts), *_contradictions(outage, cuts, through)]
    parts: dict[str, int] = {}
    reached = outage.start_ns
    for stage, point in zip(STAGES, [*points, outage.end_ns], strict=True):
        cut = reached if point is None else min(max(point, reached), outage.end_ns)
        parts[stage] = cut - reached
        reached = cut
    total = sum(parts.values())
    if abs(total - outage.duration_ns) > TOLERANCE_NS:
        problems.append(f"the stages sum to {total} ns, the outage is {outage.duration_ns} ns")
    return Budget(parts, total, not problems, "; ".join(text for text in [*problems, remark] if text))


def _ready_ns(cuts: CutPoints, through: Through) -> tuple[int | None, str]:
    """When the network was ready for this flow, and a remark when that was before the switches were stable."""
    stable = cuts.relearned_ns
    if stable is None or through.passed_ns is None or through.passed_ns >= stable:
        return stable, ""
    ready = through.misdelivered_ns if through.misdelivered_ns is not None else cuts.announce_ns
    early = stable - through.passed_ns
    return ready, f"served {early / NS_PER_MS:.1f} ms before the switches were stable" if early > TOLERANCE_NS else ""


def _missing(points: Sequence[int | None], cuts: CutPoints) -> list[str]:
    needed = set(_ROLLED_BACK_STAGES if cuts.rolled_back else STAGES)
    if cuts.unannounced:
        needed.discard("announce")
    names = [stage for stage, point in zip(STAGES, points, strict=False) if point is None and stage in needed]
    return [f"not observed: the end of {', '.join(names)}"] if names else []


def _contradictions(outage: Outage, cuts: CutPoints, through: Through) -> list[str]:
    """What cannot be: an effect before its cause. Relearning and the client have causes of their own."""
    found = []
    if not outage.recovered:
        found.append("no good reply until the observation ended")
    chain = [(stage, at) for stage, at in zip(STAGES, cuts.chain(), strict=False) if at is not None]
    for (earlier, first_ns), (later, second_ns) in itertools.pairwise(chain):
        if second_ns < first_ns - TOLERANCE_NS:
            apart = (first_ns - second_ns) / NS_PER_MS
            found.append(f"contradictory: {later} ended {apart:.1f} ms before {earlier}")
    if outage.recovered and cuts.resumed_ns is not None and outage.end_ns < cuts.resumed_ns - TOLERANCE_NS:
        found.append("contradictory: the outage ended before the guest resumed")
    if through.left_ns is not None and through.left_ns > outage.end_ns + TOLERANCE_NS:
        found.append("contradictory: the segment that got through left after the outage ended")
    return found
