"""Disks over a link of 1 Gbit/s: our block layer and fence against nbdcopy to a bare qemu-nbd on the same link, the
handover of control, and the copy of a local disk against its lower bound.

Images lie in memory (/dev/shm), so that the disk of this machine is not what is measured. As root.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.guest.disk import Disk, DiskDriver
from bench.guest.loop import Loop
from bench.host.commands import in_netns, run, spawn
from bench.host.kernel import entered_netns
from bench.host.sandbox import call_in_sandbox
from bench.link.links import End, LinkFactory
from bench.scenario import LinkSpec
from bench.storage.images import DiskSpec
from bench.storage.server_client import StorageServer

MIB = 1 << 20
SIZE = 256 * MIB
COPY = 1024 * MIB  # of the disk that is mirrored
ROUNDS = 3
HANDOVERS = 40
RATE_BPS = 10**9
PAYLOAD = 1448 / 1514  # of a full frame with TCP's timestamps, as htb counts it
SERVER = "10.78.0.2"


def namespace(stack: ExitStack, log: Path) -> int:
    """A process that holds a network namespace."""
    holder = spawn(["unshare", "--net", "sleep", "infinity"], log=log)
    stack.callback(holder.stop)
    here = Path("/proc/self/ns/net").stat().st_ino
    wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").stat().st_ino != here, Deadline(5 * NS_PER_S), "a namespace")
    return holder.pid


def driver(
    stack: ExitStack, pid: int, holder: str, place: tuple[str, int], kind: str = "shared", size: int = SIZE
) -> DiskDriver:
    """A block layer in the hypervisor's namespace."""
    made = DiskDriver(Loop(), lambda why: print(why, file=sys.stderr))
    stack.callback(made.stop)
    with entered_netns(pid):
        made.start("g1", holder, {"st1": place}, [Disk(0, "vda", kind, "st1", size)])
    return made


def write_all(disk: DiskDriver, data: bytes, size: int = SIZE) -> float:
    """Seconds to write and flush all of the disk, 8 MiB at a time under way."""
    begin = time.monotonic()
    for offset in range(0, size, MIB):
        disk.drain(Deadline(60 * NS_PER_S), most=7)
        slot = disk.slot()
        assert slot is not None
        disk.data(slot)[:] = data
        disk.write(0, slot, offset, MIB, lambda _error, slot=slot: disk.give_back(slot))
    disk.drain(Deadline(60 * NS_PER_S))
    disk.command("flush")
    return time.monotonic() - begin


def measure() -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        here, there = (namespace(stack, directory / f"{name}.log") for name in "ab")
        spec = LinkSpec.model_validate({"bandwidth": "1Gbit"})
        factory = LinkFactory(lambda _first, _second: spec, log=directory / "line.log")
        stack.callback(factory.stop)
        ends = [End(end, f"{end}-eth0", pid) for end, pid in zip("ab", (here, there), strict=True)]
        factory.create(*ends)
        for number, end in enumerate(ends, 1):
            for argv in (
                ["ip", "address", "add", f"10.78.0.{number}/24", "dev", end.interface],
                ["ip", "link", "set", end.interface, "up"],
                ["ip", "link", "set", "lo", "up"],
            ):
                run(argv, deadline=Deadline(5 * NS_PER_S), netns_pid=end.pid)
        factory.apply_all()
        server = StorageServer(
            "st1",
            SERVER,
            10809,
            [DiskSpec("g1", "vda", "shared", "raw", SIZE)],
            directory=directory / "images",
            events=directory / "storage.jsonl",
            log=directory / "storage.log",
            netns_pid=there,
        )
        stack.callback(server.stop)
        server.start()
        rows.append(throughput(stack, directory, here, there))
        rows.append(handover(stack, here))
        server.stop()
        rows.append(mirror(stack, directory, here, there))
    return rows


