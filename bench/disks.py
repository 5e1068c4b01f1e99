"""The storage side of a testbed: a server on the storage host, one on each hypervisor that has local disks, and proof.

Everything made for a run lies below the run's directory and goes with it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.plan import Plan
from bench.plan_disks import disk_name
from bench.scenario import GuestSpec, Scenario
from bench.storage import images
from bench.storage.images import DiskSpec
from bench.storage.reader import read_disk
from bench.storage.server_client import StorageServer

LARGEST_PROVED_BYTES: Final = 2 << 30  # the reader makes a copy


class Storage:
    """All storage servers of a run. :meth:`stop` is idempotent.

    :param directory: the run directory.
    """

    def __init__(self, scenario: Scenario, plan: Plan, directory: Path) -> None:
        self._scenario = scenario
        self._plan = plan
        self._directory = directory
        self.servers: dict[str, StorageServer] = {}
        self._specs = self._place()
        self._last: dict[str, Any] = {}

    def _place(self) -> dict[str, list[DiskSpec]]:
        """Server -> its disks. A local disk has one at each hypervisor that its guest will see; all but the first of
        them are copies-to-be.
        """
        placed: dict[str, list[DiskSpec]] = {}
        for guest in self._scenario.guests:
            for number, disk in enumerate(guest.disks):
                name = disk_name(number)
                path = None if disk.image is None else Path(disk.image).resolve()
                made = DiskSpec(guest.name, name, disk.kind, disk.format, disk.size, path)
                if disk.kind != "local":
                    assert self._plan.storage is not None  # the plan has checked it
                    placed.setdefault(self._plan.storage, []).append(made)
                    continue
                home, *others = self._plan.stations(guest.name)
                placed.setdefault(home, []).append(made)
                size = disk.size if path is None else images.check_existing(path, disk.kind, disk.format)
                for host in others:
                    placed.setdefault(host, []).append(DiskSpec(guest.name, name, "local", disk.format, size))
        return placed

    def start(self, pids: Mapping[str, int]) -> None:
        """:param pids: host -> a process in its network namespace.

        :raises StorageError: what is wrong with which disk.
        """
        base = self._directory / "storage"
        if self._specs:
            base.mkdir(mode=0o700, exist_ok=True)
        for host, disks in self._specs.items():
            server = StorageServer(
                host,
                self._plan.addresses[host],
                self._scenario.storage.port,
                disks,
                directory=base / host,
                events=self._directory / "events" / f"storage.{host}.jsonl",
                log=self._directory / "logs" / f"storage.{host}.log",
                netns_pid=pids[host],
                rate_bytes_per_s=self._scenario.storage.rate,
            )
            self.servers[host] = server
            server.start()

    def check(self) -> None:
        """Start a server again that was killed, as a service manager would. :raises StorageError: it does not start."""
        for server in self.servers.values():
            server.check()

    def configuration(self, guest: GuestSpec) -> dict[str, Any] | None:
        """What the guest is told of its disks (:class:`bench.guest.disks.DisksConfig`); None for one without."""
        if not guest.disks:
            return None
        workload = guest.disk_workload
        return {
            "servers": {name: [server.address, server.port] for name, server in self.servers.items()},
            "disks": [
                {
                    "name": disk_name(number),
                    "kind": disk.kind,
                    "server": None if disk.kind == "local" else self._plan.storage,
                    "size_bytes": self._size(guest, number),
                }
                for number, disk in enumerate(guest.disks)
            ],
            "timeout_ns": self._scenario.storage.timeout,
            "log_bytes": guest.log_size if guest.durable else 0,
            "workload": None
            if workload is None
            else {
                "disk": workload.disk,
                "pattern": workload.pattern,
                "block_bytes": workload.block,
                "rate_bytes_per_s": workload.rate,
                "reads": workload.reads,
                "sync": workload.sync,
            },
        }

    def _size(self, guest: GuestSpec, number: int) -> int:
        name = f"{guest.name}/{disk_name(number)}"
        return next(server.sizes[name] for server in self.servers.values() if name in server.sizes)

    # the end

    def stop(self) -> None:
        """End all servers; the images are whole then."""
        for server in self.servers.values():
            with contextlib.suppress(BenchError):
                self._last[server.name] = dict(server.stats()["guests"])
            server.stop()

    def forget(self) -> None:
        """Remove what was made for the guests, with everything that was noted of it; the servers have ended."""
        shutil.rmtree(self._directory / "storage", ignore_errors=True)
        for path in self._directory.glob("events/storage.*.jsonl"):
            path.unlink(missing_ok=True)

    def prove(self, stats: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        """Read every disk made for the run, with nobody else's help, and compare it with what was acknowledged.

        Stops the servers.

        :param stats: guest -> its ``stats(quiet=True)``.
        :returns: what was found, and what is wrong with which disk.
        """
        self.stop()
        found: dict[str, Any] = {"servers": {name: {"guests": told} for name, told in self._last.items()}, "disks": {}}
        for name, server in self.servers.items():
            found["servers"][name]["restarts"] = server.restarts
        problems: list[str] = []
        for guest in self._scenario.guests:
            told = (stats.get(guest.name) or {}).get("disks") or {}
            for disk, expected in (told.get("disks") or {}).items():
                its = self._specs[expected["server"]]
                spec = next(item for item in its if (item.guest, item.name) == (guest.name, disk))
                label = f"{guest.name}/{disk}"
                if spec.path is not None or spec.size_bytes > LARGEST_PROVED_BYTES:
                    found["disks"][label] = {"read": False}
                    continue
                path = self._directory / "storage" / expected["server"] / f"{guest.name}.{disk}.{spec.format}"
                try:
                    findings = read_disk(path, spec.format, expected)
                except (BenchError, OSError) as error:
                    problems.append(f"disk {label}: it cannot be read: {error}")
                    continue
                found["disks"][label] = {
                    "read": True,
                    "kind": spec.kind,
                    "format": spec.format,
                    "records": findings.records,
                    "blocks": findings.blocks,
                    "generations": list(findings.generations),
                }
                problems += [f"disk {label}: {problem}" for problem in findings.problems[:5]]
                problems += [f"disk {label}: {problem}" for problem in _told(expected)]
        return found, problems


def _told(expected: Mapping[str, Any]) -> list[str]:
    """What the guest itself found wrong with a disk."""
    journal, workload = expected.get("journal") or {}, expected.get("workload") or {}
    problems = [str(journal["error"])] if journal.get("error") else []
    if journal.get("refused"):
        problems.append(f"the log was full, {journal['refused']} commands were refused (guest.log_size)")
    if workload.get("failed"):
        problems.append(f"{workload['failed']} requests of the guest failed")
    if workload.get("wrong_reads"):
        problems.append(f"the guest read {workload['wrong_reads']} blocks that were not what it had written")
    return problems
