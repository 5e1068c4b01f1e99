"""When to go on, when to switch over, when to give up: pure decisions on numbers.

The rule is QEMU's (migration/migration.c): the switchover is right when what is left can be sent within the downtime
limit at the measured bandwidth, ``remaining < bandwidth x downtime_limit``. QEMU itself goes on for ever when that
never comes true; ``max_rounds`` and ``max_time_ns`` bound it here, and ``on_no_convergence`` says what happens then.
With the limit ``min`` the switchover is right as soon as a round leaves no less than an earlier one did.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

from bench.clock import NS_PER_MS, NS_PER_S
from bench.units import format_bytes

LEAST_DOWNTIME_NS: Final = NS_PER_MS // 2  # with "min": less than a switchover costs anyway
WINDOW_NS: Final = 50 * NS_PER_MS  # a bandwidth sample of this length forgets everything before it


class Action(enum.Enum):
    """What the engine does next."""

    ROUND = "round"
    SWITCHOVER = "switchover"
    CANCEL = "cancel"
    POST_COPY = "post-copy"
    THROTTLE = "throttle"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scenario allows. ``downtime_limit_ns`` None: as little as possible ("min"); ``max_bandwidth_bps`` 0:
    unlimited.
    """

    downtime_limit_ns: int | None
    max_rounds: int
    max_time_ns: int
    max_bandwidth_bps: int = 0
    on_no_convergence: Literal["force", "cancel", "post-copy", "throttle"] = "force"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a migration stands after a round.

    :param remaining_bytes: what the final copy would have to deliver: dirty pages, and what still waits in the socket.
    :param bandwidth_bps: goodput as measured, ``None`` while nothing has been sent.
    :param rounds: rounds done.
    :param elapsed_ns: since the first round began.
    :param least_bytes: the least that any round before left; ``None`` after the first one.
    """

    remaining_bytes: int
    bandwidth_bps: int | None
    rounds: int
    elapsed_ns: int
    least_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A decision and why, in words for the timeline."""

    action: Action
    reason: str


def expected_downtime_ns(remaining_bytes: int, bandwidth_bps: int | None) -> int | None:
    """How long sending *remaining_bytes* takes, rounded up; ``None`` when nothing is known."""
    if remaining_bytes == 0:
        return 0
    if not bandwidth_bps:
        return None
    return -(-remaining_bytes * 8 * NS_PER_S // bandwidth_bps)


def next_step(progress: Progress, limits: Limits) -> Step:
    """Decide after a round."""
    remaining = format_bytes(progress.remaining_bytes)
    expected_ns = expected_downtime_ns(progress.remaining_bytes, progress.bandwidth_bps)
    limit_ns = LEAST_DOWNTIME_NS if limits.downtime_limit_ns is None else limits.downtime_limit_ns
    if expected_ns is not None and expected_ns <= limit_ns:
        return Step(
            Action.SWITCHOVER,
            f"{remaining} remain: {expected_ns / NS_PER_MS:.1f} ms expected, limit {limit_ns / NS_PER_MS:g} ms",
        )
    least = progress.least_bytes
    if limits.downtime_limit_ns is None and least is not None and progress.remaining_bytes >= least:
        return Step(Action.SWITCHOVER, f"{remaining} remain: another round would not leave less")
    if progress.rounds >= limits.max_rounds:
        given_up = f"no convergence after {progress.rounds} rounds"
    elif progress.elapsed_ns >= limits.max_time_ns:
        given_up = f"no convergence after {progress.elapsed_ns / NS_PER_S:.1f} s"
    else:
        return Step(Action.ROUND, f"{remaining} remain")
    given_up += f": {remaining} remain"
    if limits.on_no_convergence == "cancel":
        return Step(Action.CANCEL, given_up)
    if limits.on_no_convergence == "post-copy":
        return Step(Action.POST_COPY, given_up)
    if limits.on_no_convergence == "throttle":
        return Step(Action.THROTTLE, given_up)
    return Step(Action.SWITCHOVER, f"forced, {given_up}")


class BandwidthEstimate:
    """Goodput from what rounds delivered: long samples replace the estimate, short ones only move it.

    A round of three pages says little about a link, a round of a second everything; so each sample weighs as much as
    its length has of :data:`WINDOW_NS`.
    """

    def __init__(self) -> None:
        self.bps: int | None = None

    def add(self, delivered_bytes: int, elapsed_ns: int) -> None:
        """:param elapsed_ns: the time that took; samples of no time or no bytes say nothing."""
        if elapsed_ns <= 0 or delivered_bytes <= 0:
            return
        sample = delivered_bytes * 8 * NS_PER_S // elapsed_ns
        if self.bps is None or elapsed_ns >= WINDOW_NS:
            self.bps = sample
        else:
            self.bps += (sample - self.bps) * elapsed_ns // WINDOW_NS
