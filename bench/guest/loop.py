"""The guest process' event loop: one thread, epoll, two classes of descriptors.

*Urgent* ones (commands, timers) are looked at before and after every single event of a *bulk* one (the services'
sockets), and bulk work is handed out one event at a time, so that a command waits for one event's work, however busy
the services are. The bulk descriptors sit in an epoll of their own inside the urgent one, which can be set aside as a
whole: a paused guest touches none of its sockets.
"""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Callable

from bench.clock import NS_PER_MS, now_ns
from bench.host.timer import TimerFd

BULK_TURN_NS = NS_PER_MS // 2
"""How long bulk events are handled before the urgent ones are looked at again."""

Handler = Callable[[int], None]
"""Called with the epoll events of its descriptor."""


class Timer:
    """A call in the future; see :meth:`Loop.at`."""

    __slots__ = ("call", "due_ns")

    def __init__(self, due_ns: int, call: Callable[[], object]) -> None:
        self.due_ns = due_ns
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Handlers must not block. An exception of a handler leaves :meth:`run`."""

    def __init__(self) -> None:
        self._urgent = select.epoll()
        self._bulk = select.epoll()
        self._timer = TimerFd()
        self._armed_ns: int | None = None
        self._handlers: dict[int, Handler] = {}
        self._bulk_handlers: dict[int, Handler] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False
        self._holding = True
        self._urgent.register(self._timer.fileno(), select.EPOLLIN)

    # descriptors

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Watch an urgent descriptor."""
        self._urgent.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Idempotent."""
        if self._handlers.pop(fd, None) is not None:
            self._urgent.unregister(fd)

    def watch_bulk(self, fd: int, events: int, handler: Handler) -> None:
        self._bulk.register(fd, events)
        self._bulk_handlers[fd] = handler

    def modify_bulk(self, fd: int, events: int) -> None:
        self._bulk.modify(fd, events)

    def unwatch_bulk(self, fd: int) -> None:
        """Idempotent."""
        if self._bulk_handlers.pop(fd, None) is not None:
            self._bulk.unregister(fd)

    def hold_bulk(self) -> None:
        """Handle no bulk event until :meth:`release_bulk`. A new loop holds. Idempotent."""
        if not self._holding:
            self._holding = True
            self._urgent.unregister(self._bulk.fileno())

    def release_bulk(self) -> None:
        """Idempotent."""
        if self._holding:
            self._holding = False
            self._urgent.register(self._bulk.fileno(), select.EPOLLIN)

    # time

    def at(self, due_ns: int, call: Callable[[], object]) -> Timer:
        """Call *call* once at *due_ns* (CLOCK_MONOTONIC), soon if that has passed."""
        timer = Timer(due_ns, call)
        heapq.heappush(self._timers, (due_ns, next(self._order), timer))
        return timer

    # running

    def run(self) -> None:
        """Handle events until :meth:`stop`."""
        while not self._stopped:
            self.turn()

    def stop(self) -> None:
        self._stopped = True

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait for something to happen, handle it: commands, then timers, then a bounded stretch of bulk events."""
        self._arm()
        bulk_ready = False
        for fd, events in self._urgent.poll(timeout_s):
            if fd == self._bulk.fileno():
                bulk_ready = True
            elif fd == self._timer.fileno():
                self._timer.clear()
                self._armed_ns = None
            elif (handler := self._handlers.get(fd)) is not None:  # an earlier handler may have closed it
                handler(events)
        self._run_timers()
        if bulk_ready and not self._stopped:
            self._bulk_turn()

    def close(self) -> None:
        self._bulk.close()
        self._urgent.close()
        self._timer.close()

    def _bulk_turn(self) -> None:
        end_ns = now_ns() + BULK_TURN_NS
        while not self._holding:  # a handler may hold
            ready = self._bulk.poll(0, 1)  # one at a time: epoll serves its descriptors in turn
            if not ready:
                return
            fd, events = ready[0]
            if (handler := self._bulk_handlers.get(fd)) is not None:
                handler(events)
            if now_ns() >= end_ns:
                return

    def _run_timers(self) -> None:
        now = now_ns()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].call is None):
            timer = heapq.heappop(self._timers)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()

    def _arm(self) -> None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        due_ns = self._timers[0][0] if self._timers else None
        if due_ns != self._armed_ns:
            self._timer.arm(due_ns)
            self._armed_ns = due_ns