def throughput(stack: ExitStack, directory: Path, here: int, there: int) -> dict[str, Any]:
    """Sequential writes by the block layer, and the same bytes by nbdcopy to a bare qemu-nbd, in turn."""
    block = os.urandom(MIB)
    (directory / "data").write_bytes(block * (SIZE // MIB))
    with (directory / "bare").open("wb") as file:
        file.truncate(SIZE)
    bare = ["qemu-nbd", "--persistent", "--format=raw", f"--bind={SERVER}", "--port=10900", str(directory / "bare")]
    process = spawn(bare, netns_pid=there, log=directory / "bare.log")
    stack.callback(process.stop)
    disk = driver(stack, here, "h1", (SERVER, 10809))
    disk.command("take")
    disk.command("wait")
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(write_all(disk, block))
        begin = time.monotonic()
        copy = ["nbdcopy", "--flush", str(directory / "data"), f"nbd://{SERVER}:10900"]
        subprocess.run(in_netns(copy, here), check=True)
        theirs.append(time.monotonic() - begin)
    disk.stop()
    value, reference = (SIZE * 8 / statistics.median(times) / 1e6 for times in (ours, theirs))
    return row("sequential writes of the guest", value, "Mbit/s", reference, "ratio >= 0.9")


def handover(stack: ExitStack, here: int) -> dict[str, Any]:
    """From the release to the first write of the next holder, against three round trips and 5 ms."""
    ping = ["ping", "-c", "20", "-i", "0.02", "-q", SERVER]
    said = run(ping, deadline=Deadline(10 * NS_PER_S), netns_pid=here).stdout
    round_trip_ms = float(said.rpartition("=")[2].split("/")[1])
    pair = [driver(stack, here, name, (SERVER, 10809)) for name in ("h1", "h2")]
    generation = pair[0].command("take")["generations"]["st1"]
    times = []
    for number in range(HANDOVERS):
        source, destination = pair[number % 2], pair[(number + 1) % 2]
        destination.command("open", {"generations": {"st1": generation + 1}})
        destination.command("wait")
        source.command("flush")
        begin = time.monotonic()
        source.command("release")
        generation = destination.command("take", {"expect": {"st1": generation}})["generations"]["st1"]
        slot = destination.slot()
        assert slot is not None
        destination.write(0, slot, 0, 4096, lambda _error: None)
        destination.drain(Deadline(10 * NS_PER_S))
        times.append((time.monotonic() - begin) * 1000)
        destination.give_back(slot)
    return row("release to first write", statistics.median(times), "ms", 3 * round_trip_ms + 5, "ratio <= 1")


def mirror(stack: ExitStack, directory: Path, here: int, there: int) -> dict[str, Any]:
    """A local disk of 1 GiB of random bytes to the other host, against its bytes at the link's rate."""
    servers = {}
    for name, pid, address in (("h1", here, "10.78.0.1"), ("h2", there, SERVER)):
        servers[name] = StorageServer(
            name,
            address,
            10810,
            [DiskSpec("g1", "vda", "local", "raw", COPY)],
            directory=directory / name,
            events=directory / f"{name}.jsonl",
            log=directory / f"{name}.log",
            netns_pid=pid,
        )
        stack.callback(servers[name].stop)
        servers[name].start()
    disk = driver(stack, here, "h1", ("10.78.0.1", 10810), "local", COPY)
    disk.command("take")
    disk.command("wait")
    write_all(disk, os.urandom(MIB), COPY)
    begin = time.monotonic()
    disk.command("mirror", {"disk": "vda", "server": "h2", "place": [SERVER, 10810]})
    while not disk.command("mirrors")["vda"]["close"]:
        time.sleep(0.005)  # nothing tells
    disk.command("finish", deadline=Deadline(60 * NS_PER_S))
    spent = time.monotonic() - begin
    return row("copy of a local disk", spent, "s", COPY * 8 / (RATE_BPS * PAYLOAD), "ratio <= 1.05")


def row(name: str, value: float, unit: str, reference: float, goal: str) -> dict[str, Any]:
    """One line of the table."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": value / reference,
        "goal": goal,
    }


if __name__ == "__main__":
    for line in call_in_sandbox(measure):
        print(json.dumps(line))
    sys.exit(0)
