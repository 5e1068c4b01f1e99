"""Watching switch state from the runner: one process (:mod:`.switch_watcher`) for all switches and hosts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, ProbeError
from bench.host.channel import Channel
from bench.host.commands import Process, spawn_child

_START_NS = 20 * NS_PER_S
_CALL_NS = 5 * NS_PER_S


class SwitchWatch:
    """Idempotent in :meth:`stop`; a watcher that died is a reason, not an error."""

    def __init__(self, events: Path, log: Path) -> None:
        self.reasons: list[str] = []
        self._events = events
        self._log = log
        self._process: Process | None = None
        self._channel: Channel | None = None

    def start(
        self,
        guests: Sequence[Mapping[str, str]],
        *,
        flows: Sequence[Mapping[str, Any]] = (),
        fdb: Sequence[Mapping[str, Any]] = (),
        bridges: Mapping[str, Sequence[str]] | None = None,
        hosts: Mapping[str, int] | None = None,
        conntrack: Mapping[str, int] | None = None,
    ) -> None:
        """Returns once it watches.

        :param guests: {mac, address} of each.
        :param flows: {switch, env, ports} of Open vSwitch bridges whose flow tables are watched.
        :param fdb: {switch, socket, ports} of those whose FDB is.
        :param bridges: Linux bridge -> its ports.
        :param hosts: host -> a process in its namespace, whose neighbour caches are watched; *conntrack* likewise.
        :raises ProbeError: when it does not start.
        """
        try:
            self._process, self._channel = spawn_child(
                "bench.probe.switch_watcher", peer="switch watcher", log=self._log
            )
            told = {
                "guests": list(guests),
                "events": str(self._events),
                "flows": list(flows),
                "fdb": list(fdb),
                "bridges": {switch: list(ports) for switch, ports in (bridges or {}).items()},
                "hosts": dict(hosts or {}),
                "conntrack": dict(conntrack or {}),
            }
            self._channel.call("watch", told, deadline=Deadline(_START_NS))
        except BenchError as error:
            self.stop()
            raise ProbeError(f"the switches cannot be watched: {error.message}") from error

    def closely(self, on: bool) -> None:
        """A migration goes on, or no longer."""
        if self._channel is None:
            return
        try:
            self._channel.call("closely", {"on": on}, deadline=Deadline(_CALL_NS))
        except BenchError as error:
            self.reasons.append(f"switch state: its watcher failed: {error.message}")
            self.stop()

    def stop(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.stop()
