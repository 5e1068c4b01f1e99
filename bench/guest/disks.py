"""The guest's disks with all that uses them: the durable store's log, the workload, and what happens when it moves.

In which order (the lease stays the one ownership point, :mod:`bench.migration.source`)::

    boot       block layer | take (raise the generation) | open the log | run
    pause      stop the workload | everything under way is done, the log on its disk
    let go     flush | release                              from here the storage side serves nobody
    release    wait for that
    take-over  take: from the generation that was released  at the destination, just before the lease is claimed
    roll-back  retake: raise it again                       after the lease was claimed back, in the background

A request that is under way at the pause is completed before the pause is over, or the pause fails and the guest runs
on: what the storage takes from the pause to the release is limited, by :attr:`DisksConfig.timeout_ns`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import DeadlineError, GuestError
from bench.guest.disk import CALL_NS, Disk, DiskDriver
from bench.guest.disk_latency import LatencyLog
from bench.guest.disk_workload import DiskWorkload, DiskWorkloadConfig
from bench.guest.loop import Loop
from bench.guest.store_log import StoreLog

TIMEOUT_NS: Final = 10 * NS_PER_S
TIMEOUT_KEY: Final = "storage.timeout of the scenario"
ORDER_NS: Final = 2 * NS_PER_S  # for orders to the storage servers, however little time is left
MAX_DISKS: Final = 8

Record = Callable[..., object]
"""Called with an event's name, its time and its data."""


@dataclass(frozen=True, slots=True)
class DisksConfig:
    """What ``configure`` says of the guest's disks, under ``storage``.

    :param servers: storage server -> address and port.
    :param log_bytes: of the durable store's log at the start of the first disk; 0: the store is not durable.
    :param timeout_ns: how long a pause may wait for the storage, all in all.
    :param expect: at a destination: the generation each server has now, so that the block layer can connect early.
    """

    servers: Mapping[str, tuple[str, int]]
    disks: tuple[Disk, ...]
    log_bytes: int
    workload: DiskWorkloadConfig | None
    expect: Mapping[str, int]
    timeout_ns: int = TIMEOUT_NS

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None, host: str) -> DisksConfig | None:
        """:param host: this hypervisor, whose own server has the local disks.

        :raises ValueError, KeyError, TypeError: for what is missing or wrong.
        """
        if not raw or not raw.get("disks"):
            return None
        disks = tuple(
            Disk(at, str(disk["name"]), str(disk["kind"]), str(disk.get("server") or host), int(disk["size_bytes"]))
            for at, disk in enumerate(raw["disks"])
        )
        servers = {str(name): (str(place[0]), int(place[1])) for name, place in raw["servers"].items()}
        if len(disks) > MAX_DISKS or not all(disk.server in servers for disk in disks):
            raise ValueError(f"at most {MAX_DISKS} disks, each on one of the servers {', '.join(servers)}")
        workload = raw.get("workload")
        return cls(
            servers,
            disks,
            int(raw.get("log_bytes", 0)),
            None if workload is None else DiskWorkloadConfig.from_json(workload),
            {str(name): int(generation) for name, generation in (raw.get("expect") or {}).items()},
            int(raw.get("timeout_ns", TIMEOUT_NS)),
        )


class NoDisks:
    """Of a guest without any."""

    journal: StoreLog | None = None

    def boot(self) -> list[bytes]:
        return []

    def run(self) -> None:
        pass

    def quiesce(self) -> None:
        pass

    def let_go(self) -> None:
        pass

    def go_on(self) -> None:
        pass

    def export(self) -> dict[str, Any] | None:
        return None

    def load(self, state: Mapping[str, Any] | None) -> None:
        pass

    def stats(self, *, quiet: bool) -> dict[str, Any] | None:
        del quiet
        return None

    def stop(self) -> None:
        pass


