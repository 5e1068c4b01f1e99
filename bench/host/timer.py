"""A timer to wait for with epoll, in nanoseconds: epoll's own timeout counts milliseconds.

Sources: timerfd_create(2), prctl(2). Lean: guests use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator

_PR_SET_TIMERSLACK = 29
_TFD_TIMER_ABSTIME = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def set_timer_slack_ns(slack_ns: int) -> None:
    """How much later than asked the kernel may wake this thread; the default is 50 us."""
    _check(_libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0), "prctl(PR_SET_TIMERSLACK)")


def be_woken_on_time(priority: int) -> str:
    """Ask for wake-ups on time: a timer slack of 1 ns and real-time scheduling, else the best nice value.

    :param priority: among real-time processes; the higher one interrupts the lower.
    :returns: what was granted: ``"realtime"``, ``"nice"`` or ``"none"``.
    """
    set_timer_slack_ns(1)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            return "none"
        return "nice"
    return "realtime"


@contextlib.contextmanager
def uninterrupted(priority: int) -> Iterator[None]:
    """While the body runs, no process that is not real-time takes the processor from this thread, if that is permitted.

    For some tens of microseconds' work that wakes others, who would otherwise run first.
    """
    former = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *former)


class TimerFd:
    """A timerfd on CLOCK_MONOTONIC, readable once its time has come."""

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC have these values
        self._fd = _check(_libc.timerfd_create(time.CLOCK_MONOTONIC, flags), "timerfd_create")
        self._spec = _Itimerspec()

    def fileno(self) -> int:
        return self._fd

    def arm(self, at_ns: int | None, interval_ns: int = 0) -> None:
        """Become readable at *at_ns*, at once if that has passed; None: never.

        :param interval_ns: and then again on the grid ``at_ns + k * interval_ns``, which never drifts; 0: once only.
        """
        value, interval = self._spec.value, self._spec.interval
        value.seconds, value.nanoseconds = (0, 0) if at_ns is None else divmod(max(at_ns, 1), 10**9)
        interval.seconds, interval.nanoseconds = divmod(interval_ns, 10**9)
        spec = ctypes.byref(self._spec)
        _check(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None), "timerfd_settime")

    def clear(self) -> int:
        """Stop being readable; returns how often it expired since it was armed or cleared."""
        with contextlib.suppress(BlockingIOError):
            return int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        return 0

    def close(self) -> None:
        os.close(self._fd)
