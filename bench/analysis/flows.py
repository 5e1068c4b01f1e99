"""What a client saw of a migration: counts and outage of one flow, out of its records. Pure.

**Outage** is the client's view, one stretch of time without service.

*Request/response flows* (``udp-echo``, ``tcp-request``): from the send of the first request that was not answered in
time to the first good reply after it, where "after it" means the reply to that request itself or to a later one:
replies that were under way when the outage began do not end it. Not answered in time: never, wrongly, or later than
:func:`in_time_limit_ns` of the flow's typical latency. So a TCP request that spans the blackout has an outage of its
own latency, and a UDP probe's outage ends with the first later probe that was answered.

*One-way flows* (``tcp-download``, ``tcp-upload``, ``udp-stream``), and what the guest asks of a server: from the last
progress before a gap to the first good progress after it, of gaps longer than :func:`in_time_limit_ns` of the flow's
typical gap.

Of several stretches the longest counts that belongs to this migration's switchover: that begins before the guest and
the network were ready again, and ends after the guest resumed (or was paused), where these are known. (What a
saturated link does to latencies during pre-copy is no outage, and a stall seconds later has another cause: it shows
as ``longest_gap_ns``.) A flow without such a stretch has an outage of 0: it noticed nothing. A stretch that no good
reply ended lasts until the flow's observation ended and is marked ``recovered = False``: the true outage is longer.
(Such a stretch counts from :data:`LEAST_TAIL_NS` on: what was just under way when the flow was stopped is no outage.)

There is no outage (None) without a migration, without records in the window, or for kinds that record nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.clock import NS_PER_MS
from bench.records import (
    DUPLICATES_SHIFT,
    PROGRESS_KINDS,
    REQUEST_KINDS,
    STATUS_CORRUPT,
    STATUS_REORDERED,
    StructuredArray,
)

_NEVER: Final = np.iinfo(np.int64).max
_LATE_FACTOR: Final = 3
LEAST_TAIL_NS: Final = 100 * NS_PER_MS

_Ints = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """What belongs to one migration: from *start_ns* to before *end_ns* (the next migration's start, or the run's end).

    :param pause_ns: when the guest was paused; None when it was not (cancelled before) or that was not observed.
    :param resume_ns: when it ran again: what is answered between the two was under way, and ends no outage of this
        switchover.
    :param ready_ns: when the guest ran and the network led to it again; None when that was not observed.
    """

    start_ns: int
    end_ns: int
    pause_ns: int | None = None
    resume_ns: int | None = None
    ready_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Of all records of a flow. For one-way flows *requests* are observations of progress; of these none is lost."""

    requests: int
    lost: int
    duplicated: int
    reordered: int
    corrupted: int


@dataclass(frozen=True, slots=True)
class Outage:
    """One stretch without service; *end_ns* is the first good reply or progress, unless not *recovered*.

    :param through_sent_ns: when what ended it was sent: the request that was answered, or the datagram that arrived;
        None without recovery, and for bulk flows.
    """

    start_ns: int
    end_ns: int
    recovered: bool = True
    through_sent_ns: int | None = None

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class FlowAnalysis:
    """A flow during one migration.

    :param outage: None when there is none to speak of (see the module); one of duration 0 when nothing was noticed.
    :param typical_gap_ns: median time between two consecutive good replies or progresses of the whole flow.
    :param longest_gap_ns: the longest one that ends in the window.
    """

    counts: Counts
    outage: Outage | None
    typical_gap_ns: int | None
    longest_gap_ns: int | None


def count(records: StructuredArray) -> Counts:
    """Lost: no answer, or none that was right. Duplicated counts copies, the others count requests."""
    status = records["status"]
    return Counts(
        requests=len(records),
        lost=int((records["received_ns"] == 0).sum()),
        duplicated=int((status >> DUPLICATES_SHIFT).sum()),
        reordered=int(((status & STATUS_REORDERED) != 0).sum()),
        corrupted=int(((status & STATUS_CORRUPT) != 0).sum()),
    )


def in_time_limit_ns(typical_ns: int) -> int:
    """How long a reply or progress may take and still be in time: three times what is typical, at least 1 ms more."""
    return max(_LATE_FACTOR * typical_ns, typical_ns + NS_PER_MS)


