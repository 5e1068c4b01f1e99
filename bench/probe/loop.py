"""One thread's event loop over epoll and timerfd: what the client agent runs all its flows on.

Periodic timers are absolute (:class:`bench.host.timer.TimerFd`), so that they never drift.
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable
from typing import Final

from bench.clock import now_ns
from bench.errors import BenchError
from bench.host.timer import TimerFd

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT

OnReady = Callable[[int], None]
OnError = Callable[[Exception], None]


class Periodic:
    """A running periodic timer of a :class:`Loop`; close it to end it."""

    def __init__(self, loop: Loop, timer: TimerFd) -> None:
        self._loop = loop
        self._timer: TimerFd | None = timer

    def close(self) -> None:
        """Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None:
            self._loop.unwatch(timer.fileno())
            timer.close()


class Loop:
    """Callbacks for ready descriptors and due times.

    A callback that raises OSError or BenchError hands it to the *on_error* it was registered with: one flow that breaks
    does not stop the others. Any other exception is a bug and ends the loop.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, tuple[OnReady, OnError]] = {}
        self._due: list[tuple[int, int, Callable[[], None], OnError]] = []
        self._number = 0
        self._timer = TimerFd()
        self._armed_ns = 0
        self._running = False
        self.watch(self._timer.fileno(), READABLE, self._run_due, _reraise)

    def watch(self, fd: int, events: int, on_ready: OnReady, on_error: OnError) -> None:
        """Call ``on_ready(events)`` while *fd* is ready (level-triggered)."""
        self._ready[fd] = (on_ready, on_error)
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget *fd*; before it is closed. Unknown descriptors are ignored."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def every(
        self, interval_ns: int, on_due: Callable[[int], None], on_error: OnError, first_ns: int | None = None
    ) -> Periodic:
        """Call ``on_due(expirations)`` on the grid ``first_ns + k * interval_ns``.

        When this process was kept from running, one call stands for several expirations: their number tells.
        """
        timer = TimerFd()

        def ready(_events: int) -> None:
            count = timer.clear()
            if count:
                on_due(count)

        timer.arm(now_ns() if first_ns is None else first_ns, interval_ns)
        self.watch(timer.fileno(), READABLE, ready, on_error)
        return Periodic(self, timer)

    def at(self, when_ns: int, call: Callable[[], None], on_error: OnError) -> None:
        """Call *call* once at *when_ns*."""
        self._number += 1
        heapq.heappush(self._due, (when_ns, self._number, call, on_error))
        if self._due[0][1] == self._number:
            self._arm()

    def _arm(self) -> None:
        when_ns = self._due[0][0]
        if when_ns != self._armed_ns:
            self._timer.arm(when_ns)
            self._armed_ns = when_ns

    def _run_due(self, _events: int) -> None:
        self._timer.clear()
        self._armed_ns = 0
        now = now_ns()
        while self._due and self._due[0][0] <= now:
            _when, _number, call, on_error = heapq.heappop(self._due)
            try:
                call()
            except (OSError, BenchError) as error:
                on_error(error)
        if self._due:
            self._arm()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self, timeout_s: float = -1) -> None:
        """Wait for the next ready descriptors and serve them."""
        for fd, events in self._epoll.poll(timeout_s):
            entry = self._ready.get(fd)
            if entry is None:  # unwatched by a callback of the same batch
                continue
            try:
                entry[0](events)
            except (OSError, BenchError) as error:
                entry[1](error)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._timer.close()
        self._epoll.close()


def _reraise(error: Exception) -> None:
    raise error
