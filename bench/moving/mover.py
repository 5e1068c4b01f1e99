"""Driving the migrations of a run: several at a time, each to its own end, whatever becomes of the others.

One loop: what may start is decided by :class:`bench.moving.schedule.Schedule`; every engine and every client is heard;
the first Ctrl-C cancels what can still be cancelled, and takes back what has not started.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.analysis.assemble import Move
from bench.analysis.forecast import Forecast
from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import BenchError
from bench.forecasting import Forecaster
from bench.host.sandbox import notices_held
from bench.migration.driver import Migration, Plan
from bench.moving.engine_plan import EnginePlans
from bench.moving.ports import distances, ports_on_the_way
from bench.moving.schedule import Order, Schedule
from bench.moving.waves import wave
from bench.notice import Notice
from bench.surroundings import Surroundings
from bench.testbed import Testbed
from bench.timeline import Event
from bench.watch import Watch

POLL_NS: Final = 20 * NS_PER_MS
_NOTHING: Final[Mapping[str, Any]] = {"identical": None, "bytes_sent": 0, "connections": 0, "cost": {}}


@dataclass
class _Running:
    """A migration that goes on."""

    order: Order
    plan: Plan
    migration: Migration
    forecast: Forecast | None
    start_ns: int = 0


class Mover:
    """Moves the guests of a testbed as its plan says.

    :ivar moves: what has become of every migration so far.
    :ivar reasons: why the run's numbers should not be trusted.
    """

    def __init__(
        self,
        testbed: Testbed,
        watch: Watch,
        forecaster: Forecaster,
        engine_plans: EnginePlans,
        notice: Notice,
        *,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.moves: list[Move] = []
        self.reasons: list[str] = []
        self._testbed = testbed
        self._watch = watch
        self._forecaster = forecaster
        self._engine_plans = engine_plans
        self._notice = notice
        self._surroundings = surroundings
        self._running: dict[str, _Running] = {}
        self._told = 0
        self._in_all = len(testbed.plan.orders) * testbed.scenario.run.repeat

    def move_all(self) -> None:
        """Every repetition. Ends early when a migration failed, no guest is left, or the run was asked to stop."""
        testbed, watch, run = self._testbed, self._watch, self._testbed.scenario.run
        for number in range(1, run.repeat + 1):
            if number > 1:
                watch.wait(testbed, run.pause_between, "pausing between migrations")
            before = len(self.moves)
            watch.closely(True)
            self.move(wave(testbed.plan.orders, testbed.plan.homes, testbed.guests.places()))
            made = self.moves[before:]
            if self._notice or not testbed.guests.places():
                return
            watch.wait_recovered(testbed, max((move.end_ns for move in made), default=0))
            watch.wait(testbed, self._announcing_ns(), "announcing")
            watch.closely(False)
            testbed.stop_forwarding()
            if any(move.outcome["outcome"] == "failed" for move in made):
                return

    def _announcing_ns(self) -> int:
        """How long the announcements of a guest that has just moved go on."""
        testbed = self._testbed
        name = testbed.scenario.guests[0].name
        told = testbed.guests.announcement(name, testbed.scenario.migration.announce_delay, faulty=True)
        return int(told["wire_after_ns"] + max(told["offsets_ns"], default=0))

    def move(self, orders: tuple[Order, ...]) -> None:
        """One set of orders, to its end."""
        testbed = self._testbed
        memory = {guest.name: guest.memory for guest in testbed.scenario.guests}
        schedule = Schedule(orders, testbed.plan.limits, testbed.guests.places(), memory)
        if self._surroundings is not None:
            self._surroundings.begin_wave()
        begin_ns = now_ns()
        try:
            while not schedule.done:
                self._interruptible_turn(schedule, begin_ns)
        finally:
            for running in self._running.values():
                running.migration.stop()
            self._running.clear()

    def _interruptible_turn(self, schedule: Schedule, begin_ns: int) -> None:
        """The first notice cancels, the second one is not for us."""
        try:
            self._turn(schedule, begin_ns)
        except KeyboardInterrupt as stop:
            if self._notice:
                raise
            self._notice.note(stop)
            self._cancel_all(schedule)

    def _turn(self, schedule: Schedule, begin_ns: int) -> None:
        elapsed_ns = now_ns() - begin_ns
        decision = schedule.decide(elapsed_ns)
        for order, reason in decision.drop:
            self._never_started(order, reason)
        if decision.start:
            with notices_held():  # what was started must be known to be there
                self._start(schedule, decision.start)
        for name, running in list(self._running.items()):
            outcome = running.migration.poll(lambda event, name=name: self._hear(name, event))  # type: ignore[misc]
            if outcome is not None:
                with notices_held():  # the guest has moved or not: that must be noted
                    self._end(schedule, running, outcome)
        self._note_deaths(schedule)
        if self._surroundings is not None:
            self._surroundings.play(elapsed_ns)
        if not schedule.done:
            self._wait(schedule, elapsed_ns)
        self._watch.poll()
        self._testbed.require_alive()

    def _hear(self, name: str, event: Event) -> None:
        event = replace(event, guest=name)
        self._testbed.on_event(event)
        self._watch.on_event(event)

    def _wait(self, schedule: Schedule, elapsed_ns: int) -> None:
        """Until an engine or a client says something, an order's time comes, or for a moment."""
        next_ns = schedule.next_offset_ns(elapsed_ns)
        wait_ns = POLL_NS if next_ns is None else min(POLL_NS, next_ns - elapsed_ns)
        waited_for: list[Any] = list(self._watch.filenos())
        wait_s = wait_ns / NS_PER_S
        for running in self._running.values():
            waited_for += running.migration.waits_for()
            wait_s = min(wait_s, running.migration.wait_s())
        select.select(waited_for, [], [], max(0.0, wait_s))

    # starting

    def _start(self, schedule: Schedule, orders: tuple[Order, ...]) -> None:
        """Start the engines of all, then let all migrations begin at about the same moment."""
        batch = [self._make(schedule, order) for order in orders]
        for step in (Migration.spawn, Migration.prepare, Migration.begin):
            batch = [running for running in batch if self._attempt(schedule, running, step)]
            if step is Migration.spawn:
                self._place(batch)

    def _place(self, batch: list[_Running]) -> None:
        """Engines belong to their hypervisors, whose limits hold for them and for the guests that they start."""
        if self._surroundings is not None:
            for running in batch:
                hosts = {"source": running.plan.source_host, "destination": running.plan.destination_host}
                for side, pid in running.migration.pids().items():
                    self._surroundings.place(hosts[side], pid)

    def _make(self, schedule: Schedule, order: Order) -> _Running:
        """Nothing of it is started yet."""
        self._told += 1
        source = schedule.places[order.guest]
        whose = f"{order.guest} from " if len(self._testbed.scenario.guests) > 1 else ""
        self._watch.step(f"migration {self._told} of {self._in_all}: {whose}{source} to {order.destination}")
        plan = self._engine_plans.make(order.guest, order.destination)
        shared = [(start, running.destination) for running, start in schedule.running.values()]
        forecast = self._forecaster.forecast(self._testbed, order.guest, source, order.destination, shared)
        running = _Running(order, plan, Migration(plan), forecast)
        self._testbed.expect(order.guest, order.destination)
        self._running[order.guest] = running
        return running

    def _attempt(self, schedule: Schedule, running: _Running, step: Callable[[Migration], None]) -> bool:
        """One step of a start; what fails is a migration that failed. Its time begins with its last step."""
        running.start_ns = now_ns()
        try:
            step(running.migration)
        except BenchError as error:
            self._end(schedule, running, {"outcome": "failed", "reason": str(error), **_NOTHING})
            return False
        return True

    # ending

    def _end(self, schedule: Schedule, running: _Running, outcome: dict[str, Any]) -> None:
        """Note what has become of it; the others go on."""
        order, guests = running.order, self._testbed.guests
        running.migration.stop()
        end_ns = now_ns()
        del self._running[order.guest]
        if outcome["outcome"] == "cancelled" and self._notice:
            outcome["reason"] = self._notice.reason  # rather than the engine's "by command"
        moved = outcome["outcome"] == "completed"
        if moved:
            try:
                guests.follow(order.guest, order.destination, running.plan.new_guest_socket)
            except BenchError as error:
                guests[order.guest].lost = str(error)
        if not moved:
            self._testbed.forget(order.guest)
        schedule.end(order.guest, moved=moved)
        self.moves.append(
            self._move(order, running.plan.source_host, running.start_ns, end_ns, outcome, forecast=running.forecast)
        )
        self._lose_if_dead(schedule, order.guest)

    def _never_started(self, order: Order, reason: str) -> None:
        source = self._testbed.guests.places().get(order.guest, "")
        self._watch.step(f"no migration of {order.guest} to {order.destination}: {reason}")
        outcome = {"outcome": "cancelled", "reason": f"never started: {reason}", **_NOTHING}
        at_ns = now_ns()
        self.moves.append(self._move(order, source, at_ns, at_ns, outcome))

    def _move(
        self,
        order: Order,
        source: str,
        start_ns: int,
        end_ns: int,
        outcome: Mapping[str, Any],
        *,
        forecast: Forecast | None = None,
    ) -> Move:
        plan = self._testbed.plan
        clients = list(plan.flows_of(order.guest))
        ports = self._testbed.switch_ports()
        on_the_way = ports_on_the_way(plan, ports, clients, source, order.destination) if source else {}
        return Move(
            number=len(self.moves) + 1,
            guest=order.guest,
            source=source,
            destination=order.destination,
            start_ns=start_ns,
            end_ns=end_ns,
            outcome=outcome,
            ports=on_the_way,
            paths={host: plan.switches_between(host, order.destination) for host in clients},
            forecast=forecast,
            distances=distances(plan, on_the_way, order.destination),
        )

    def _note_deaths(self, schedule: Schedule) -> None:
        """A guest that dies while others move ends with its own migrations."""
        for guest in self._testbed.guests:
            if guest.name not in self._running and not guest.lost and not guest.alive:
                self.reasons.append(guest.death())
                self._lose_if_dead(schedule, guest.name)

    def _lose_if_dead(self, schedule: Schedule, name: str) -> None:
        guest = self._testbed.guests[name]
        if guest.lost or not guest.alive:
            guest.lost = guest.lost or guest.death()
            schedule.lose(name)

    def _cancel_all(self, schedule: Schedule) -> None:
        """What has not started never will; what runs is asked to end, and completes where it is too late for that."""
        several = len(self._running) != 1
        self._watch.step(f"interrupted: cancelling the migration{'s' if several else ''}")
        for order in schedule.cancel_waiting():
            self._never_started(order, self._notice.reason)
        for running in self._running.values():
            with contextlib.suppress(BenchError):
                running.migration.cancel()
