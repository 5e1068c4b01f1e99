"""A mover whose guest has a disk, a writer that remembers what was acknowledged, and proof by an independent reader."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guest_lab import GUEST_IP, Namespace, lab
from guest_mover import MIB, Mover, settle_bridges

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import DeadlineError
from bench.storage.images import DiskSpec
from bench.storage.reader import read_disk
from bench.storage.server_client import StorageServer

STORAGE_IP = "10.0.0.50"
SIZE = 32 * MIB
LOG_BYTES = 8 * MIB
WRITER = Path(__file__).with_name("redis_clients.py")
ADDRESSES = {"st1": STORAGE_IP, "h1": "10.0.0.1", "h2": "10.0.0.2"}
DISK_WORKLOAD = {
    "disk": 0,
    "pattern": "random",
    "block_bytes": 65536,
    "rate_bytes_per_s": 4 * MIB,
    "reads": 0.3,
    "sync": False,
}


class DiskMover(Mover):
    """Its guest has one disk, with a durable store's log and a workload on it."""

    def serve(self, kind: str, form: str, rate_bytes_per_s: int = 0) -> None:
        """Start the storage servers that a guest with such a disk needs."""
        self.kind, self.form = kind, form
        self.servers = {}
        for name in ("h1", "h2") if kind == "local" else ("st1",):
            self.servers[name] = StorageServer(
                name,
                ADDRESSES[name],
                10809,
                [DiskSpec("g", "vda", kind, form, SIZE)],
                directory=self.lab.directory / "images" / name,
                events=self.lab.directory / f"storage.{name}.jsonl",
                log=self.lab.directory / f"storage.{name}.log",
                netns_pid=self.lab.namespaces[name].pid,
                rate_bytes_per_s=rate_bytes_per_s,
            )
            self.lab.stack.callback(self.servers[name].stop)
            self.servers[name].start()

    def boot_with_disk(
        self, kind="shared", form="raw", *, workload=DISK_WORKLOAD, rate=0, log=True, timeout_s=10, think_s=0.001
    ) -> None:
        """:param rate: of the storage server in bytes/s; *log*: with a durable store and somebody who writes to it.

        :param timeout_s: how long a handover may wait for the disk: this machine's own may be busy.
        :param think_s: how long that somebody waits after each write.
        """
        self.serve(kind, form, rate)
        storage = {
            "servers": {name: [ADDRESSES[name], server.port] for name, server in self.servers.items()},
            "disks": [{"name": "vda", "kind": kind, "server": None if kind == "local" else "st1", "size_bytes": SIZE}],
            "timeout_ns": timeout_s * NS_PER_S,
            "log_bytes": LOG_BYTES if log else 0,
            "workload": workload,
        }
        self.boot(storage=storage)
        if not log:
            return
        self.writer = subprocess.Popen(
            self.lab.namespaces["c"].enter(sys.executable, str(WRITER), "journal", GUEST_IP, str(think_s)),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lab.stack.callback(self._end_writer)
        # Its ARP request must not wait for a guest that is paused now and then: after three it gives up.
        assert self.writer.stdout.readline() == "connected\n"

    def _end_writer(self) -> None:
        if self.writer.poll() is None:
            self.writer.kill()
        self.writer.communicate()

    def cut_storage(self, state: str) -> None:
        self.lab.namespaces["st1"].ip("link", "set", "st1-eth0", state)

    def server_of(self, host: str) -> StorageServer:
        """The one that a guest at this host has its disk from."""
        return self.servers[host if self.kind == "local" else "st1"]

    def is_released(self) -> bool:
        """The guest has let go of its disk where it is."""
        return self.server_of(self.plan.source_host).stats()["guests"]["g"]["released"]

    def cut_way(self, state: str) -> None:
        """To the storage; of a local disk, that between the hosts."""
        if self.kind == "local":
            self.link("h2", state)
        else:
            self.cut_storage(state)

    def require_disk(self) -> None:
        """It is served where the guest is, and what is read from it is right."""

        def workload() -> dict:
            return self.control.stats()["disks"]["disks"]["vda"]["workload"]

        writes = workload()["writes"] + 32  # more than are ever under way
        try:
            wait_until(lambda: workload()["writes"] >= writes, Deadline(20 * NS_PER_S), "the disk is written to")
        except DeadlineError as error:
            servers = {name: server.stats() for name, server in self.servers.items()}
            raise AssertionError(f"{error}: the guest: {self.control.stats()['disks']}; servers: {servers}") from error
        assert workload()["wrong_reads"] == workload()["failed"] == 0

    def proved(self) -> dict:
        """Everything that was acknowledged is on the disk, once, in order, and nothing of an older generation.

        :returns: what the reader found.
        """
        self.writer.send_signal(signal.SIGTERM)
        acknowledged = json.loads(self.writer.communicate(timeout=60)[0])
        assert acknowledged["error"] == ""
        stats = self.control.stats(Deadline(30 * NS_PER_S), quiet=True)["disks"]
        expected = stats["disks"]["vda"]
        for server in self.servers.values():
            server.stop()
        path = self.lab.directory / "images" / expected["server"] / f"g.vda.{self.form}"
        found = read_disk(path, self.form, expected)
        assert found.problems == [], found.problems
        assert expected["workload"]["wrong_reads"] == expected["workload"]["failed"] == 0
        numbers = [_number(payload) for payload in found.payloads if payload.startswith(b"*3\r\n$3\r\nSET")]
        assert numbers == list(range(1, len(numbers) + 1))  # once each, in order
        assert len(numbers) >= acknowledged["count"] > 0
        return {"found": found, "expected": expected, "acknowledged": acknowledged["count"]}


def _number(payload: bytes) -> int:
    """Of the writer's ``SET journal NUMBER``."""
    return int(payload.split(b"\r\n")[6])


@contextlib.contextmanager
def moving_disks() -> Iterator[DiskMover]:
    """A lab with a storage host."""
    directory = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    try:
        with lab(directory) as made:
            settle_bridges(made)
            storage = made.namespaces["st1"] = Namespace(made.stack)
            switch = made.namespaces["s"]
            pair = ["link", "add", "s-st1", "type", "veth", "peer", "name", "st1-eth0", "netns", str(storage.pid)]
            switch.ip(*pair)
            switch.ip("link", "set", "s-st1", "master", "sw", "up")
            storage.ip("link", "set", "st1-eth0", "up")
            storage.ip("address", "add", f"{STORAGE_IP}/16", "dev", "st1-eth0")
            yield DiskMover(made)
    finally:
        shutil.rmtree(directory)


def wait_restarted(server: StorageServer) -> None:
    """As the testbed does: look, and start it again."""
    wait_until(server.check, Deadline(20 * NS_PER_S), "the storage server was started again")
