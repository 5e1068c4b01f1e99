"""A QEMU that runs nothing: a paused machine (``-S``) whose memory is a memfd of ours, commanded by QMP.

What a peer of the engine needs and no more: no firmware has run, no device but the board's own exists. Its RAM is
:data:`memory-backend-file` over ``/proc/PID/fd/N`` with prealloc, so that source and destination can be filled and
compared from outside. Sources: qemu(1), docs/interop/qmp-spec, qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, QMPClient, QMPError

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import HostError
from bench.host.commands import Process, spawn
from bench.memory.image import GuestMemory

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
START_NS = 60 * NS_PER_S
COMMAND_S = 20
MIGRATE_S = 120

T = TypeVar("T")

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # a QEMU that does not listen yet is no error here


def require() -> None:
    """:raises HostError: when there is no QEMU here, saying how to get it."""
    if shutil.which(PROGRAM) is None:
        raise HostError(
            f"{PROGRAM} is not installed: apt-get install --no-install-recommends {PACKAGE} (`make benchmark` does)"
        )


class Qemu:
    """One QEMU process in the network namespace of *netns_pid*, and the QMP connection to it.

    :param memory: its RAM, shared with this process.
    :param incoming: wait for a migration (``-incoming defer``); else it is a machine that has not started.
    :raises HostError: when it does not come up, with the end of its log.
    """

    def __init__(self, name: str, netns_pid: int, memory: GuestMemory, directory: Path, *, incoming: bool) -> None:
        socket_path = directory / f"{name}.qmp"
        backend = f"memory-backend-file,id=ram,size={memory.size_bytes},mem-path=/proc/{os.getpid()}/fd/{memory.fd}"
        argv = [
            *(PROGRAM, "-name", name, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-m", f"{memory.size_bytes // 1024}K", "-object", f"{backend},share=on,prealloc=on"),
            *("-machine", "pc,memory-backend=ram", "-qmp", f"unix:{socket_path},server=on,wait=off"),
            *(("-incoming", "defer") if incoming else ()),
        ]
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient(name)
        self._events = EventListener(names="MIGRATION")
        self._client.register_listener(self._events)
        self.process: Process = spawn(argv, netns_pid=netns_pid, log=directory / f"{name}.log", name=name)
        try:
            wait_until(
                lambda: self._connected(socket_path), Deadline(START_NS), f"QMP of {name}", interval_ns=5 * NS_PER_MS
            )
        except BaseException:
            self.close()
            raise

    def _connected(self, path: Path) -> bool:
        self.process.require_alive()
        if not path.exists():
            return False
        try:
            self._do(self._client.connect(str(path)), COMMAND_S)
        except ConnectError:  # it has made its socket and does not listen yet
            return False
        return True

    def _do(self, work: Awaitable[T], timeout_s: float) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """One QMP command. :raises qemu.qmp.ExecuteError: when QEMU refuses it."""
        return self._do(self._client.execute(command, arguments), COMMAND_S)

    def set_up(self, capabilities: list[str], parameters: Mapping[str, object]) -> None:
        """Switch *capabilities* of the migration on and set its *parameters*."""
        wanted = [{"capability": name, "state": True} for name in capabilities]
        self.execute("migrate-set-capabilities", {"capabilities": wanted})
        self.execute("migrate-set-parameters", parameters)

    def wait_migrated(self) -> None:
        """Until its migration has completed. :raises HostError: when it ended otherwise, or not in time."""

        async def wait() -> None:
            while True:
                event = await self._events.get()
                status = event["data"]["status"]
                if status == "completed":
                    return
                if status in ("failed", "cancelled"):
                    raise HostError(f"QEMU's migration {status}: {self.process.last_lines()}")

        try:
            self._do(wait(), MIGRATE_S)
        except asyncio.TimeoutError:
            raise HostError(f"QEMU's migration did not complete within {MIGRATE_S} s") from None

    def close(self) -> None:
        """End it. Idempotent."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(QMPError, OSError, asyncio.TimeoutError):  # it may have ended by itself
            self._do(self._client.disconnect(), COMMAND_S)
        self._loop.close()
        self.process.stop()
