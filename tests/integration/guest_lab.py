"""A small emulated network for guest tests: two hypervisors with bridges, a client, a switch between them.

All of it is in anonymous network namespaces, each kept by a process that ends with the test: nothing can leak.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from forking import forking

from bench.clock import NS_PER_S, Deadline
from bench.guest.client import GuestControl, guest_command
from bench.host.kernel import CLONE_NEWNET, reserve_ports, set_interface_up, set_sysctls, unshare

REPOSITORY = Path(__file__).resolve().parents[2]
GUEST_IP = "10.0.1.1"
GUEST_MAC = "02:00:00:00:01:01"
CLIENT_IP = "10.0.0.101"
MEMORY_BYTES = 16 << 20
MIGRATION_PORT = 49152
FLOWS = Path(__file__).with_name("guest_flows.py")


class Namespace:
    """An anonymous network namespace, held by a process of its own that ends with this one at the latest."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        ours, self._end_of_life = os.pipe()
        said, says = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _hold_namespace(ours, says)
        os.close(ours)
        os.close(says)
        stack.callback(self._end)
        try:
            assert os.read(said, 1) == b"!", "no network namespace"
        finally:
            os.close(said)

    def _end(self) -> None:
        os.close(self._end_of_life)
        os.waitpid(self.pid, 0)

    def enter(self, *argv: str) -> list[str]:
        return ["nsenter", "--net", f"--target={self.pid}", "--", *argv]

    def ip(self, *argv: str) -> str:
        command = self.enter("ip", *argv)
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def _hold_namespace(until: int, says: int) -> NoReturn:
    """In the holding process."""
    try:
        low, high = sorted((until, says))
        for begin, end in ((3, low), (low + 1, high), (high + 1, 1 << 16)):
            os.closerange(begin, end)
        unshare(CLONE_NEWNET)
        set_sysctls({"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})
        reserve_ports(MIGRATION_PORT, 1)
        set_interface_up("lo")
        os.write(says, b"!")
        os.read(until, 1)
    finally:
        os._exit(0)


@dataclass
class Guest:
    """A guest process and a control connection to it."""

    host: str
    process: subprocess.Popen[bytes]
    control: GuestControl
    socket: Path
    events: Path
    log: Path

    def connect(self) -> GuestControl:
        return GuestControl.connect(self.socket)

    def wait(self) -> int:
        return self.process.wait(20)

    def event_names(self) -> list[str]:
        return [json.loads(line)["name"] for line in self.events.read_text().splitlines()]


@dataclass
class Lab:
    directory: Path
    stack: contextlib.ExitStack
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    count: int = 0

    @property
    def lease(self) -> Path:
        return self.directory / "lease"

    def spawn(self, host: str) -> Guest:
        self.count += 1
        base = self.directory / f"{host}.{self.count}"
        socket_path, events, log = (base.with_suffix(f".{end}") for end in ("sock", "jsonl", "log"))
        process = subprocess.Popen(
            self.namespaces[host].enter(*guest_command(socket_path, events, log)), cwd=REPOSITORY
        )
        self.stack.callback(_end_process, process)
        control = GuestControl.connect(socket_path, alive=lambda: process.poll() is None)
        self.stack.callback(control.close)
        return Guest(host, process, control, socket_path, events, log)

    def config(self, host: str, skeleton: bool, **changes: Any) -> dict[str, Any]:
        workload = {
            "pattern": "hotset",
            "rate_bytes_per_s": 8 << 20,
            "working_set_bytes": 1 << 20,
            "hot_share": 0.9,
            "write_bytes": 64,
            "seed": 1,
        }
        config: dict[str, Any] = {
            "name": "g",
            "host": host,
            "memory_bytes": MEMORY_BYTES,
            "vcpus": 1,
            "store_bytes": 4 << 20,
            "content": {"zero": 0.3, "text": 0.4, "random": 0.3},
            "image": None,
            "seed": 1,
            "mac": GUEST_MAC,
            "address": f"{GUEST_IP}/16",
            "bridge": "br0",
            "workload": workload,
            "skeleton": skeleton,
            "lease": {"path": str(self.lease), "me": host},
        }
        return {**config, **changes}

    def boot(self, host: str) -> Guest:
        guest = self.spawn(host)
        guest.control.configure(self.config(host, False))
        guest.control.start(ANNOUNCE)
        return guest

    def skeleton(self, host: str) -> Guest:
        guest = self.spawn(host)
        guest.control.configure(self.config(host, True))
        return guest

    def flows(self, duration_s: float, chosen: str = "") -> subprocess.Popen[str]:
        command = self.namespaces["c"].enter(
            sys.executable, str(FLOWS), GUEST_IP, str(duration_s), *filter(None, [chosen])
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.stack.callback(_end_process, process)
        return process


def frame(kind: str) -> dict[str, str]:
    mac = GUEST_MAC.replace(":", "")
    ip = bytes(int(part) for part in GUEST_IP.split(".")).hex()
    if kind == "rarp":  # as QEMU's: 60 bytes
        body = "ff" * 6 + mac + "8035" + "0001080006040003" + mac + "00" * 4 + mac + "00" * 4
    else:
        body = "ff" * 6 + mac + "0806" + "0001080006040001" + mac + ip + "00" * 6 + ip
    return {"kind": kind, "hex": body.ljust(120, "0")}


ANNOUNCE = {"frames": [frame("rarp"), frame("garp")], "offsets_ns": [0, 20_000_000, 60_000_000]}


def copy_memory(source: Guest, destination: Guest) -> None:
    """All pages, as an engine would have left them at the pause."""
    memories = [source.control.memory(), destination.control.memory()]
    try:
        there, here = (memory.fd for memory in memories)
        for offset in range(0, memories[0].size_bytes, 1 << 20):
            data = os.pread(there, 1 << 20, offset)
            assert os.pwrite(here, data, offset) == len(data)
    finally:
        for memory in memories:
            os.close(memory.fd)


def migrate(source: Guest, destination: Guest) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Stop and copy. :returns: the times of both sides in ns."""
    source.control.close_door()
    paused = source.control.pause()
    try:
        copy_memory(source, destination)
        assert destination.control.load(paused.fd) == paused.connections
    finally:
        os.close(paused.fd)
    taken = destination.control.take(ANNOUNCE, paused.owner, paused.generation)
    assert taken.taken
    source.control.quit(Deadline(10 * NS_PER_S))
    assert source.wait() == 0
    return paused.times, {
        "resumed_ns": taken.resumed_ns,
        "port_wired_ns": taken.port_wired_ns,
        "announce_ns": taken.announce_ns,
        "ownership_ns": taken.ownership_ns,
    }


@contextlib.contextmanager
def lab(directory: Path) -> Iterator[Lab]:
    """Guests and engines are forks of this process within (see ``tests/fakes/forking.py``)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(forking())
        made = Lab(directory, stack)
        for name in ("s", "h1", "h2", "c"):
            made.namespaces[name] = Namespace(stack)
        switch = made.namespaces["s"]
        switch.ip("link", "add", "sw", "type", "bridge")
        switch.ip("link", "set", "sw", "up")
        for name in ("h1", "h2", "c"):
            there = made.namespaces[name]
            pair = ["link", "add", f"s-{name}", "type", "veth", "peer", "name", f"{name}-eth0"]
            switch.ip(*pair, "netns", str(there.pid))
            switch.ip("link", "set", f"s-{name}", "master", "sw", "up")
            there.ip("link", "set", f"{name}-eth0", "up")
        for number, name in enumerate(("h1", "h2"), 1):
            there = made.namespaces[name]
            there.ip("link", "add", "br0", "type", "bridge")
            there.ip("link", "set", f"{name}-eth0", "master", "br0")
            there.ip("link", "set", "br0", "up")
            there.ip("address", "add", f"10.0.0.{number}/16", "dev", "br0")
        made.namespaces["c"].ip("address", "add", f"{CLIENT_IP}/16", "dev", "c-eth0")
        yield made


def _end_process(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()
