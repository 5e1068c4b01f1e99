"""When a vCPU's writes are due: at a rate, or as a trace says."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S
from bench.memory.content import PAGE_BYTES
from bench.memory.trace import Trace

TICK_NS: Final = NS_PER_MS
MAX_BEHIND_NS: Final = 100 * NS_PER_MS
BATCH_WRITES: Final = (
    256  # at once, before the channel is looked at: below 1 ms even when each is the first to its page
)


class Schedule(Protocol):
    """How many writes are due after a time, and when one is."""

    def count(self, duration_ns: int) -> int:
        """Writes due in the first *duration_ns*."""
        ...

    def time_ns(self, number: int) -> int:
        """When write *number*, counted from 1, is due."""
        ...


class Rate:
    """:param rate_bytes_per_s: of modified memory, each write counting one page."""

    def __init__(self, rate_bytes_per_s: int) -> None:
        self._rate = rate_bytes_per_s

    def count(self, duration_ns: int) -> int:
        return duration_ns * self._rate // (PAGE_BYTES * NS_PER_S)

    def time_ns(self, number: int) -> int:
        return -(-number * PAGE_BYTES * NS_PER_S // self._rate)


class Traced:
    """As the looks of a trace, that begins anew after its end. It holds at least one write."""

    def __init__(self, trace: Trace) -> None:
        self._times = trace.times_ns
        self._duration_ns = trace.duration_ns

    def count(self, duration_ns: int) -> int:
        rounds, rest_ns = divmod(duration_ns, self._duration_ns)
        return rounds * len(self._times) + int(np.searchsorted(self._times, rest_ns, side="right"))

    def time_ns(self, number: int) -> int:
        rounds, last = divmod(number - 1, len(self._times))
        return rounds * self._duration_ns + int(self._times[last])


class Pacer:
    """How many writes are due at a time.

    :param schedule: None: as many as there can be.
    :ivar missed: writes that were due longer ago than :data:`MAX_BEHIND_NS` and are not made up for.
    """

    def __init__(self, schedule: Schedule | None) -> None:
        self.missed = 0
        self._schedule = schedule
        self._start_ns = 0
        self._done = 0

    def restart(self, at_ns: int, position: int = 0) -> None:
        """Of the schedule *position* writes are done; the next one is due as long after them as the schedule says."""
        self._done = position
        self._start_ns = at_ns - (self._schedule.time_ns(position) if self._schedule and position else 0)

    def due(self, at_ns: int) -> int:
        """Writes due now, at most :data:`BATCH_WRITES`."""
        schedule = self._schedule
        if schedule is None:
            return BATCH_WRITES
        elapsed_ns = at_ns - self._start_ns
        due = schedule.count(elapsed_ns) - self._done
        bearable = schedule.count(elapsed_ns) - schedule.count(max(0, elapsed_ns - MAX_BEHIND_NS))
        excess = due - max(bearable, BATCH_WRITES)
        if excess > 0:
            self.missed += excess
            self._done += excess
            due -= excess
        return max(0, min(due, BATCH_WRITES))

    def did(self, count: int) -> None:
        self._done += count

    def next_ns(self, at_ns: int) -> int:
        """When to look again: now if writes are due, else when one is, but not before the next tick."""
        schedule = self._schedule
        if schedule is None or schedule.count(at_ns - self._start_ns) > self._done:
            return at_ns
        return max(self._start_ns + schedule.time_ns(self._done + 1), at_ns + TICK_NS)
