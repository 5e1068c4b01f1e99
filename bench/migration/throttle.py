"""Auto-converge and the dirty limit: when the guest's vCPUs are held back, and how much.

Auto-converge is QEMU's (migration/ram.c, migration_trigger_throttle): when, over at least a second, the guest dirtied
more than half as much as was sent, for the second time, its vCPUs lose 20 % of their CPU time, then 10 % more each time
that this happens again, up to 99 %. The dirty limit keeps the tracked dirty rate, summed over the vCPUs, below the
limit times their number, by a controller that starts from the CPU time they really use.

:class:`AutoConverge` and :class:`DirtyLimit` are pure; :class:`Throttler` acts on the guest, and reports in ``cost``::

    throttle {mechanism, percent, most_percent, throttled_ns, steps: [{t_ns, percent}], dirty_limit_bytes_per_s}
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
LEAST_PPM: Final = 1_000  # as bench.guest.throttle
_MAX_STEPS: Final = 256  # kept for the report


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
    """The share of CPU time by which the dirty rate stays below a limit.

    :param limit_bytes_per_s: of all vCPUs together.
    :ivar share_ppm: of a processor, for each vCPU.
    """

    AIM_PERCENT: Final = 90  # of the limit: what is found too late is above it

    def __init__(self, limit_bytes_per_s: int) -> None:
        self._limit = limit_bytes_per_s
        self.share_ppm = FULL_PPM

    def sample(self, rate_bytes_per_s: int, used_ppm: int) -> bool:
        """:param used_ppm: of a processor, by each vCPU on average. :returns: whether :attr:`share_ppm` changed."""
        before = self.share_ppm
        aim = self._limit * self.AIM_PERCENT // 100
        if rate_bytes_per_s > aim:
            start = min(self.share_ppm, max(used_ppm, LEAST_PPM))
            self.share_ppm = max(LEAST_PPM, start * aim // rate_bytes_per_s)
        elif rate_bytes_per_s * 4 < aim * 3 and self.share_ppm < FULL_PPM:
            self.share_ppm = min(FULL_PPM, self.share_ppm * 5 // 4)
        return self.share_ppm != before


class Guest(Protocol):
    """What a throttler needs of :class:`bench.guest.client.GuestControl`."""

    def throttle(self, share_ppm: int, cgroup: str = "") -> tuple[str, int]: ...


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
        self._share_ppm = FULL_PPM
        self._mechanism = ""
        self._steps: list[dict[str, int | float]] = []
        self._most_percent = 0.0
        self._throttled_ns = 0
        self._on_ns: int | None = None
        # the window of the dirty limit's next sample
        self._window_ns = now
        self._window_pages = 0
        self._peeked = 0
        self._cpu_ns: int | None = None

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
        if self._on_ns is not None:
            self.ended(now_ns())
            self._guest.throttle(FULL_PPM)
            self._report("throttle", percent=0, mechanism=self._mechanism)

    def ended(self, at_ns: int) -> None:
        """The guest was paused, which ended the throttle."""
        if self._on_ns is not None:
            self._throttled_ns += max(0, at_ns - self._on_ns)
            self._on_ns = None
            self._share_ppm = FULL_PPM

    def cost(self) -> dict[str, Any]:
        """See this module."""
        levers = self._levers
        if not (levers.auto_converge or levers.throttle_late or levers.dirty_limit_bytes_per_s):
            return {}
        running_ns = 0 if self._on_ns is None else now_ns() - self._on_ns
        return {
            "throttle": {
                "mechanism": self._mechanism,
                "percent": self._steps[-1]["percent"] if self._steps else 0,
                "most_percent": self._most_percent,
                "throttled_ns": self._throttled_ns + running_ns,
                "steps": self._steps,
                "dirty_limit_bytes_per_s": levers.dirty_limit_bytes_per_s,
            }
        }

    def _sample(self, pages: int) -> None:
        self._window_pages += pages
        elapsed_ns = now_ns() - self._window_ns
        if elapsed_ns < self.SAMPLE_NS:
            return
        rate = self._window_pages * PAGE_BYTES * NS_PER_S // elapsed_ns
        before = self._cpu_ns
        self._mechanism, self._cpu_ns = self._guest.throttle(self._share_ppm, self._levers.cgroup)
        self._window_ns, self._window_pages = now_ns(), 0
        if before is None:
            return  # how much CPU time they use is known from the next sample on
        used_ppm = (self._cpu_ns - before) * FULL_PPM // (elapsed_ns * self._vcpus)
        if self._limit.sample(rate, used_ppm):
            self._apply()

    def _apply(self) -> None:
        share_ppm = min(self._limit.share_ppm, (100 - self._auto.percent) * (FULL_PPM // 100))
        if share_ppm == self._share_ppm:
            return
        self._mechanism, self._cpu_ns = self._guest.throttle(share_ppm, self._levers.cgroup)
        self._share_ppm = share_ppm
        now = now_ns()
        if share_ppm >= FULL_PPM:
            self.ended(now)
        elif self._on_ns is None:
            self._on_ns = now
        percent = 100 - share_ppm / (FULL_PPM // 100)
        self._most_percent = max(self._most_percent, percent)
        if len(self._steps) < _MAX_STEPS:
            self._steps.append({"t_ns": now, "percent": percent})
        self._report("throttle", now, percent=percent, mechanism=self._mechanism)
