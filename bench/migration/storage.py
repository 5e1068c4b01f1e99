"""Storage handover: control of the guest's disks passes from source to destination, and nobody has them twice.

The source lets go while the guest is paused (flush, release); the destination takes them just before it claims the
lease (:func:`acquire`). Its take is a compare-and-swap on the storage side, from the generation that the source
released: from that instant, which the storage side notes as ``storage_fenced``, no request of an older generation is
carried out. A source that gets the guest back raises the generation again, after it claimed the lease, so that a take
which comes late fails. So the generation follows the lease, which stays the one ownership point.

Before the pause, while the guest runs, the disks are flushed once (:class:`Approach`), and memory is sent meanwhile: a
disk that is too slow, or out of reach, is found out then, and costs no downtime; what is left to be flushed in the
pause is little. In the pause the guest flushes and lets go by itself, beside the last pages; the engine only waits for
the end of that (:meth:`SourceStorage.hand_over`).

A local disk is copied to the destination's storage server in the setup, before any memory; then what the guest writes
is copied again and again, and what is left of that at the pause crosses between flush and release.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, MigrationError
from bench.guest.client import GuestControl
from bench.migration.commands import Cancelled, Commands
from bench.migration.engine import Reporter
from bench.migration.policy import Limits
from bench.units import format_bytes

BESIDE_NS: Final = 15 * NS_PER_S  # what an order to the guest may take beside the time that the storage is given
TAKE_NS: Final = 25 * NS_PER_S
TIMEOUT_NS: Final = 10 * NS_PER_S
FIRST_LOOK_NS: Final = NS_PER_MS  # at a flush under way; then twice that, ... up to
LOOK_NS: Final = 20 * NS_PER_MS  # at a copy under way
TELL_NS: Final = 200 * NS_PER_MS
CONVERGE_NS: Final = NS_PER_S
CLOSE_BYTES: Final = 4 << 20  # of a local disk


def has_disks(guest: Mapping[str, Any]) -> bool:
    """:param guest: its ``configure`` dict."""
    storage = guest.get("storage")
    return isinstance(storage, dict) and bool(storage.get("disks"))


def timeout_of(guest: Mapping[str, Any]) -> int:
    """How long its storage may keep a pause waiting, in ns; 0 for a guest without disks."""
    return int(guest["storage"].get("timeout_ns", TIMEOUT_NS)) if has_disks(guest) else 0


def describe(guest: Mapping[str, Any], control: GuestControl) -> dict[str, Any]:
    """What HELLO tells of the disks: the guest's configuration of them, with the generations of now.

    :raises BenchError: when a storage server is out of reach: the migration fails before anything has changed.
    """
    if not has_disks(guest):
        return {}
    return {"storage": {**guest["storage"], "expect": control.disks("prepare")["generations"]}}


class SourceStorage:
    """The disks of a departing guest.

    :param destination: the hypervisor that it goes to, whose storage server has the name.
    :param stall_ns: a copy of which nothing arrives for so long has failed.
    """

    def __init__(
        self, guest: Mapping[str, Any], control: GuestControl, destination: str, report: Reporter, stall_ns: int
    ) -> None:
        self._there = has_disks(guest)
        self._timeout_ns = timeout_of(guest)
        self._stall_ns = stall_ns
        self._control = control
        self._report = report
        self._destination = destination
        self._local: list[str] = []
        self._place: object = None
        if self._there:
            self._local = [str(disk["name"]) for disk in guest["storage"]["disks"] if disk.get("kind") == "local"]
            self._place = guest["storage"]["servers"].get(destination)

    def begin(self, commands: Commands, limits: Limits) -> None:
        """Copy local disks, and return when the copies are close; the guest runs on meanwhile.

        :param commands: of the runner, served meanwhile: it may cancel.
        :param limits: ``max_time_ns`` and ``max_rounds`` bound what does not converge here as they do for memory, the
            rounds being those since the one that left least; then ``on_no_convergence`` says what happens.
        :raises MigrationError: when one cannot be copied.
        :raises Cancelled: they do not converge, and that was to cancel; or the runner did.
        """
        if not self._local:
            return
        self._report("mirror_begin", disks=self._local)
        self._control.disks("mirror", server=self._destination, place=self._place)
        told_ns = 0
        arrived, stalled, limit = -1, Deadline(self._stall_ns), Deadline(limits.max_time_ns)
        reason = ""
        while True:
            status = self._status()
            if all(item["close"] for item in status.values()):
                break
            if reason := no_convergence(status, limits.max_rounds, limit):
                if limits.on_no_convergence == "cancel":
                    raise Cancelled(reason)
                break
            before, arrived = arrived, sum(int(item["arrived_bytes"]) for item in status.values())
            if arrived != before:
                stalled = Deadline(self._stall_ns)
            elif stalled.expired:
                raise MigrationError(
                    f"the local disks cannot be copied: nothing has arrived at {self._destination} for "
                    f"{self._stall_ns / NS_PER_S:g} s"
                )
            if now_ns() - told_ns > TELL_NS:
                told_ns = now_ns()
                left = sum(int(item["dirty_bytes"]) for item in status.values())
                self._report.progress("mirror_progress", bytes_left=left)
            if select.select([commands.fileno()], [], [], LOOK_NS / NS_PER_S)[0]:
                commands.serve()
            commands.check()
        self._report("mirror_close", disks=status, reason=f"forced, {reason}" if reason else "close")

    def approach(self) -> Approach | None:
        """Begin what the disks need just before a pause. :returns: tells when it is over; None: nothing is needed."""
        if not self._there:
            return None
        copies = self._close if self._local else None
        return Approach(self._control, self._report, self._timeout_ns, copies)

    def _close(self) -> bool:
        """Whether little of the local disks is left to be copied."""
        return all(item["dirty_bytes"] <= CLOSE_BYTES for item in self._status().values())

    def _status(self) -> Mapping[str, Any]:
        status = self._control.disks("mirrors")
        problem = next((f"disk {disk}: {item['problem']}" for disk, item in status.items() if item.get("problem")), "")
        if problem:
            raise MigrationError(f"the local disks cannot be copied: {problem}")
        return status

    def hand_over(self) -> dict[str, int] | None:
        """Wait until the paused guest has let go. :returns: the generations to take the disks from; None without any.

        :raises MigrationError: when the storage is out of reach: the guest goes on here.
        """
        self._report("storage_begin")
        generations: dict[str, int] | None = None
        if self._there:
            try:
                answer = self._control.disks("release", Deadline(self._timeout_ns + BESIDE_NS))
            except BenchError as error:
                raise MigrationError(f"the disks could not be released: {error.message}") from error
            self._report("storage_flushed", int(answer["flushed_ns"]))
            if self._local:
                self._report("mirror_end", int(answer["mirrored_ns"]), disks=answer["mirrors"])
            self._report("storage_released", int(answer["released_ns"]))
            generations = {str(server): int(number) for server, number in answer["generations"].items()}
        self._report("storage_end")
        return generations


def no_convergence(status: Mapping[str, Any], max_rounds: int, limit: Deadline) -> str:
    """Why the copies of local disks are waited for no longer; empty while they are. Pure but for the clock."""
    remain = f"{format_bytes(sum(int(item['dirty_bytes']) for item in status.values()))} remain"
    if limit.expired:
        return f"no convergence of the local disks after {limit.duration_ns / NS_PER_S:g} s: {remain}"
    for disk, item in status.items():
        after = [int(ended["dirty_bytes_after"]) for ended in item.get("rounds", ())]
        since = len(after) - 1 - after.index(min(after)) if after and not item["close"] else 0
        if since >= max_rounds:
            least = format_bytes(min(after))
            return f"no convergence of disk {disk}: none of the last {since} rounds left less than {least}; {remain}"
    return ""


class Approach:
    """What the disks need before the pause, while the guest runs: copies that are close, then a flush.

    Pages are sent until it is over, so that whatever it takes costs no downtime.

    :param timeout_ns: for the flush; the copies have :data:`CONVERGE_NS`, after which they cross as they are.
    :param copies_close: whether little of the local disks is left to be copied; None: nothing is copied.
    """

    def __init__(
        self, control: GuestControl, report: Reporter, timeout_ns: int, copies_close: Callable[[], bool] | None
    ) -> None:
        self._control = control
        self._report = report
        self._timeout_ns = timeout_ns
        self._copies_close = copies_close
        self._limit = Deadline(CONVERGE_NS)
        self._begun_ns = 0
        self._told_ns = 0
        self._look_ns = FIRST_LOOK_NS
        self._over = False
        if copies_close is None:
            self._flush()

    def _flush(self) -> None:
        self._copies_close = None
        self._begun_ns = self._told_ns = now_ns()
        self._limit = Deadline(self._timeout_ns)
        self._control.disks("settle")

    @property
    def expired(self) -> bool:
        """Whether it is over; looks.

        :raises MigrationError: it takes longer than ``storage.timeout``, or fails: the guest goes on here.
        """
        if self._copies_close is not None:
            if self._limit.expired or self._copies_close():
                self._flush()
        elif not self._over:
            self._look()
        return self._over

    @property
    def next_look(self) -> Deadline:
        """For who has nothing to do meanwhile: a look each ms, then ever later."""
        deadline = Deadline(self._look_ns)
        self._look_ns = min(2 * self._look_ns, LOOK_NS)
        return deadline

    def _look(self) -> None:
        state = self._control.disks("settled")
        now = now_ns()
        if state["over"]:
            if state["problem"]:
                raise MigrationError(f"the disks cannot be flushed: {state['problem']}")
            self._over = True
            self._report("storage_settled", took_ns=now - self._begun_ns)
        elif self._limit.expired:
            raise MigrationError(
                f"the disks are not flushed within {self._timeout_ns / NS_PER_S:g} s, {state['pending']} requests "
                "are under way: the storage is slow or out of reach",
                "give it more time (storage.timeout)",
            )
        elif now - self._told_ns > TELL_NS:
            self._told_ns = now
            self._report.progress("storage_settling", requests=state["pending"], since_ns=now - self._begun_ns)


def acquire(report: Reporter, control: GuestControl, expect: object) -> None:
    """At the destination, before it takes the guest over: take the disks from the released generations.

    :param expect: ``storage`` of HANDOVER, None for a guest without disks.
    :raises MigrationError: when the storage refuses or is out of reach.
    """
    if expect is None:
        report("storage_acquired")
        return
    if not isinstance(expect, dict):
        raise MigrationError("HANDOVER: storage is no table of generations")
    try:
        answer = control.disks("take", Deadline(TAKE_NS), expect=expect)
    except BenchError as error:
        raise MigrationError(f"the disks could not be taken over: {error.message}") from error
    report("storage_acquired", int(answer["taken_ns"]), generations=answer["generations"])
