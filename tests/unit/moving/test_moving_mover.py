"""Driving several migrations: each to its own end, with fakes in place of testbed, watchers and engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError, GuestError, MigrationError
from bench.guests import RunningGuest
from bench.moving import mover as moving
from bench.moving.mover import Mover
from bench.moving.schedule import Limits, Order
from bench.notice import Notice
from bench.scenario import parse_scenario
from bench.timeline import Event

MIB16 = {"memory": "16MiB", "store_memory": "2MiB"}
HOSTS = ("h1", "h2", "h3")


@dataclass
class Control:
    closed: bool = False

    @property
    def channel(self) -> Control:
        return self

    def peer_closed(self) -> bool:
        return self.closed


class Guests:
    def __init__(self, scenario: Any, homes: dict[str, str]) -> None:
        self._running = {
            guest.name: RunningGuest(guest, homes[guest.name], Control(), Path("/nowhere"))  # type: ignore[arg-type]
            for guest in scenario.guests
        }
        self.unreachable: set[str] = set()

    def __iter__(self) -> Iterator[RunningGuest]:
        return iter(self._running.values())

    def __getitem__(self, name: str) -> RunningGuest:
        return self._running[name]

    def places(self) -> dict[str, str]:
        return {guest.name: guest.host for guest in self if not guest.lost}

    def announcement(self, _name: str, delay_ns: int, *, faulty: bool) -> dict[str, Any]:
        assert faulty
        return {"offsets_ns": [delay_ns], "wire_after_ns": 0}

    def follow(self, name: str, host: str, _socket: Path) -> None:
        if name in self.unreachable:
            raise GuestError(f"guest on {host}: no answer")
        self._running[name].host = host

    def kill(self, name: str) -> None:
        self._running[name].control.closed = True  # type: ignore[attr-defined]


@dataclass
class Watch:
    steps: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    polls: list[Callable[[], None]] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def filenos(self) -> list[int]:
        return []

    def poll(self) -> None:
        if self.polls:
            self.polls.pop(0)()

    def closely(self, on: bool) -> None:
        pass

    def wait(self, *_args: object) -> None:
        pass

    def wait_recovered(self, *_args: object) -> None:
        pass


class Engines:
    """Scripts of the migrations: guest -> what it does at each of its migrations."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[str]] = {}
        self.running: set[str] = set()
        self.most = 0
        self.log: list[str] = []

    def make(self, guest: str, destination: str) -> Any:
        return SimpleNamespace(
            guest=guest, destination=destination, source_host=self.guests[guest].host, new_guest_socket=Path("/new")
        )

    guests: Guests


def run(
    *orders: Order,
    homes: dict[str, str],
    scripts: dict[str, list[str]] | None = None,
    limits: Limits | None = None,
    repeat: int = 1,
    setup: Callable[[Guests, Watch], None] | None = None,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Mover, Guests, Engines, Watch, Notice]:
    raw = {"guest": MIB16, "guests": [{"name": name} for name in homes], "run": {"repeat": repeat}}
    scenario = parse_scenario(raw, "test")
    plan = SimpleNamespace(
        orders=orders,
        homes=homes,
        limits=limits or Limits(),
        flows_of=lambda _guest: {},
        switches_between=lambda _first, _second: [],
        path=lambda first, second: [first, second],
    )
    guests, watch, engines, notice = Guests(scenario, homes), Watch(), Engines(), Notice()
    engines.guests, engines.scripts = guests, scripts or {}
    testbed = SimpleNamespace(
        scenario=scenario,
        plan=plan,
        guests=guests,
        switch_ports=dict,
        require_alive=lambda: None,
        expect=lambda _guest, _destination: None,
        forget=lambda _guest: None,
        on_event=lambda _event: None,
        stop_forwarding=lambda: None,
    )

    class Migration:
        def __init__(self, orders: Any) -> None:
            self.guest = orders.guest
            script = engines.scripts.get(self.guest) or ["completed"]
            self.script = script.pop(0) if len(script) > 1 else script[0]
            self.turns = 2
            self.cancelled = False

        def spawn(self) -> None:
            engines.log.append(f"spawn {self.guest}")

        def prepare(self) -> None:
            engines.log.append(f"prepare {self.guest}")
            if self.script == "no engine":
                raise MigrationError("the migration could not be started")

        def begin(self) -> None:
            engines.log.append(f"begin {self.guest}")
            engines.running.add(self.guest)
            engines.most = max(engines.most, len(engines.running))
            if self.script == "refused":
                raise MigrationError("the source refused")

        def poll(self, on_event: Callable[[Event], None]) -> dict[str, Any] | None:
            on_event(Event(1, "engine.source", "round_begin"))
            self.turns -= 1
            if self.cancelled and self.script != "deaf":
                return {"outcome": "cancelled", "reason": "by command"}
            if self.turns > 0 or self.script in ("hangs", "deaf"):
                return None
            if self.script == "dies":
                guests.kill(self.guest)
                return {"outcome": "failed", "reason": "guest died"}
            return {"outcome": self.script, "reason": ""}

        def waits_for(self) -> list[int]:
            return []

        def wait_s(self) -> float:
            return 0.001

        def cancel(self) -> bool:
            self.cancelled = True
            return True

        def stop(self) -> None:
            engines.running.discard(self.guest)

    monkeypatch.setattr(moving, "Migration", Migration)
    if setup is not None:
        setup(guests, watch)
    forecaster: Any = SimpleNamespace(forecast=lambda *_args: None)
    mover = Mover(testbed, watch, forecaster, engines, notice)  # type: ignore[arg-type]
    mover.move_all()
    return mover, guests, engines, watch, notice


