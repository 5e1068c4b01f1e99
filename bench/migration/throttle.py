"""Auto-converge and the dirty limit: when the guest's vCPUs are held back, and how much.

Auto-converge is QEMU's (migration/ram.c, migration_trigger_throttle): when, over at least a second, the guest dirtied
more than half as much as was sent, for the second time, its vCPUs lose 20 % of their CPU time, then 10 % more each time
that this happens again, up to 99 %. The dirty limit keeps the tracked dirty rate, summed over the vCPUs, below the
limit times their number, by capping how often they write.

:class:`AutoConverge` and :class:`DirtyLimit` are pure; :class:`Throttler` acts on the guest, and reports in ``cost``::

    throttle    {mechanism, percent, throttled_ns, guest_cpu_ns, steps: [{t_ns, percent}]}
    dirty_limit {mechanism, limit_bytes_per_s, most_bytes_per_s, last_bytes_per_s, writes_per_s, capped_ns}

``throttled_ns``, ``capped_ns``: how long the guest was held back; ``guest_cpu_ns``: the CPU time that its vCPUs could
not have meanwhile. Rates are those of all vCPUs together.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.guest.client import GuestControl
from bench.memory.tracker import DirtyTracker
from bench.migration.engine import Reporter
from bench.migration.levers import Levers
from bench.migration.policy import Action, Step
from bench.migration.wire import PAGE_BYTES

FULL_PPM: Final = 1_000_000


class AutoConverge:
    """How many percent of their CPU time the vCPUs lose.

    :ivar percent: 0 while it does not throttle.
    """

    INITIAL: Final = 20
    STEP: Final = 10
    MAX: Final = 99
    TRIGGER: Final = 50
    PERIOD_NS: Final = NS_PER_S
    HIGH_PERIODS: Final = 2

    def __init__(self, begin_ns: int) -> None:
        self.percent = 0
        self._since_ns = begin_ns
        self._dirty_bytes = self._sent_bytes = self._high = 0

    def after_round(self, dirty_bytes: int, sent_bytes: int, at_ns: int) -> bool:
        """:param dirty_bytes: found dirty after a round; *sent_bytes* in it. :returns: whether :attr:`percent` rose."""
        self._dirty_bytes += dirty_bytes
        self._sent_bytes += sent_bytes
        if at_ns - self._since_ns < self.PERIOD_NS:
            return False
        high = self._dirty_bytes * 100 > self._sent_bytes * self.TRIGGER
        self._since_ns, self._dirty_bytes, self._sent_bytes = at_ns, 0, 0
        if not high:
            return False
        self._high += 1
        if self._high < self.HIGH_PERIODS:
            return False
        self._high = 0
        return self.step_up()

    def step_up(self) -> bool:
        """:returns: False when it is at its maximum already."""
        before = self.percent
        self.percent = min(self.MAX, self.percent + self.STEP) if self.percent else self.INITIAL
        return self.percent > before


class DirtyLimit:
    """How often vCPUs may write so that the tracked dirty rate stays below a limit.

    Pages that are written again before they are collected count once in the dirty rate, so how many writes a dirty rate
    takes is learnt from both rates.

    :param limit_bytes_per_s: of all vCPUs together.
    :ivar writes_per_s: of all vCPUs together; 0 while there is no cap.
    """

    AIM_PERCENT: Final = 80  # of the limit: what is found too late is above it

    def __init__(self, limit_bytes_per_s: int) -> None:
        self._aim = limit_bytes_per_s * self.AIM_PERCENT // 100
        self.writes_per_s = 0

    def sample(self, rate_bytes_per_s: int, writes_per_s: int) -> bool:
        """:param writes_per_s: how often they wrote. :returns: whether :attr:`writes_per_s` changed."""
        before = self.writes_per_s
        if rate_bytes_per_s > self._aim:
            start = min(before, writes_per_s) if before else writes_per_s
            self.writes_per_s = max(1, start * self._aim // rate_bytes_per_s)
        elif before and writes_per_s * 2 < before:  # the cap does not bind any more
            self.writes_per_s = 0
        elif before and rate_bytes_per_s * 8 < self._aim * 7:
            self.writes_per_s = before + max(1, before // 8)
        return self.writes_per_s != before


class Guest(Protocol):
    """What a throttler needs of :class:`bench.guest.client.GuestControl`."""

    def throttle(self, share_ppm: int, cgroup: str = "") -> str: ...

    def cap_writes(self, writes_per_s: int) -> int: ...


class Throttler:
    """Applies both to a guest. Without a lever that needs it, it does nothing."""

    SAMPLE_NS: Final = 200 * NS_PER_MS

    def __init__(self, guest: Guest | GuestControl, levers: Levers, report: Reporter, vcpus: int = 1) -> None:
        self._guest = guest
        self._levers = levers
        self._report = report
        self._vcpus = max(1, vcpus)
        now = now_ns()
        self._auto = AutoConverge(now)
        self._limit = DirtyLimit(levers.dirty_limit_bytes_per_s * self._vcpus)
        self._mechanism = ""
        self._percent = 0  # that holds now
        self._steps: list[dict[str, int]] = []
        self._throttled_ns = self._withheld_ns = 0
        self._on_ns: int | None = None  # since when the present percentage holds
        # the window of the dirty limit's next sample
        self._window_ns = now
        self._window_pages = 0
        self._peeked = 0
        self._writes: int | None = None
        self._capped_since_ns: int | None = None
        self._capped_ns = 0
        self._most_rate = self._last_rate = 0

    def during_round(self, tracker: DirtyTracker | None) -> None:
        """Called often while the guest runs: samples the dirty rate for the limit."""
        if self._levers.dirty_limit_bytes_per_s and tracker and now_ns() - self._window_ns >= self.SAMPLE_NS:
            pages = tracker.peek()
            self._sample(max(0, pages - self._peeked))
            self._peeked = pages

    def after_round(self, dirty_bytes: int, sent_bytes: int, at_ns: int) -> None:
        """Called after each round in which the guest ran, and after its dirty pages were collected."""
        if self._levers.dirty_limit_bytes_per_s:
            self._sample(max(0, dirty_bytes // PAGE_BYTES - self._peeked))
            self._peeked = 0
        if self._levers.auto_converge and self._auto.after_round(dirty_bytes, sent_bytes, at_ns):
            self._apply()

    def decided(self, step: Step) -> Step:
        """What becomes of the policy's decision: THROTTLE is another round, slower, or the switchover at last."""
        if step.action is not Action.THROTTLE:
            return step
        if self._auto.step_up():
            self._apply()
            return Step(Action.ROUND, f"throttled by {self._auto.percent} %, {step.reason}")
        return Step(Action.SWITCHOVER, f"forced although throttled by {self._auto.percent} %, {step.reason}")

    def release(self) -> None:
        """Let the vCPUs run. Idempotent. :raises BenchError: when the guest does not answer; it ends then by itself."""
        throttled, capped = self._on_ns is not None, self._capped_since_ns is not None
        self.ended(now_ns())
        if throttled:
            self._guest.throttle(FULL_PPM)
            self._report("throttle", percent=0, mechanism=self._mechanism)
        if capped:
            self._guest.cap_writes(0)
            self._report("dirty_limit", writes_per_s=0)

    def ended(self, at_ns: int) -> None:
        """The guest was paused, which ended the throttle."""
        self._add_up(at_ns)
        self._on_ns = self._capped_since_ns = None

    def cost(self) -> dict[str, Any]:
        """See this module."""
        levers = self._levers
        self._add_up(now_ns())
        cost: dict[str, Any] = {}
        if levers.auto_converge or levers.throttle_late:
            cost["throttle"] = {
                "mechanism": self._mechanism,
                "percent": self._auto.percent,
                "throttled_ns": self._throttled_ns,
                "guest_cpu_ns": self._withheld_ns,
                "steps": self._steps,
            }
        if levers.dirty_limit_bytes_per_s:
            cost["dirty_limit"] = {
                "mechanism": "loop",
                "limit_bytes_per_s": levers.dirty_limit_bytes_per_s * self._vcpus,
                "most_bytes_per_s": self._most_rate,
                "last_bytes_per_s": self._last_rate,
                "writes_per_s": self._limit.writes_per_s,
                "capped_ns": self._capped_ns,
            }
        return cost

    def _sample(self, pages: int) -> None:
        self._window_pages += pages
        elapsed_ns = now_ns() - self._window_ns
        if elapsed_ns < self.SAMPLE_NS:
            return
        rate = self._window_pages * PAGE_BYTES * NS_PER_S // elapsed_ns
        writes = self._guest.cap_writes(-(-self._limit.writes_per_s // self._vcpus))
        before, self._writes = self._writes, writes
        self._window_ns, self._window_pages = now_ns(), 0
        if before is None:
            return  # how often they write is known from the next sample on
        self._most_rate = max(self._most_rate, rate)
        self._last_rate = rate
        if self._limit.sample(rate, (writes - before) * NS_PER_S // elapsed_ns):
            self._guest.cap_writes(-(-self._limit.writes_per_s // self._vcpus))
            if self._capped_since_ns is None:
                self._capped_since_ns = now_ns()
            self._report("dirty_limit", writes_per_s=self._limit.writes_per_s, dirty_bytes_per_s=rate)

    def _add_up(self, at_ns: int) -> None:
        """What holds now has held until *at_ns*."""
        if self._on_ns is not None:
            elapsed_ns = max(0, at_ns - self._on_ns)
            self._throttled_ns += elapsed_ns
            self._withheld_ns += elapsed_ns * self._percent * self._vcpus // 100
            self._on_ns = at_ns
        if self._capped_since_ns is not None:
            self._capped_ns += max(0, at_ns - self._capped_since_ns)
            self._capped_since_ns = at_ns

    def _apply(self) -> None:
        percent = self._auto.percent
        self._mechanism = self._guest.throttle((100 - percent) * (FULL_PPM // 100), self._levers.cgroup)
        now = now_ns()
        self._add_up(now)
        self._on_ns, self._percent = now, percent
        self._steps.append({"t_ns": now, "percent": percent})
        self._report("throttle", now, percent=percent, mechanism=self._mechanism)
