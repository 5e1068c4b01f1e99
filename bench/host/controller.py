"""The OpenFlow controller of a run: a process of its own, in the run's root network namespace.

It runs ``controllers.launch`` (Ryu or os-ken, the bench's app or a user's), which reports over its channel when it
listens and which switches are connected, whatever the app does. Nothing that is measured depends on the app's own
events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.clock import NS_PER_S, Deadline
from bench.errors import ControllerError, DeadlineError, HostError
from bench.host.channel import Channel, ChannelClosed
from bench.host.commands import Process, describe_status, spawn_child
from bench.timeline import Event

SOURCE = "controller"
OUR_APPS = frozenset(("learning", "proactive", "activation", "stale"))  # they say when a switch is ready
START_NS = 30 * NS_PER_S
_DEATH_NS = 2 * NS_PER_S
_LOG_LINES = 8


class ControllerProcess:
    """One controller. Use as a context manager, or :meth:`start` and :meth:`stop`.

    :param framework: ``ryu`` or ``os-ken``.
    :param app: one of :data:`OUR_APPS`, or the path of a user's app file for that framework.
    :param rundir: the run's directory; events go to ``events/controller.jsonl``, output to ``logs/controller.log``.
    :param port: TCP port on 127.0.0.1; 0 takes a free one, which :attr:`port` tells after :meth:`start`.
    :param names: the name of each datapath id, where it is not Mininet's (1 is s1).
    :param hold_s: for how long after a move the learning switch takes frames from the port that was left for late ones:
        more than the longest way through the network, queues included.
    :param options: what else the app is told (``BENCH_APP_OPTIONS``).
    :param on_event: called with each lifecycle event as it is read (by the calls below, there is no thread).
    """

    def __init__(
        self,
        framework: str,
        app: str,
        rundir: Path,
        port: int = 6653,
        *,
        names: Mapping[int, str] | None = None,
        hold_s: int = 1,
        options: Mapping[str, Any] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.framework = framework
        self.app = app
        self.port = port
        self.version = ""
        self.host = "127.0.0.1"
        self.events = rundir / "events" / f"{SOURCE}.jsonl"
        self.log = rundir / "logs" / f"{SOURCE}.log"
        self.connected: set[str] = set()
        self.ready: set[str] = set()
        self._names = dict(names or {})
        self._hold_s = hold_s
        self._options = dict(options or {})
        self._on_event = on_event
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._failed = ""

    def __enter__(self) -> ControllerProcess:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id while it has been started and not stopped."""
        return None if self._process is None else self._process.pid

    @property
    def process(self) -> Process | None:
        """The process, for ledgers and CPU accounts."""
        return self._process

    def start(self, deadline: Deadline | None = None) -> None:
        """Start it and return once it listens; when that fails, nothing is left running.

        :raises ControllerError: it ended (port in use, framework missing, app broken) or did not listen in time.
        """
        deadline = deadline or Deadline(START_NS)
        for directory in (self.events.parent, self.log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        arguments = ["--framework", self.framework, "--app", self.app, "--host", self.host, "--port", str(self.port)]
        environment = {
            "BENCH_EVENTS": str(self.events),
            "BENCH_SWITCHES": json.dumps({str(dpid): name for dpid, name in self._names.items()}),
            "BENCH_HOLD_S": str(self._hold_s),
            "BENCH_APP_OPTIONS": json.dumps(self._options),
            "PYTHONWARNINGS": "ignore",  # of the frameworks' own old code; the log is for the app
        }
        self._process, self._channel = spawn_child(
            "controllers.launch", peer=SOURCE, extra_args=arguments, env=environment, log=self.log
        )
        try:
            self._read_until(lambda event: event.name == "listening", deadline, f"listening on port {self.port}")
        except BaseException:
            self.stop()
            raise

    def wait_connected(self, switches: int, deadline: Deadline) -> None:
        """Return once *switches* switches are connected; with one of :data:`OUR_APPS`: and their flows are in
        place.

        :raises ControllerError: the controller ended, or they did not connect in time (with what it logged last).
        """
        there = self.ready if self.app in OUR_APPS else self.connected
        self._read_until(
            lambda _event: len(there) >= switches,
            deadline,
            f"{switches} switches connected",
            already=len(there) >= switches,
        )

    def order(self, order: str, **told: Any) -> None:
        """Tell the app something (:mod:`controllers.orders`). :raises ControllerError: when it has ended."""
        process, channel = self._running()
        try:
            channel.send({"order": order, **told})
        except HostError:
            raise self._died(process) from None

    def check(self) -> None:
        """Read what it reported meanwhile. :raises ControllerError: when it has ended."""
        process, channel = self._running()
        try:
            while True:
                self._take(channel, Deadline(0))
        except DeadlineError:
            pass
        except ChannelClosed:
            raise self._died(process) from None
        if not process.alive:
            raise self._died(process)

    def stop(self) -> None:
        """Stop it. Idempotent and bounded."""
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if process is not None:
            process.stop()
        if channel is not None:
            channel.close()

    def _running(self) -> tuple[Process, Channel]:
        if self._process is None or self._channel is None:
            raise ControllerError("the controller is not running")
        return self._process, self._channel

    def _read_until(
        self, done: Callable[[Event], bool], deadline: Deadline, what: str, *, already: bool = False
    ) -> None:
        process, channel = self._running()
        try:
            while not already:
                event = self._take(channel, deadline)
                already = event is not None and done(event)
        except ChannelClosed:
            raise self._died(process) from None
        except DeadlineError:
            shown = ", ".join(sorted(self.connected)) or "none"
            raise ControllerError(
                f"controller {self.framework}/{self.app}: {what}: not within {deadline.duration_ns / NS_PER_S:g} s "
                f"(connected: {shown}); {process.last_lines(_LOG_LINES)}",
                f"read {self.log}",
            ) from None

    def _take(self, channel: Channel, deadline: Deadline) -> Event | None:
        """Read one message and keep what it says."""
        message = channel.receive(deadline)
        if "event" not in message:
            return None
        event = Event.from_json(message["event"])
        name = str(event.data.get("name", ""))
        if event.name == "started":
            self.version = str(event.data.get("version", ""))
        elif event.name == "listening":
            self.port = int(event.data["port"])
        elif event.name == "switch_connected":
            self.connected.add(name)
        elif event.name == "switch_ready":
            self.ready.add(name)
        elif event.name == "switch_disconnected":
            self.connected.discard(name)
            self.ready.discard(name)
        elif event.name == "failed":
            self._failed = str(event.data.get("reason", ""))
        if self._on_event is not None:
            self._on_event(event)
        return event

    def _died(self, process: Process) -> ControllerError:
        try:
            status = process.wait(Deadline(_DEATH_NS))
            how = describe_status(status)
        except DeadlineError:
            status, how = 0, "closed its channel"
        said = process.last_lines(_LOG_LINES) if status >= 0 else ""  # one that was killed did not say why
        why = self._failed or said
        text = f"controller {self.framework}/{self.app} ended ({how})"
        return ControllerError(f"{text}: {why}" if why else text, f"read {self.log}")