def outcomes(mover: Mover) -> list[tuple[str, str]]:
    return sorted((move.guest, str(move.outcome["outcome"])) for move in mover.moves)


CROSSING = (Order("a", "h2"), Order("b", "h1"))
APART = {"a": "h1", "b": "h2"}


def test_all_engines_stand_ready_before_the_first_migration_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    mover, guests, engines, watch, _ = run(*CROSSING, homes=APART, monkeypatch=monkeypatch)
    assert engines.log == [f"{step} {guest}" for step in ("spawn", "prepare", "begin") for guest in "ab"]
    assert engines.most == 2
    assert guests.places() == {"a": "h2", "b": "h1"}
    assert outcomes(mover) == [("a", "completed"), ("b", "completed")]
    assert watch.steps[:2] == ["migration 1 of 2: a from h1 to h2", "migration 2 of 2: b from h2 to h1"]
    assert {event.guest for event in watch.events} == {"a", "b"}


def test_back_and_forth(monkeypatch: pytest.MonkeyPatch) -> None:
    mover, guests, *_ = run(*CROSSING, homes=APART, repeat=2, monkeypatch=monkeypatch)
    assert guests.places() == APART
    assert [move.number for move in mover.moves] == [1, 2, 3, 4]


@pytest.mark.parametrize("script", ["failed", "cancelled", "no engine", "refused", "dies"])
def test_one_that_does_not_complete_ends_no_other(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, guests, *_ = run(*CROSSING, homes=APART, scripts={"a": [script]}, monkeypatch=monkeypatch)
    expected = script if script == "cancelled" else "failed"
    assert outcomes(mover) == [("a", expected), ("b", "completed")]
    assert guests.places() == ({"b": "h1"} if script == "dies" else {"a": "h1", "b": "h1"})


def test_a_failure_ends_the_repetitions_a_cancel_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    mover, *_ = run(*CROSSING, homes=APART, scripts={"a": ["failed"]}, repeat=3, monkeypatch=monkeypatch)
    assert len(mover.moves) == 2
    scripts = {"a": ["cancelled", "completed"]}
    mover, guests, *_ = run(*CROSSING, homes=APART, scripts=scripts, repeat=2, monkeypatch=monkeypatch)
    assert outcomes(mover) == [("a", "cancelled"), ("a", "completed"), ("b", "completed"), ("b", "completed")]
    assert guests.places() == {"a": "h2", "b": "h2"}


def test_what_a_failure_leaves_no_room_for_is_not_started_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(room={"h2": 16 << 20})
    orders = (Order("b", "h3"), Order("a", "h2"))
    mover, *_ = run(*orders, homes=APART, scripts={"b": ["failed"]}, limits=limits, monkeypatch=monkeypatch)
    last = mover.moves[-1]
    assert (last.guest, last.started) == ("a", False)
    assert last.outcome["reason"] == "never started: no room on h2 for guest a"


def test_a_guest_that_cannot_be_found_after_its_migration_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = (*CROSSING, Order("a", "h3"))

    def setup(guests: Guests, _watch: Watch) -> None:
        guests.unreachable.add("a")

    mover, guests, *_ = run(*orders, homes=APART, setup=setup, monkeypatch=monkeypatch)
    assert guests.places() == {"b": "h1"}
    assert mover.moves[-1].outcome["reason"] == "never started: guest a is lost"


def test_a_guest_that_dies_while_others_move_is_a_reason_for_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(at_once=1)

    def setup(guests: Guests, watch: Watch) -> None:
        watch.polls.append(lambda: guests.kill("b"))

    mover, *_ = run(*CROSSING, homes=APART, limits=limits, setup=setup, monkeypatch=monkeypatch)
    assert outcomes(mover) == [("a", "completed"), ("b", "cancelled")]
    assert mover.reasons == ["guest b on h2 died"]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_first_notice_cancels_what_runs_and_takes_back_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(_guests: Guests, watch: Watch) -> None:
        watch.polls += [lambda: None, interrupt]

    orders = (*CROSSING, Order("a", "h3"))
    scripts = {"a": ["hangs"], "b": ["hangs"]}
    mover, guests, engines, watch, notice = run(
        *orders, homes=APART, scripts=scripts, repeat=3, setup=setup, monkeypatch=monkeypatch
    )
    assert notice.exit_code == 130
    assert "interrupted: cancelling the migrations" in watch.steps
    reasons = [(move.guest, move.outcome["reason"]) for move in mover.moves]
    assert sorted(reasons) == [
        ("a", "interrupted by SIGINT"),
        ("a", "never started: interrupted by SIGINT"),
        ("b", "interrupted by SIGINT"),
    ]
    assert guests.places() == APART
    assert engines.running == set()


def test_a_second_notice_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(_guests: Guests, watch: Watch) -> None:
        watch.polls += [interrupt, interrupt]

    with pytest.raises(KeyboardInterrupt):
        run(*CROSSING, homes=APART, scripts={"a": ["deaf"]}, setup=setup, monkeypatch=monkeypatch)


def test_a_broken_testbed_stops_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BenchError("the switch died")

    def setup(_guests: Guests, watch: Watch) -> None:
        watch.polls.append(broken)

    engines: list[Engines] = []
    monkeypatch.setattr(Engines, "__init__", _remembering(engines, Engines.__init__))
    with pytest.raises(BenchError, match="switch died"):
        run(*CROSSING, homes=APART, setup=setup, monkeypatch=monkeypatch)
    assert engines[0].running == set()
    assert engines[0].log[-1] == "begin b"


def _remembering(into: list[Engines], make: Callable[[Engines], None]) -> Callable[[Engines], None]:
    def init(self: Engines) -> None:
        make(self)
        into.append(self)

    return init
