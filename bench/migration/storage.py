"""Storage handover: control of the guest's disks passes from source to destination, and nobody has them twice.

The source lets go while the guest is paused (flush, release); the destination takes them just before it claims the
lease (:func:`acquire`). Its take is a compare-and-swap on the storage side, from the generation that the source
released: from that instant, which the storage side notes as ``storage_fenced``, no request of an older generation is
carried out. A source that gets the guest back raises the generation again, after it claimed the lease, so that a take
which comes late fails. So the generation follows the lease, which stays the one ownership point.

Before the pause, while the guest runs, the disks are flushed once (:meth:`SourceStorage.settle`): a disk that is too
slow, or out of reach, is found out then, and costs no downtime; what is left to be flushed in the pause is little.

A local disk is copied to the destination's storage server in the setup, before any memory; then what the guest writes
is copied again and again, and what is left of that at the pause crosses between flush and release.
"""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, MigrationError
from bench.guest.client import GuestControl
from bench.migration.commands import Commands
from bench.migration.engine import Reporter
from bench.migration.peer import Peer

BESIDE_NS: Final = 15 * NS_PER_S  # what an order to the guest may take beside the time that the storage is given
TAKE_NS: Final = 25 * NS_PER_S
TIMEOUT_NS: Final = 10 * NS_PER_S
FIRST_LOOK_NS: Final = NS_PER_MS  # at a flush under way; then twice that, ... up to
LOOK_NS: Final = 20 * NS_PER_MS  # at a copy under way
TELL_NS: Final = 200 * NS_PER_MS


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

    def begin(self, commands: Commands) -> None:
        """Copy local disks, and return when the copies are close; the guest runs on meanwhile.

        :param commands: of the runner, served meanwhile: it may cancel.
        :raises MigrationError: when one cannot be copied.
        """
        if not self._local:
            return
        self._report("mirror_begin", disks=self._local)
        self._control.disks("mirror", server=self._destination, place=self._place)
        told_ns = 0
        arrived, stalled = -1, Deadline(self._stall_ns)
        while True:
            status = self._status()
            if all(item["close"] for item in status.values()):
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
        self._report("mirror_close", disks=status)

    def converge(self, peer: Peer) -> None:
        """Just before the pause: wait, bounded by the copy's own speed, until little is left again."""
        if self._local:
            deadline = Deadline(NS_PER_S)
            while not all(item["dirty_bytes"] <= 4 << 20 for item in self._status().values()) and not deadline.expired:
                peer.connection.wait(0, Deadline(LOOK_NS), "the copies of the local disks")
                peer.check()

    def settle(self, peer: Peer) -> None:
        """Flush while the guest runs, just before the pause.

        :raises MigrationError: it takes longer than ``storage.timeout``, or fails: the guest goes on here.
        """
        if not self._there:
            return
        begin_ns, told_ns, look_ns = now_ns(), now_ns(), FIRST_LOOK_NS
        limit = Deadline(self._timeout_ns)
        self._control.disks("settle")
        while not (state := self._control.disks("settled"))["over"]:
            if limit.expired:
                raise MigrationError(
                    f"the disks are not flushed within {self._timeout_ns / NS_PER_S:g} s, {state['pending']} requests "
                    "are under way: the storage is slow or out of reach",
                    "give it more time (storage.timeout)",
                )
            if now_ns() - told_ns > TELL_NS:
                told_ns = now_ns()
                self._report.progress("storage_settling", requests=state["pending"], since_ns=told_ns - begin_ns)
            peer.connection.wait(0, Deadline(look_ns), "the flush of the disks")
            peer.check()
            look_ns = min(2 * look_ns, LOOK_NS)
        if state["problem"]:
            raise MigrationError(f"the disks cannot be flushed: {state['problem']}")
        self._report("storage_settled", took_ns=now_ns() - begin_ns)

    def _status(self) -> Mapping[str, Any]:
        status = self._control.disks("mirrors")
        problem = next((f"disk {disk}: {item['problem']}" for disk, item in status.items() if item.get("problem")), "")
        if problem:
            raise MigrationError(f"the local disks cannot be copied: {problem}")
        return status

    def hand_over(self) -> dict[str, int] | None:
        """While the guest is paused: flush, let go. :returns: the generations to take the disks from; None without any.

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
