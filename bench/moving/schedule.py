"""Which migrations may start now: limits, offsets, room and the states of all. Pure: no clock, no process.

Rules, in this order. An order is *dropped* when its guest is there already or is lost. It may start when

- its offset has passed,
- no earlier order of its guest is waiting or running,
- fewer than ``at_once`` migrations run in all, and fewer than ``per_host`` into or out of either of its ends,
- its destination has room for the guest beside those that are there, coming, or not yet gone.

With ``at_once`` 1 the orders are kept: what may not start holds back what comes after it. Otherwise an order that may
not start yet is overtaken. When nothing runs and nothing may start ever again, the first order is dropped for lack of
room, and so on: a schedule always comes to an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Order:
    """One migration that is to happen: *guest* to *destination*, from wherever it is by then.

    :param offset_ns: not before so long after the schedule's start.
    """

    guest: str
    destination: str
    offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may go on at a time; 0 is no limit.

    :param room: host -> bytes that it has for guests; one that is not named has no limit.
    """

    at_once: int = 0
    per_host: int = 0
    room: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now.

    :param start: orders whose migrations start, all at the same time.
    :param drop: orders that will never start, each with the reason.
    """

    start: tuple[Order, ...] = ()
    drop: tuple[tuple[Order, str], ...] = ()


class Schedule:
    """The bookkeeping of one set of orders.

    :param places: guest -> host where it is now.
    :param memory: guest -> bytes of its memory.
    :ivar places: kept up to date; a guest that is lost is nowhere.
    :ivar waiting: orders that have not started, in order.
    :ivar running: guest -> its order, and the host that it is leaving.
    """

    def __init__(
        self, orders: Iterable[Order], limits: Limits, places: Mapping[str, str], memory: Mapping[str, int]
    ) -> None:
        self.limits = limits
        self.places = dict(places)
        self.waiting = list(orders)
        self.running: dict[str, tuple[Order, str]] = {}
        self._memory = dict(memory)

    @property
    def done(self) -> bool:
        return not self.waiting and not self.running

    def decide(self, elapsed_ns: int) -> Decision:
        """What is to be done *elapsed_ns* after the start. What it says counts as done: starts are running now."""
        start: list[Order] = []
        drop: list[tuple[Order, str]] = []
        held: set[str] = set()  # guests with an earlier order that waits
        for order in list(self.waiting):
            reason = self._pointless(order, held)
            if reason:
                self._take(order)
                drop.append((order, reason))
            elif order.guest not in held and self._hindrance(order, elapsed_ns) is None:
                self._take(order)
                self.running[order.guest] = (order, self.places[order.guest])
                start.append(order)
            elif self.limits.at_once == 1:
                break
            else:
                held.add(order.guest)
        if not start and not drop and self._stuck(elapsed_ns):
            order = self.waiting.pop(0)
            drop.append((order, self._hindrance(order, elapsed_ns) or "it can never start"))
        return Decision(tuple(start), tuple(drop))

    def end(self, guest: str, *, moved: bool) -> None:
        """Its running migration is over."""
        order, _source = self.running.pop(guest)
        if moved and guest in self.places:
            self.places[guest] = order.destination

    def lose(self, guest: str) -> None:
        """The guest runs nowhere any more. A migration of it that runs is still to be ended."""
        self.places.pop(guest, None)

    def cancel_waiting(self) -> list[Order]:
        """Take back everything that has not started. :returns: that."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def next_offset_ns(self, elapsed_ns: int) -> int | None:
        """The next moment at which an order's time comes; None when there is none."""
        return min((order.offset_ns for order in self.waiting if order.offset_ns > elapsed_ns), default=None)

    # the rules

    def _take(self, order: Order) -> None:
        """Out of those that wait: this very one, not one that equals it."""
        del self.waiting[next(number for number, item in enumerate(self.waiting) if item is order)]

    def _pointless(self, order: Order, held: set[str]) -> str:
        if order.guest not in self.places:
            return f"guest {order.guest} is lost"
        if order.guest in self.running or order.guest in held:
            return ""
        there = self.places[order.guest] == order.destination
        return f"guest {order.guest} is on {order.destination} already" if there else ""

    def _hindrance(self, order: Order, elapsed_ns: int) -> str | None:
        """Why it may not start now; None when it may."""
        limits = self.limits
        if order.offset_ns > elapsed_ns:
            return "its time has not come"
        if order.guest in self.running:
            return f"guest {order.guest} is moving"
        if limits.at_once and len(self.running) >= limits.at_once:
            return f"{limits.at_once} at a time"
        source = self.places[order.guest]
        for host in (source, order.destination):
            if limits.per_host and self._moving_at(host) >= limits.per_host:
                return f"{limits.per_host} at a time into or out of {host}"
        room = limits.room.get(order.destination)
        if room is not None and self.used_bytes(order.destination) + self._memory[order.guest] > room:
            return f"no room on {order.destination} for guest {order.guest}"
        return None

    def _moving_at(self, host: str) -> int:
        return sum(host in (source, order.destination) for order, source in self.running.values())

    def used_bytes(self, host: str) -> int:
        """Memory of the guests that are on *host*, leaving it, or coming to it."""
        there = [guest for guest, place in self.places.items() if place == host]
        coming = [guest for guest, (order, _source) in self.running.items() if order.destination == host]
        return sum(self._memory[guest] for guest in (*there, *coming))

    def _stuck(self, elapsed_ns: int) -> bool:
        return bool(self.waiting) and not self.running and self.next_offset_ns(elapsed_ns) is None


def rehearse(schedule: Schedule) -> tuple[tuple[Order, str], ...]:
    """Play *schedule* to its end as if every migration succeeded, the first to start being the first to end.

    :returns: what was dropped, with the reasons.
    """
    dropped: list[tuple[Order, str]] = []
    elapsed_ns = max((order.offset_ns for order in schedule.waiting), default=0)
    while not schedule.done:
        decision = schedule.decide(elapsed_ns)
        dropped += decision.drop
        if not decision.start and schedule.running:
            schedule.end(next(iter(schedule.running)), moved=True)
    return tuple(dropped)


def most_at_once(orders: Iterable[Order], limits: Limits, places: Mapping[str, str]) -> int:
    """A bound of how many of *orders* can run at a time."""
    at = dict(places)
    moving: set[str] = set()
    left: set[str] = set()
    for order in orders:
        moving.add(order.guest)
        left.add(at[order.guest])
        at[order.guest] = order.destination
    bounds = [len(moving)]
    if limits.at_once:
        bounds.append(limits.at_once)
    if limits.per_host:
        bounds.append(limits.per_host * len(left))  # each migration leaves one of them
    return min(bounds)
