"""CLOCK_MONOTONIC in integer nanoseconds: the one clock of every process of a run.

All network namespaces of a machine share this clock, so time stamps of different processes can be subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.errors import DeadlineError

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def now_ns() -> int:
    """CLOCK_MONOTONIC now, in ns."""
    return time.monotonic_ns()


class Deadline:
    """A point on the monotonic clock by which something must have happened.

    :param duration_ns: from now on; 0 means "already due".
    """

    __slots__ = ("at_ns", "duration_ns")

    def __init__(self, duration_ns: int) -> None:
        self.duration_ns = duration_ns
        self.at_ns = now_ns() + duration_ns

    @property
    def remaining_ns(self) -> int:
        """What is left in ns, never below 0."""
        return max(0, self.at_ns - now_ns())

    @property
    def remaining_s(self) -> float:
        """What is left in seconds, for the timeouts of the standard library."""
        return self.remaining_ns / NS_PER_S

    @property
    def expired(self) -> bool:
        return now_ns() >= self.at_ns


def wait_until(
    condition: Callable[[], bool],
    deadline: Deadline,
    what: str,
    interval_ns: int = 5 * NS_PER_MS,
) -> None:
    """Poll *condition* until it holds.

    For conditions that nothing announces (a kernel counter, another program's state); prefer a blocking read or a
    poll on a descriptor wherever one exists.

    :raises DeadlineError: naming *what* when the deadline passes first.
    """
    while not condition():
        if deadline.expired:
            raise DeadlineError(f"{what}: not within {deadline.duration_ns / NS_PER_S:g} s")
        time.sleep(min(interval_ns, max(deadline.remaining_ns, 1)) / NS_PER_S)
