"""The client agents of a run, as the runner sees them: one process for each client host, started, driven and ended."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, DeadlineError, GuestError, HostError, ProbeError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.commands import Process, describe_status, spawn_child
from bench.timeline import Event

OnEvent = Callable[[Event], None]

CONFIGURE_LIMIT_NS: Final = 15 * NS_PER_S
START_LIMIT_NS: Final = 10 * NS_PER_S
DEATH_LIMIT_NS: Final = 2 * NS_PER_S
STOP_LIMIT_NS: Final = 30 * NS_PER_S
"""Longer than any flow's own time limit at its stop (an upload waits up to 10 s for the guest's reply)."""


@dataclass
class _Agent:
    process: Process
    channel: Channel
    directory: Path
    flows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowReport:
    """What an agent said of one flow when it stopped, and where its records are.

    :ivar report: the agent's report (``requests``, ``lost``, ``alive``, …, see :mod:`bench.probe.client`).
    :ivar records: the ``.npy`` file; :func:`bench.probe.records.load_records` reads it.
    """

    host: str
    name: str
    kind: str
    report: Mapping[str, Any]
    records: Path


def _died(host: str, process: Process) -> ProbeError:
    with contextlib.suppress(DeadlineError):
        process.wait(Deadline(DEATH_LIMIT_NS))  # its channel closes a moment before it ends
    how = "closed its channel" if process.status is None else f"died ({describe_status(process.status)})"
    last = process.last_lines()
    return ProbeError(f"the client agent of {host} {how}" + (f": {last}" if last else ""))


class ClientAgents:
    """Spawn, configure, start, poll, stop, close; ``close`` at any time and as often as one likes.

    :param directory: for records (``<directory>/<host>/<flow>.npy``).
    :param events: the run's ``events`` directory; agents write ``client.<host>.jsonl``.
    :param logs: for their standard error.
    """

    def __init__(self, directory: Path, events: Path, logs: Path) -> None:
        self._directory = directory
        self._events = events
        self._logs = logs
        self._agents: dict[str, _Agent] = {}
        self._reports: list[FlowReport] | None = None
        self.cpu_ns = 0

    def __enter__(self) -> ClientAgents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(self, host: str, netns_pid: int | None) -> None:
        """Start the agent of *host*, in the network namespace of process *netns_pid*.

        :raises HostError, CommandError: when it cannot be started.
        """
        if host in self._agents:
            raise ProbeError(f"{host} has a client agent already")
        directory = self._directory / host
        directory.mkdir(parents=True, exist_ok=True)
        source = f"client.{host}"
        process, channel = spawn_child(
            "bench.probe.client",
            peer=source,
            extra_args=["--directory", str(directory), "--events", str(self._events / f"{source}.jsonl")],
            netns_pid=netns_pid,
            log=self._logs / f"{source}.log",
        )
        self._agents[host] = _Agent(process, channel, directory)

    def configure(self, host: str, guest_address: str, flows: Sequence[Mapping[str, Any]]) -> None:
        """Tell the agent of *host* its flows. :raises ProbeError: when it refuses or does not answer."""
        agent = self._agents[host]
        agent.flows = tuple(str(flow.get("name")) for flow in flows)
        args = {"guest_address": guest_address, "flows": [dict(flow) for flow in flows]}
        self._call(host, "configure", args, Deadline(CONFIGURE_LIMIT_NS), None)

    def start(self, on_event: OnEvent | None = None) -> None:
        """Begin all flows of all hosts; returns when every agent has."""
        deadline = Deadline(START_LIMIT_NS)
        for host in self._agents:
            self._call(host, "start", {}, deadline, on_event)

    def _call(
        self, host: str, command: str, args: Mapping[str, Any], deadline: Deadline, on_event: OnEvent | None
    ) -> Message:
        agent = self._agents[host]
        try:
            return agent.channel.call(command, args, deadline=deadline, on_event=on_event)
        except GuestError as error:  # the channel's name for a refused command
            raise ProbeError(error.message) from error
        except ChannelClosed as error:
            raise _died(host, agent.process) from error

    def poll(self, on_event: OnEvent, timeout_ns: int = 0) -> None:
        """Hand over the events that have come (``flow_status`` among them); waits up to *timeout_ns* for the first.

        :raises ProbeError: when an agent died.
        """
        hosts = {agent.channel.fileno(): host for host, agent in self._agents.items()}
        for fileno in select.select(list(hosts), [], [], timeout_ns / NS_PER_S)[0]:
            self._take_events(hosts[fileno], on_event)

    def _take_events(self, host: str, on_event: OnEvent) -> None:
        agent = self._agents[host]
        try:
            messages = agent.channel.receive_ready()
        except ChannelClosed as error:
            raise _died(host, agent.process) from error
        for message in messages:
            if "event" in message:
                on_event(Event.from_json(message["event"]))

    def filenos(self) -> dict[int, str]:
        """The channels' descriptors, for a runner that waits for several things at once, each with its host."""
        return {agent.channel.fileno(): host for host, agent in self._agents.items()}

    def stop(self, on_event: OnEvent | None = None) -> list[FlowReport]:
        """Stop all flows, at the same time, and collect their reports. A second call returns the same.

        An agent that died takes only its own flows along: each of them is reported dead with error ``agent died``.
        """
        if self._reports is not None:
            return self._reports
        deadline = Deadline(STOP_LIMIT_NS)
        posted = {host: self._post_stop(host) for host in self._agents}
        reports: list[FlowReport] = []
        for host, number in posted.items():
            reply = None if number is None else self._await_stop(host, number, deadline, on_event)
            reports += self._flow_reports(host, reply)
        self._reports = reports
        return reports

    def _post_stop(self, host: str) -> int | None:
        try:
            return self._agents[host].channel.post("stop")
        except HostError:
            return None

    def _await_stop(self, host: str, number: int, deadline: Deadline, on_event: OnEvent | None) -> Message | None:
        channel = self._agents[host].channel
        try:
            while True:
                message = channel.receive(deadline)
                if "event" in message:
                    if on_event is not None:
                        on_event(Event.from_json(message["event"]))
                elif message.get("reply") == number:
                    value = message.get("value")
                    return value if isinstance(value, dict) else None
        except BenchError:
            return None

    def _flow_reports(self, host: str, reply: Message | None) -> list[FlowReport]:
        agent = self._agents[host]
        if reply is None or not isinstance(reply.get("flows"), list):
            dead = {"alive": False, "error": "agent died", "requests": 0, "lost": 0, "duplicated": 0}
            dead |= {"reordered": 0, "corrupted": 0, "retransmits": None, "local_port": None}
            raw: list[dict[str, Any]] = [{"name": name, "kind": "", **dead} for name in agent.flows]
        else:
            raw = [{**flow, "kernel": reply.get("kernel") or {}} for flow in reply["flows"]]
            self.cpu_ns += int(reply.get("cpu_ns", 0))
        return [
            FlowReport(host, str(one["name"]), str(one["kind"]), one, agent.directory / f"{one['name']}.npy")
            for one in raw
        ]

    def close(self) -> None:
        """End every agent; each ends by itself when its channel does, and is killed when it does not. Idempotent."""
        agents, self._agents = self._agents, {}
        for agent in agents.values():
            agent.channel.close()
        for agent in agents.values():
            agent.process.stop()