class GuestDisks(NoDisks):
    """Make it in the hypervisor's network namespace, where the block layer stays.

    :param owner: the guest's name and the hypervisor's.
    :param record: notes an event of a guest.
    :raises BenchError: when the block layer does not start.
    """

    def __init__(
        self, loop: Loop, owner: tuple[str, str], config: DisksConfig, died: Callable[[str], None], record: Record
    ) -> None:
        self.config = config
        self._record = record
        self._driver = DiskDriver(loop, died)
        self._released = False
        self._letting_go: int | None = None
        self._limit = Deadline(config.timeout_ns)  # of the pause under way
        self._generations: dict[str, int] = {}
        self.journal: StoreLog | None = None
        self.workload: DiskWorkload | None = None
        try:
            self._driver.start(*owner, config.servers, config.disks)
            if config.log_bytes:
                self.journal = StoreLog(self._driver, config.disks[0], config.log_bytes)
            if config.workload is not None:
                number = config.workload.disk
                first = config.log_bytes if number == 0 else 0
                disk = config.disks[number]
                log = LatencyLog(disk.name, record)
                self.workload = DiskWorkload(self._driver, loop, disk, config.workload, first, log)
            known = {server: number + 1 for server, number in config.expect.items()}
            if known and all(disk.server in known for disk in config.disks):
                self._driver.command("open", {"generations": known})
        except BaseException:
            self._driver.stop()
            raise

    @property
    def local(self) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.config.disks if disk.local)

    def generations(self) -> dict[str, int]:
        """Server -> the generation in which this guest has its disks there."""
        return dict(self._generations)

    def current(self) -> dict[str, int]:
        """As :meth:`generations`, asked of the storage servers; those of copies too.

        :raises BenchError: when one is out of reach.
        """
        value = self._driver.command("status")
        now = {str(server): int(grant["generation"]) for server, grant in value["servers"].items()}
        return {**now, **{str(server): int(number) for server, number in value["mirrors"].items()}}

    # boot

    def boot(self) -> list[bytes]:
        """Take the disks and open the log. :returns: the commands that the log holds. :raises BenchError: refused."""
        self.take(None)
        sizes = self._driver.command("wait")["sizes"]
        for disk in self.config.disks:
            if int(sizes[disk.name]) < disk.size_bytes:
                raise GuestError(f"disk {disk.name} has {sizes[disk.name]} bytes, not {disk.size_bytes}")
        return [] if self.journal is None else self.journal.open()

    def take(self, expect: Mapping[str, int] | None) -> dict[str, int]:
        """Raise the generation.

        :param expect: what it must be now; None: whatever it is.
        :raises BenchError: refused, or out of reach.
        """
        told = {"expect": None if expect is None else dict(expect), "timeout_ns": self.config.timeout_ns}
        value = self._driver.command("take", told, Deadline(self.config.timeout_ns + CALL_NS))
        self._generations = {str(server): int(number) for server, number in value["generations"].items()}
        self._released = False
        self._mark()
        return self.generations()

    def _mark(self) -> None:
        if self.journal is not None:
            self.journal.generation = self._generations[self.config.disks[0].server]
        if self.workload is not None:
            self.workload.generation = self._generations[self.config.disks[self.workload_disk].server]

    @property
    def workload_disk(self) -> int:
        return 0 if self.config.workload is None else self.config.workload.disk

    def run(self) -> None:
        """The guest runs (again)."""
        if self.journal is not None:
            self.journal.mark_generation()
        if self.workload is not None:
            self.workload.run()

    # moving away

    def quiesce(self) -> None:
        """Nothing is under way any more.

        :raises DeadlineError: when the storage does not answer in time; :meth:`go_on` follows.
        """
        self._limit = Deadline(self.config.timeout_ns)
        if self.workload is not None:
            self.workload.stop()
        under_way = self._driver.under_way
        try:
            self._driver.drain(self._limit)
        except DeadlineError as error:
            raise DeadlineError(f"{error.message} ({TIMEOUT_KEY})") from error
        self._record("disks_drained", now_ns(), requests=under_way)

    def let_go(self) -> None:
        """While paused: begin to flush, to finish the copies and to let go, beside what else the pause has to do.

        :meth:`release` tells what became of it; :meth:`go_on` calls it off.
        """
        self._released = True  # from now on: who knows what arrived
        self._letting_go = self._driver.begin("let_go", self._left())

    def _left(self) -> dict[str, int]:
        """For a command of the block layer."""
        return {"timeout_ns": max(ORDER_NS, self._limit.remaining_ns)}

    def release(self) -> dict[str, Any]:
        """Wait until all that :meth:`let_go` began is done. :returns: generations and times.

        :raises BenchError: failed, or out of reach.
        """
        begun, self._letting_go = self._letting_go, None
        if begun is None:
            raise GuestError("the disks are not about to be released")
        value = dict(self._driver.wait(begun, Deadline(self.config.timeout_ns + CALL_NS)))
        self._record("disks_flushed", int(value["flushed_ns"]))
        self._record("disks_released", int(value["released_ns"]))
        return value

    def go_on(self) -> None:
        """At the source, as if nothing had happened; requests wait until the disks are here again."""
        if self._letting_go is not None:
            self._driver.forget(self._letting_go)
            self._letting_go = None
        self._driver.post("unmirror")  # not waited for: the block layer may be waiting for a server itself
        if self._released:
            self._driver.post("retake")
            self._released = False
        self.run()

    # while it runs

    def settle(self) -> None:
        """Begin to flush, so that a pause that follows finds little to be flushed."""
        self._driver.command("settle")

    def settled(self) -> dict[str, Any]:
        """What became of it: ``{over, problem, pending}``, the last one the requests under way."""
        return dict(self._driver.command("settled"))

    # local disks

    def mirror(self, server: str, place: Sequence[Any]) -> None:
        """Begin to copy every local disk to that server. :raises BenchError: refused or out of reach."""
        for disk in self.local:
            self._driver.command("mirror", {"disk": disk.name, "server": server, "place": list(place)})

    def mirrors(self) -> dict[str, Any]:
        """Disk -> how far its copy is (:meth:`bench.storage.mirror.Mirror.status`)."""
        return dict(self._driver.command("mirrors"))

    def end_mirrors(self) -> None:
        self._driver.command("unmirror")

    # moving in

    def export(self) -> dict[str, Any]:
        """Of quiet disks."""
        return {
            "journal": None if self.journal is None else self.journal.export(),
            "workload": None if self.workload is None else self.workload.export(),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """:raises GuestError: when *state* is not of these disks."""
        state = state or {}
        try:
            if self.journal is not None:
                self.journal.load(state["journal"])
            if self.workload is not None:
                self.workload.load(state["workload"])
        except (KeyError, TypeError, ValueError) as error:
            raise GuestError(f"device state: of the disks: {error!r}") from error

    # the end

    def stats(self, *, quiet: bool) -> dict[str, Any]:
        """What was acknowledged, for an independent reader.

        :param quiet: stop the workload for good and wait until everything is on the disk.
        """
        if quiet:
            self.quiesce()
            self._driver.command("flush", self._left())
        disks: dict[str, dict[str, Any]] = {disk.name: {"server": disk.server} for disk in self.config.disks}
        if self.journal is not None:
            disks[self.config.disks[0].name]["journal"] = {
                "sequence": self.journal.durable,
                "error": self.journal.error,
                "refused": self.journal.refused,
            }
        if self.workload is not None:
            disks[self.config.disks[self.workload_disk].name]["workload"] = self.workload.stats()
        return {"disks": disks, "generations": self.generations(), "block_layer": self._driver.command("stats")}

    def stop(self) -> None:
        """Idempotent."""
        if self.workload is not None:
            self.workload.stop()
        self._driver.stop()
