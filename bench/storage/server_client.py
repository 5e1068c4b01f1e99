"""The runner's handle on a storage server: started in a host's namespace, and started again when it was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, DiskError, GuestError, StorageError
from bench.host.channel import Channel, Message
from bench.host.commands import Process, spawn_child
from bench.storage.images import DiskSpec

SERVE_NS: Final = 60 * NS_PER_S
STATS_NS: Final = 5 * NS_PER_S
STOP_NS: Final = 2 * NS_PER_S


class StorageServer:
    """One server. :meth:`stop` is idempotent.

    :param name: of the host that it serves on; *address* and *port* are its own.
    :param directory: for images made for the run, grants and sockets.
    :param netns_pid: a process in the host's network namespace; None for this one's own.
    :ivar sizes: ``GUEST/DISK`` -> its size in bytes.
    """

    def __init__(
        self,
        name: str,
        address: str,
        port: int,
        disks: Sequence[DiskSpec],
        *,
        directory: Path,
        events: Path,
        log: Path,
        netns_pid: int | None = None,
        rate_bytes_per_s: int = 0,
    ) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.sizes: dict[str, int] = {}
        self.restarts = 0
        self._disks = tuple(disks)
        self._directory = directory
        self._events = events
        self._log = log
        self._netns_pid = netns_pid
        self._rate = rate_bytes_per_s
        self.process: Process | None = None
        self._channel: Channel | None = None

    def start(self, *, mend: bool = False) -> None:
        """Nothing serves when it does not start.

        :param mend: again, after it was killed.
        :raises DiskError: what is wrong with which image or device, at the first start.
        :raises StorageError: anything else.
        """
        self.stop()
        self.process, self._channel = spawn_child(
            "bench.storage.server",
            peer=f"storage server {self.name}",
            extra_args=["--events", str(self._events), "--name", self.name],
            netns_pid=self._netns_pid,
            log=self._log,
        )
        args = {
            "address": self.address,
            "port": self.port,
            "directory": str(self._directory),
            "disks": [disk.to_json() for disk in self._disks],
            "rate_bytes_per_s": self._rate,
            "mend": mend,
        }
        try:
            value = self._channel.call("serve", args, deadline=Deadline(SERVE_NS))
        except GuestError as error:  # its words are the message
            self.stop()
            message = error.message.partition(": serve: ")[2] or error.message
            if mend:
                raise StorageError(message) from error
            raise DiskError(message, "see that the image or device is whole, and that nobody else uses it") from error
        except BenchError as error:
            died = self.process.last_lines()
            self.stop()
            raise StorageError(f"storage server {self.name} did not start: {error.message}: {died}") from error
        self.sizes = {str(name): int(size) for name, size in value["disks"].items()}
        self.port = int(value["port"])

    def check(self) -> bool:
        """Start it again if it was killed. :returns: whether it was. :raises StorageError: when it does not start."""
        if self.process is None or self.process.alive:
            return False
        self.restarts += 1
        self.start(mend=True)
        return True

    def stats(self) -> Mapping[str, Any]:
        """``{guests: {name: {holder, generation, refused_writes, ...}}, pids: {disk: pid of its qemu-nbd}}``."""
        if self._channel is None:
            raise StorageError(f"storage server {self.name} does not run")
        value: Message = self._channel.call("stats", deadline=Deadline(STATS_NS))
        return value

    def stop(self) -> None:
        """End it and its image servers."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.process is not None:
            with contextlib.suppress(BenchError):
                self.process.wait(Deadline(STOP_NS))
            self.process.stop(Deadline(STOP_NS))
            self.process = None
