"""The servers outside as the runner sees them: one process for each client host that guests talk to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import DeadlineError, HostError
from bench.flows.notes import SUFFIX
from bench.host.channel import Channel
from bench.host.commands import Process, spawn_child

START_NS: Final = 20 * NS_PER_S
END_NS: Final = 2 * NS_PER_S


class Servers:
    """Start, then close; ``close`` at any time and as often as one likes.

    :param events: the run's ``events`` directory, for their notes; *logs* for their standard error.
    """

    def __init__(self, events: Path, logs: Path) -> None:
        self._events = events
        self._logs = logs
        self._running: dict[str, tuple[Process, Channel]] = {}

    def start(self, host: str, netns_pid: int | None, address: str) -> None:
        """Returns once it listens. :raises BenchError: with the end of its log when it does not."""
        name = f"server.{host}"
        process, channel = spawn_child(
            "bench.outside.server",
            peer=name,
            extra_args=["--address", address, "--notes", str(self._events / f"{name}{SUFFIX}")],
            netns_pid=netns_pid,
            log=self._logs / f"{name}.log",
        )
        self._running[host] = (process, channel)
        try:
            message = channel.receive(Deadline(START_NS))
        except HostError as error:
            raise HostError(f"the server on {host} did not start: {process.last_lines() or error.message}") from error
        if message.get("event", {}).get("name") != "ready":
            raise HostError(f"the server on {host} said something else than that it is ready")

    def close(self) -> None:
        """End every server; what it noted is written then. Idempotent."""
        running, self._running = self._running, {}
        for _process, channel in running.values():
            channel.close()
        for process, _channel in running.values():
            with contextlib.suppress(DeadlineError):
                process.wait(Deadline(END_NS))
            process.stop()
