"""Every state of a migration, in every mode, disturbed in every way: exactly one guest runs afterwards, and is intact.

The table is generated from the engine's own lists of states and modes. A state needs a line in :data:`WAYS`, which says
how to get there, and one in :func:`ends`, which says how it ends then; a mode in :data:`VISITED`. What has none fails.

The source engine stands still on entering the state until the disturbance has happened (``tests/fakes/held_source``),
so that each case is where its name says. The guest, its clients and the engines are real.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from guest_mover import MIB, workload
from guest_standing import Standing, standing
from held import LONG_NS, go_on, hold_source, pid_of, post_cancel, wait_until_held

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.guest.client import GuestControl
from bench.migration.modes import MODES
from bench.migration.states import State

pytestmark = pytest.mark.root

SHORT_CUT_S = 0.5

BEFORE_OWNERSHIP = (State.NONE, State.SETUP, State.ACTIVE, State.DEVICE)
POST_COPY = (State.POSTCOPY_ACTIVE, State.POSTCOPY_PAUSED, State.POSTCOPY_RECOVER)
EVER = (*BEFORE_OWNERSHIP, State.COMPLETED, State.FAILED, State.CANCELLED)

VISITED = {
    "precopy": EVER,
    "stop-and-copy": EVER,
    "postcopy": (*EVER, *POST_COPY),
    "hybrid": (*EVER, *POST_COPY),
}
"""The states that a migration of each mode can be in."""


class Case:
    """One migration, from its start to its end."""

    def __init__(
        self, guest: Standing, monkeypatch: pytest.MonkeyPatch, mode: str, *, hold: list[State], timeout_ns, patience_ns
    ):
        """:param patience_ns: how long a network in post-copy may be away."""
        self.guest = guest
        self.healing: threading.Timer | None = None
        self.cancel_id = 0
        self.outcome: dict | None = None
        hold_source(monkeypatch, at=hold)
        self.moving = guest.prepare(
            mode=mode,
            link_timeout_ns=timeout_ns,
            recover_every_ns=100 * NS_PER_MS,
            recover_for_ns=patience_ns,
        )
        self.moving.start()

    def pid(self, side: str) -> int:
        return pid_of(self.moving, side)

    def wait_until_held(self) -> None:
        """In the next of the states to hold at."""
        wait_until_held(self.moving)

    def go_on(self) -> None:
        go_on(self.moving)

    def wait(self) -> dict:
        outcome = self.moving.wait(None, Deadline(LONG_NS))
        if self.healing is not None:
            self.healing.join()
        return outcome

    # what can be done to it

    def cancel(self) -> None:
        self.cancel_id = post_cancel(self.moving)

    def kill_source(self) -> None:
        os.kill(self.pid("source"), signal.SIGKILL)

    def kill_destination(self) -> None:
        os.kill(self.pid("destination"), signal.SIGKILL)

    def kill_skeleton(self) -> None:
        path = self.guest.plan.new_guest_socket
        with GuestControl.connect(path) as control:
            memory = control.memory()
            os.close(memory.fd)
            os.kill(memory.writers[0].pid, signal.SIGKILL)
            with contextlib.suppress(BenchError):
                control.wait_gone(Deadline(LONG_NS))

    def cut(self) -> None:
        self.guest.link(self.guest.plan.destination_host, "down")

    def heal(self) -> None:
        self.guest.link(self.guest.plan.destination_host, "up")

    def cut_shortly(self) -> None:
        self.cut()
        self.healing = threading.Timer(SHORT_CUT_S, self.heal)
        self.healing.start()

    def nothing(self) -> None:
        pass


WAYS: dict[State, list[tuple[State, Callable[[Case], None]]]] = {
    State.NONE: [],
    State.SETUP: [],
    State.ACTIVE: [],
    State.DEVICE: [],
    State.POSTCOPY_ACTIVE: [],
    State.POSTCOPY_PAUSED: [(State.POSTCOPY_ACTIVE, Case.cut)],
    State.POSTCOPY_RECOVER: [(State.POSTCOPY_ACTIVE, Case.cut), (State.POSTCOPY_PAUSED, Case.heal)],
    State.COMPLETED: [],
    State.FAILED: [(State.ACTIVE, Case.kill_skeleton)],
    State.CANCELLED: [(State.ACTIVE, Case.cancel)],
}
"""How a migration gets into each state: what to do to it in which states before."""


@dataclass(frozen=True)
class Disturbance:
    name: str
    do: Callable[[Case], None]
    link_timeout_ns: int
    ends: dict[State, tuple[str, str]]
    """(outcome, where the guest runs then: ``source``, ``destination`` or ``nowhere``)."""


def ends(before: tuple[str, str], post_copy: tuple[str, str], *, dies: bool = False) -> dict[State, tuple[str, str]]:
    """:param dies: the source engine, so that it cannot say any more how a migration without a guest at the
    destination ended.
    """
    return {
        **dict.fromkeys(BEFORE_OWNERSHIP, before),
        **dict.fromkeys(POST_COPY, post_copy),
        State.COMPLETED: ("completed", "destination"),
        State.FAILED: ("failed", "source"),
        State.CANCELLED: ("failed" if dies else "cancelled", "source"),
    }


LOST = ("failed", "nowhere")  # as documented: in post-copy the guest dies with either host
MOVED = ("completed", "destination")
STAYED = ("failed", "source")
PATIENT_NS, HASTY_NS = 10 * NS_PER_S, NS_PER_S // 2

DISTURBANCES = [
    Disturbance("cancel", Case.cancel, PATIENT_NS, ends(("cancelled", "source"), MOVED)),
    Disturbance("kill-source", Case.kill_source, PATIENT_NS, ends(STAYED, LOST, dies=True)),
    Disturbance("kill-destination", Case.kill_destination, PATIENT_NS, ends(STAYED, LOST)),
    Disturbance("cut-shortly", Case.cut_shortly, PATIENT_NS, ends(MOVED, MOVED)),
    Disturbance("cut-for-good", Case.cut, HASTY_NS, ends(STAYED, LOST)),
]


def table():
    for mode in MODES:
        for state in State:
            if state in VISITED.get(mode, State):
                for disturbance in DISTURBANCES:
                    group = pytest.mark.xdist_group(f"states {mode}")
                    yield pytest.param(
                        mode, state, disturbance, marks=group, id=f"{mode}-{state.value}-{disturbance.name}"
                    )


def test_every_state_and_every_mode_has_its_lines():
    assert set(WAYS) == set(State)
    assert set(VISITED) == set(MODES)
    for disturbance in DISTURBANCES:
        assert set(disturbance.ends) == set(State)


@pytest.fixture(scope="module")
def standing_guest():
    with standing(workload=workload("hotset", 4 * MIB)) as guest:
        yield guest


@pytest.mark.parametrize(("mode", "state", "disturbance"), list(table()))
def test_exactly_one_guest_runs_after(standing_guest, monkeypatch, mode, state, disturbance):
    guest = standing_guest.ensure()
    guest.alive = False  # until this case has proved that it is
    way = WAYS[state]
    timeout_ns = HASTY_NS if state in POST_COPY[1:] else disturbance.link_timeout_ns
    patience_ns = NS_PER_S if disturbance.do is Case.cut else LONG_NS
    hold = [*(at for at, _do in way), state]
    case = Case(guest, monkeypatch, mode, hold=hold, timeout_ns=timeout_ns, patience_ns=patience_ns)
    try:
        for _at, do in way:
            case.wait_until_held()
            do(case)
            case.go_on()
        case.wait_until_held()
        guest.client.say()
        disturbance.do(case)
        case.go_on()
        if disturbance.do in (Case.cancel, Case.kill_source, Case.kill_destination):
            case.heal()  # what the way cut
        outcome = case.wait()
    finally:
        case.heal()
    expected, place = disturbance.ends[state]
    assert outcome["outcome"] == expected, outcome
    if place == "nowhere":
        assert "lost" in outcome["reason"]
        guest.require_lost()
        return
    assert guest.settle() == getattr(guest.plan, f"{place}_host")
    if outcome["identical"] is not None or disturbance.do is not Case.kill_source:
        assert outcome["identical"] is (True if expected == "completed" else None)
    guest.require_intact()
    guest.alive = True
    wait_until(lambda: not case.moving.pids(), Deadline(LONG_NS), "no engine left")