def analyse_flow(
    kind: str,
    records: StructuredArray,
    window: Window | None,
    observed_until_ns: int | None = None,
    *,
    from_guest: bool = False,
) -> FlowAnalysis:
    """Counts over all *records*, outage and longest gap of the migration in *window* (None: there was no migration).

    :param records: of :data:`bench.records.RECORD`, of the whole flow (all migrations), in the order of ``seq``.
    :param observed_until_ns: when the flow was stopped or died (``ended_ns`` of the agent's report); by default the
        last record's time.
    :param from_guest: the guest is the client. It asks nothing while it is paused, so that the time without answers
        counts, as for one-way flows.
    """
    good = _good(records)
    order = np.argsort(records["received_ns"][good], kind="stable")
    arrivals, sent = records["received_ns"][good][order], records["sent_ns"][good][order]
    gaps = np.diff(arrivals)
    typical = int(np.median(gaps)) if len(gaps) else None
    last = int(max(records["sent_ns"].max(), records["received_ns"].max())) if len(records) else 0
    until = max(last, observed_until_ns or 0)
    longest = outage = None
    if window is not None and len(records):
        ends = arrivals[1:]
        of_window = gaps[(ends >= window.start_ns) & (ends < window.end_ns)]
        longest = int(of_window.max()) if len(of_window) else None
        if kind in PROGRESS_KINDS or (kind in REQUEST_KINDS and from_guest):
            outage = _progress_outage(arrivals, sent, gaps, window, until)
        elif kind in REQUEST_KINDS:
            outage = _request_outage(records, good, window, until)
    return FlowAnalysis(count(records), outage, typical, longest)


def _good(records: StructuredArray) -> _Flags:
    good: _Flags = (records["received_ns"] != 0) & ((records["status"] & STATUS_CORRUPT) == 0)
    return good


def _of_migration(starts: _Ints, ends: _Ints, window: Window) -> _Flags:
    chosen: _Flags = (starts < window.end_ns) & (ends > window.start_ns)
    if window.resume_ns is not None:
        chosen &= ends > window.resume_ns
    elif window.pause_ns is not None:
        chosen &= ends > window.pause_ns
    else:
        chosen &= starts >= window.start_ns
    if window.ready_ns is not None:
        chosen &= starts <= window.ready_ns
    return chosen


def _request_outage(records: StructuredArray, good: _Flags, window: Window, until_ns: int) -> Outage | None:
    sent = records["sent_ns"].astype(np.int64)
    received = np.where(good, records["received_ns"], _NEVER).astype(np.int64)
    if not ((sent < window.end_ns) & (np.minimum(received, until_ns) >= window.start_ns)).any():
        return None
    latency = (received - sent)[good]
    limit = in_time_limit_ns(int(np.median(latency))) if len(latency) else 0
    # the first good reply to this request or to a later one: a running minimum from the end
    first_good = np.minimum.accumulate(received[::-1])[::-1]
    ends = np.minimum(first_good, max(until_ns, int(sent[-1])))
    late = ~good | (received - sent > limit)
    late &= (first_good != _NEVER) | (ends - sent >= LEAST_TAIL_NS)
    stretch = np.where(late & _of_migration(sent, ends, window), ends - sent, -1)
    chosen = int(stretch.argmax())
    if stretch[chosen] < 0:
        return _nothing_noticed(window)
    recovered = first_good[chosen] != _NEVER
    through = None
    if recovered:
        answered_by = chosen + int(received[chosen:].argmin())
        through = int(sent[answered_by])
    return Outage(int(sent[chosen]), int(ends[chosen]), bool(recovered), through)


def _progress_outage(arrivals: _Ints, sent: _Ints, gaps: _Ints, window: Window, until_ns: int) -> Outage | None:
    if not len(arrivals):
        return None
    limit = in_time_limit_ns(int(np.median(gaps)) if len(gaps) else 0)
    tail = max(0, until_ns - int(arrivals[-1]))  # a gap that nothing ended
    starts = arrivals.astype(np.int64)
    ends = np.append(arrivals[1:], starts[-1] + tail)
    if not ((starts < window.end_ns) & (ends >= window.start_ns)).any():
        return None
    long = ends - starts > limit
    long[-1] = tail >= LEAST_TAIL_NS
    stretch = np.where(long & _of_migration(starts, ends, window), ends - starts, -1)
    chosen = int(stretch.argmax())
    if stretch[chosen] < 0:
        return _nothing_noticed(window)
    recovered = chosen < len(gaps)
    through = int(sent[chosen + 1]) if recovered and sent[chosen + 1] != arrivals[chosen + 1] else None
    return Outage(int(starts[chosen]), int(ends[chosen]), recovered, through)


def _nothing_noticed(window: Window) -> Outage:
    at_ns = window.start_ns if window.pause_ns is None else window.pause_ns
    return Outage(at_ns, at_ns)
