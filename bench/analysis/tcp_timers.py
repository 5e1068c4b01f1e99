"""TCP's timers in theory: when a sender tries again, when it gives up, and so how an outage becomes a stall. Pure.

Sources: RFC 6298 (retransmission timer), RFC 5482 (user timeout), RFC 8985 (tail-loss probe), RFC 1122 4.2.3.6
(keepalive), ip-sysctl.rst, and Linux's net/ipv4/tcp_timer.c and tcp_output.c for what RFCs leave open.

A sender whose data vanishes sends the first unacknowledged segment again when its timer expires, then doubles the
timer, at most to *rto_max*: the **ladder** of retransmissions, as offsets from the moment the timer was armed, which is
when the oldest lost segment was sent. With R0 the timer's value: R0, 3 R0, 7 R0, ..., R0 (2^n - 1).

A **tail-loss probe** comes first when the lost segment was the last one: after 2 SRTT and, as it is alone, the least
timeout for a delayed acknowledgement, but not later than the timer itself (RFC 8985, 7.2). It arms the timer anew, so
that the ladder starts at the probe. A sender that **goes on** sending before that has its probe put off by each new
segment, and the timer of the lost one stays. Each of those new segments is a try as well, as long as the window has
room: the first that arrives has the receiver ask for the lost one (SACK), which is there a round trip later.

Linux's timer wheel is coarse: a timer of n ticks ends up to a granule late, of 1 tick below 64 ticks, 8 below 512, 64
below 4096 and so on (kernel/time/timer.c), after the tick that is under way; :func:`mean_lateness_ns` is half of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S

RTO_MIN_NS: Final = 200 * NS_PER_MS
RTO_MAX_NS: Final = 120 * NS_PER_S
RTO_INITIAL_NS: Final = NS_PER_S
TICK_NS: Final = 4 * NS_PER_MS  # CONFIG_HZ=250, Debian's and Ubuntu's
_WHEEL_TICKS: Final = 64
_WHEEL_STEP: Final = 8
MAX_TRIES: Final = 64
INITIAL_WINDOW: Final = 10  # segments (RFC 6928): what an application-limited connection keeps


@dataclass(frozen=True, slots=True)
class Sender:
    """The side with data in flight, as the kernel described it just before the outage (TCP_INFO).

    :param rto_ns: R0, the retransmission timer's value.
    :param srtt_ns: the smoothed round trip.
    :param interval_ns: after which time it sends another segment; None: nothing before the lost one is acknowledged.
    :param probes: whether tail-loss probes are on (``tcp_early_retrans`` 3 or 4, with SACK).
    :param rto_min_ns: the route's or the kernel's least.
    """

    rto_ns: int
    srtt_ns: int = 0
    interval_ns: int | None = None
    probes: bool = True
    rto_min_ns: int = RTO_MIN_NS
    rto_max_ns: int = RTO_MAX_NS

    @property
    def alone_ns(self) -> int:
        """When the lost segment would be sent again, or probed for, if it stayed the last one."""
        return min(2 * self.srtt_ns + self.rto_min_ns, self.rto_ns) if self.probes else self.rto_ns

    @property
    def goes_on(self) -> bool:
        """Whether another segment leaves before that."""
        return self.interval_ns is not None and self.interval_ns < self.alone_ns


def probe_ns(sender: Sender) -> int | None:
    """When the probe for a lost last segment leaves, after it; None if there is none (RFC 8985, 7.2)."""
    return sender.alone_ns if sender.probes and not sender.goes_on else None


def mean_lateness_ns(duration_ns: int, tick_ns: int = TICK_NS) -> int:
    """How late a kernel timer of this duration ends on average."""
    ticks = duration_ns // tick_ns
    granule, limit = 1, _WHEEL_TICKS
    while ticks >= limit:
        granule *= _WHEEL_STEP
        limit *= _WHEEL_STEP
    return (granule + 1) * tick_ns // 2


def ladder(sender: Sender, *, late: bool = False) -> Iterator[int]:
    """Offsets from the lost segment's first transmission at which it is sent again, for ever.

    :param late: with the mean lateness of the kernel's timers; else as the RFC has it.
    """
    at = probe_ns(sender) or 0
    if at:
        at += mean_lateness_ns(at) if late else 0
        yield at
    for number in itertools.count():
        wait = min(sender.rto_ns << min(number, MAX_TRIES), sender.rto_max_ns)
        at += wait + (mean_lateness_ns(wait) if late else 0)
        yield at


def textbook_stall_ns(outage_ns: int, rto_ns: int = RTO_MIN_NS, rto_max_ns: int = RTO_MAX_NS) -> int:
    """RFC 6298 alone, the segment lost at the very beginning of the outage: the first R0 (2^n - 1) not below it.

    >>> [textbook_stall_ns(int(s * 1e9)) / 1e9 for s in (0.06, 0.21, 0.5, 1, 3.5, 10, 20, 29, 40, 60)]
    [0.2, 0.6, 0.6, 1.4, 6.2, 12.6, 25.4, 51.0, 51.0, 102.2]
    """
    sender = Sender(rto_ns, probes=False, rto_max_ns=rto_max_ns)
    return next(at for at in ladder(sender) if at >= outage_ns)


def later_segments(sender: Sender) -> Iterator[int]:
    """Offsets of what leaves behind the lost segment before its timer ends: new ones, as many as the window holds, and
    the probe for them. The timer's end closes the window to one segment.
    """
    interval_ns = sender.interval_ns
    if interval_ns is None or not sender.goes_on:
        return
    probe_at_ns = interval_ns + 2 * sender.srtt_ns + 2 * TICK_NS
    offsets = [interval_ns * number for number in range(1, INITIAL_WINDOW)]
    if sender.probes and probe_at_ns < 2 * interval_ns:  # or the next segment puts it off
        offsets.append(probe_at_ns)
    yield from sorted(offset for offset in offsets if offset < sender.rto_ns)


def stall_ns(outage_ns: int, sender: Sender, lost_after_ns: int = 0, one_way_ns: int = 0) -> int:
    """From the beginning of an outage until data gets through again.

    :param lost_after_ns: when, after the outage began, the oldest lost segment was sent (negative: it was under way).
    :param one_way_ns: from the sender to where the outage takes effect.
    """
    for offset in later_segments(sender):
        arrives = lost_after_ns + offset + one_way_ns
        if arrives >= outage_ns:
            return arrives + 2 * one_way_ns  # the lost one is asked for, and comes
    for offset in ladder(sender, late=True):
        arrives = lost_after_ns + offset + one_way_ns
        if arrives >= outage_ns:
            return arrives
    raise AssertionError("the ladder has no end")


def model_timeout_ns(retries: int, rto_min_ns: int = RTO_MIN_NS, rto_max_ns: int = RTO_MAX_NS) -> int:
    """What ``tcp_retries2`` stands for (ip-sysctl.rst; tcp_model_timeout() of tcp_timer.c): a time, not a count.

    >>> [model_timeout_ns(n) / 1e9 for n in (5, 8, 15)]
    [12.6, 102.2, 924.6]
    """
    total = 0
    for number in range(retries + 1):
        total += min(rto_min_ns << min(number, MAX_TRIES), rto_max_ns)
    return total


def death_ns(sender: Sender, retries: int, user_timeout_ns: int = 0) -> int:
    """From the lost segment's first transmission until the kernel gives the connection up (ETIMEDOUT).

    Linux looks at each expiry whether the time since the *first retransmission* (a tail-loss probe is none) is over the
    limit: that of ``tcp_retries2``, or TCP_USER_TIMEOUT, towards which the timer is also shortened. So both act
    later than their names say, by the time until that first retransmission. What ``tcp_retries2`` stands for is
    reckoned with 200 ms whatever the route's ``rto_min``.
    """
    steps = ladder(sender, late=True)
    if probe_ns(sender):
        next(steps)
    first = next(steps)
    limit = user_timeout_ns or model_timeout_ns(retries, rto_max_ns=sender.rto_max_ns)
    if user_timeout_ns:
        return first + limit
    return next(at for at in steps if at - first >= limit)


def keepalive_death_ns(idle_ns: int, interval_ns: int, count: int) -> int:
    """An idle connection, from its last activity: the first probe after *idle_ns*, given up one *interval_ns* after the
    last of *count* (tcp(7)).
    """
    return idle_ns + count * interval_ns


def connect_ladder(linear: int = 0, initial_ns: int = RTO_INITIAL_NS, rto_max_ns: int = RTO_MAX_NS) -> Iterator[int]:
    """When SYNs leave, from the first at 0: the timer stays for *linear* timeouts (``tcp_syn_linear_timeouts``, Linux
    6.5), then doubles.
    """
    at = 0
    yield at
    for number in itertools.count():
        at += min(initial_ns << min(max(0, number - linear), MAX_TRIES), rto_max_ns)
        yield at


def connect_death_ns(syn_retries: int, linear: int = 0) -> int:
    """From the first SYN until connect(2) fails with ETIMEDOUT.

    >>> connect_death_ns(6) / 1e9
    127.0
    """
    return next(itertools.islice(connect_ladder(linear), syn_retries + linear + 1, None))


def longest_survivable_ns(sender: Sender, retries: int, user_timeout_ns: int = 0) -> int:
    """The longest outage after which a connection with data in flight goes on: until the last try before its death."""
    end = death_ns(sender, retries, user_timeout_ns)
    last = 0
    for at in ladder(sender, late=True):
        if at >= end:
            return last
        last = at
    raise AssertionError("the ladder has no end")
