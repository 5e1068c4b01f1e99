"""Every state of a migration, with every kind of disk, disturbed in every way: the guest goes on with its disk, and an
independent reader of the image finds all that was acknowledged.

The table is generated from the engine's states: each has its events in :data:`MOMENTS`, after which the source engine
stands still until the disturbance has happened. A kind of disk has one guest, which goes through its cases one after
the other and is proved at the end. Each case is tried with one kind of disk; with ``BENCH_EVERY_DISK=1`` with all, and
everything but a cancel at more moments of each state.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from disk_mover import DISK_WORKLOAD, DiskMover, moving_disks, wait_restarted
from held import LONG_NS, go_on, hold_source, pid_of, post_cancel, wait_until_held

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.migration.states import State

pytestmark = pytest.mark.root

KINDS = [
    ("shared", "raw"),
    ("local", "qcow2"),
    ("pass-through", "raw"),
    ("shared", "qcow2"),
    ("local", "raw"),
    ("shared", "vhdx"),
    ("shared", "vhd"),
]
MOMENTS = {
    State.SETUP: ["mirror_begin", "mirror_close", "connected"],
    State.ACTIVE: ["setup_end", "storage_settled"],
    State.DEVICE: ["pause_begin", "device_state_sent", "storage_released", "handover_sent"],
    State.COMPLETED: ["source_gone"],
}
"""What the source engine has told when it is disturbed; the destination owns the guest soon after ``handover_sent``."""
ORDER = [moment for moments in MOMENTS.values() for moment in moments]
SELDOM = ("mirror_begin", "setup_end", "pause_begin")  # for a cancel each moment is another one, for a kill hardly
OF_COPIES = ("mirror_begin", "mirror_close")
AFTER_RELEASE = "device_state_sent"  # the source engine waits for the destination; the guest has let go meanwhile
LAST_TO_CANCEL = "device_state_sent"  # released or not: later the engine does not look any more
LINK_TIMEOUT_NS = NS_PER_S


def cancel(mover: DiskMover, _moment: str) -> None:
    post_cancel(mover.moving)


def kill_source(mover: DiskMover, _moment: str) -> None:
    os.kill(pid_of(mover.moving, "source"), signal.SIGKILL)


def kill_destination(mover: DiskMover, _moment: str) -> None:
    os.kill(pid_of(mover.moving, "destination"), signal.SIGKILL)


def kill_server(mover: DiskMover, moment: str) -> None:
    """The one that has the disk; of a local one the copy's, as soon as there is one."""
    copied = ORDER.index(moment) >= ORDER.index("connected")
    server = mover.server_of(mover.plan.destination_host if copied else mover.plan.source_host)
    os.kill(server.process.pid, signal.SIGKILL)
    wait_restarted(server)


def cut(mover: DiskMover, _moment: str) -> None:
    mover.cut_way("down")


@dataclass(frozen=True)
class Way:
    """:param last: the last moment at which the guest must stay at the source.

    :param ends: how the migration ends then.
    """

    do: Callable[[DiskMover, str], None]
    last: str
    ends: str

    def expected(self, moment: str) -> str:
        """The outcome; empty where either may be, by who was faster."""
        if ORDER.index(moment) <= ORDER.index(self.last or moment):
            return self.ends
        return "completed" if self.do is cancel or moment == "source_gone" else ""


WAYS = {
    "cancel": Way(cancel, LAST_TO_CANCEL, "cancelled"),
    "kill-source": Way(kill_source, "storage_released", "failed"),
    "kill-destination": Way(kill_destination, "storage_released", "failed"),
    "kill-storage-server": Way(kill_server, "", ""),
    "cut-storage-link": Way(cut, "storage_released", "failed"),
}
"""A storage server that was killed is started again: the migration may go on or fail, the guest keeps its disk."""


def possible(kind: str, moment: str, name: str) -> bool:
    if moment in OF_COPIES:
        return kind == "local"
    if name == "cut-storage-link":  # before the disks are needed it is none of the migration's business
        return kind == "local" or ORDER.index(moment) >= ORDER.index("storage_settled")
    return name != "kill-source" or moment != "source_gone"  # it has nothing more to do


def table():
    """Kind, form, moment and name of the way, the cases of a kind next to each other."""
    every = bool(os.environ.get("BENCH_EVERY_DISK"))
    cases = [
        (3 * way + at, moment, name)  # each way meets each kind at another moment
        for way, name in enumerate(WAYS)
        for at, moment in enumerate(ORDER)
        if every or name == "cancel" or moment not in SELDOM
    ]
    chosen = []
    for number, moment, name in cases:
        kinds = [kind for kind in KINDS if possible(kind[0], moment, name)]
        chosen += [(kind, moment, name) for kind in (kinds if every or not kinds else [kinds[number % len(kinds)]])]
    for kind in KINDS:
        for case, moment, name in chosen:
            if case == kind:
                text = "-".join((*kind, moment, name))
                yield pytest.param(kind, moment, name, marks=pytest.mark.xdist_group(" ".join(kind)), id=text)


def test_every_state_in_which_disks_can_move_has_its_moments():
    ends = {State.NONE, State.FAILED, State.CANCELLED}  # before and after all that is about disks
    assert set(MOMENTS) == {state for state in State if state not in ends and "postcopy" not in state.value}


class Standing:
    """A guest with one kind of disk, and another one when a case has failed."""

    def __init__(self, kind: tuple[str, str]) -> None:
        self._kind = kind
        self._stack = contextlib.ExitStack()
        self._mover: DiskMover | None = None

    @contextlib.contextmanager
    def borrowed(self):
        if self._mover is None:
            self._mover = self._stack.enter_context(moving_disks())
            self._mover.boot_with_disk(*self._kind, workload=DISK_WORKLOAD, timeout_s=3, think_s=0.005)
        try:
            yield self._mover
        except BaseException:
            self._mover = None
            self._stack.close()
            raise

    def prove(self) -> None:
        with self._stack:
            if self._mover is not None:
                self._mover.proved()


@pytest.fixture(scope="module")
def standing(request):
    made = Standing(request.param)
    yield made
    made.prove()


@pytest.mark.parametrize(("standing", "moment", "name"), list(table()), indirect=["standing"])
def test_the_guest_goes_on_with_its_disk(standing, monkeypatch, moment, name):
    way = WAYS[name]
    with standing.borrowed() as mover:
        hold_source(monkeypatch, after=[moment])
        moving = mover.start(link_timeout_ns=LINK_TIMEOUT_NS)
        try:
            wait_until_held(moving)
            if moment == AFTER_RELEASE:
                wait_until(mover.is_released, Deadline(LONG_NS), "the guest let go of its disk")
            way.do(mover, moment)
            go_on(moving)
            outcome = moving.wait(None, Deadline(LONG_NS))
        finally:
            mover.cut_way("up")
        mover.end(outcome)
        owner = mover.assert_one_runs()
        assert outcome["outcome"] == (way.expected(moment) or outcome["outcome"]), outcome
        completed = outcome["outcome"] == "completed"
        assert owner == (mover.plan.destination_host if completed else mover.plan.source_host), outcome
        mover.require_disk()
