"""What surrounds the migrations of a run: limits of hypervisors, load on them, cross traffic, links that change.

Each is applied as the scenario says, read back where there is something to read, and told in the result; what this
machine cannot do is refused before a guest moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns, wait_until
from bench.errors import BenchError, HostError, MachineError
from bench.host.commands import Process, spawn
from bench.host.limits import Limits
from bench.host_load import HostLoad
from bench.link.impairment import Direction
from bench.plan import Plan
from bench.plan_network import card_speed, limited
from bench.scenario import HostSpec, Scenario, ScriptSpec
from bench.testbed import Testbed

STRESS_S: Final = 24 * 3600
FIRST_PORT: Final = 5201
START_NS: Final = 10 * NS_PER_S
STOP_NS: Final = 3 * NS_PER_S


def host_spec(scenario: Scenario, name: str) -> HostSpec:
    """See :meth:`bench.scenario.Scenario.host`."""
    return scenario.host(name)


class Surroundings:
    """Of one run; :meth:`stop` is idempotent.

    :param record_cgroup: notes in the ledger a control group that is about to be made; None: make none.
    :ivar reasons: why the run's numbers should not be trusted.
    """

    def __init__(
        self, scenario: Scenario, plan: Plan, directory: Path, record_cgroup: Callable[[Path], Path] | None
    ) -> None:
        self._scenario = scenario
        self._plan = plan
        self._directory = directory
        self._record = record_cgroup
        self._limits: dict[str, Limits] = {}
        self._load: dict[str, HostLoad] = {}
        self._servers: list[Process] = []
        self._flows: list[tuple[Process, Path]] = []
        self._testbed: Testbed | None = None
        self._pending: list[ScriptSpec] = []
        self._before: dict[str, tuple[Direction, Direction]] = {}
        self._told: dict[str, Any] = {}
        self.reasons: list[str] = []

    def prepare(self, testbed: Testbed) -> None:
        """Make the hypervisors' limits, before their guests boot. :raises BenchError: what cannot be had."""
        if self._testbed is not None:
            return
        self._testbed = testbed
        divided = any(guest.vcpu_cpu for guest in self._scenario.guests)
        for name in testbed.hypervisors:
            spec = host_spec(self._scenario, name)
            inside = divided or 0 < spec.load.memory < 1
            if spec.cpu or spec.memory or spec.cores or inside:
                self._limit(name, spec, inside)
        if not list(testbed.guests):
            testbed.guests.limited = set(self._limits)
        testbed.guests.place, testbed.guests.vcpu_group = self.place, self.vcpu_group

    def start(self, testbed: Testbed) -> None:
        """Begin, with all guests booted. :raises BenchError: what cannot be had."""
        self.prepare(testbed)
        for name, hypervisor in testbed.hypervisors.items():
            load = host_spec(self._scenario, name).load
            if load.cpu or load.memory or load.io:
                place, group = functools.partial(self.place, name), self.vcpu_group(name)
                logs = self._directory / "logs"
                self._load[name] = HostLoad(name, load, logs, hypervisor.pid, place, group)
        for guest in testbed.guests:  # those that booted before their hypervisor had limits
            if guest.process is not None and guest.host not in testbed.guests.limited:
                self.place(guest.host, guest.process.pid)
        for number, flow in enumerate(self._scenario.cross_traffic):
            self._begin_flow(FIRST_PORT + number, flow.source, flow.destination, flow.rate, flow.protocol)

    def _limit(self, name: str, spec: HostSpec, divided: bool) -> None:
        if self._record is None:
            raise MachineError(f"hosts.{name}: control groups cannot be made here")
        group = f"migration-bench-{self._directory.name}-{name}"
        limits = self._limits[name] = Limits(
            group, spec.cpu, spec.memory, self._record, cores=spec.cores, divided=divided
        )
        self._told.setdefault("limits", {})[name] = limits.applied

    def place(self, host: str, pid: int) -> None:
        """A process, and what it started, belongs to that hypervisor. :raises HostError: when the kernel refuses."""
        if host in self._limits:
            self._limits[host].add(pid)

    def vcpu_group(self, host: str) -> str:
        """Where control groups of single vCPUs belong on that hypervisor; empty for anywhere."""
        limits = self._limits.get(host)
        if limits is None or limits.vcpu_parent is None:
            return ""
        # A Mininet host mounts a /sys of its own, which hides the hierarchy: this process still sees it.
        return f"/proc/{os.getpid()}/root{limits.vcpu_parent}"

    # cross traffic

    def _begin_flow(self, port: int, source: str, destination: str, rate_bps: int, protocol: str) -> None:
        testbed = self._testbed
        assert testbed is not None
        logs = self._directory / "logs"
        server = spawn(
            ["iperf3", "--server", "--one-off", "--port", str(port), "--bind", self._plan.addresses[destination]],
            netns_pid=testbed.net[destination].pid,
            log=logs / f"iperf3-server.{port}.log",
            name=f"iperf3 server on {destination}",
        )
        self._servers.append(server)
        listening = Path(f"/proc/{testbed.net[destination].pid}/net/tcp")
        wait_until(
            lambda: f":{port:04X} 00000000:0000 0A" in listening.read_text(encoding="ascii"),
            Deadline(START_NS),
            f"iperf3 listens on {destination}",
        )
        output = logs / f"iperf3.{source}-{destination}.{port}.log"
        argv = ["iperf3", "--client", self._plan.addresses[destination], "--port", str(port), "--json"]
        argv += ["--time", str(STRESS_S), "--bitrate", str(rate_bps), *(["--udp"] if protocol == "udp" else [])]
        name = f"iperf3 from {source}"
        self._flows.append((spawn(argv, netns_pid=testbed.net[source].pid, log=output, name=name), output))

    def _flow_results(self) -> list[dict[str, Any]]:
        """End the flows. :returns: what each was asked and what it reached."""
        results = []
        for (process, output), asked in zip(self._flows, self._scenario.cross_traffic, strict=False):
            with contextlib.suppress(BenchError):
                process.send_signal(2)  # as Ctrl-C: it then tells what it did
                process.wait(Deadline(STOP_NS))
            process.stop(Deadline(0))
            reached = 0
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                end = json.loads(output.read_text(encoding="utf-8"))["end"]
                reached = round(end.get("sum_sent", end.get("sum", {}))["bits_per_second"])
            result = {"source": asked.source, "destination": asked.destination, "asked_bps": asked.rate}
            results.append({**result, "protocol": asked.protocol, "reached_bps": reached})
            if not reached:
                self.reasons.append(f"cross traffic from {asked.source} to {asked.destination}: iperf3 told no rate")
            elif asked.rate and reached < 0.9 * asked.rate:
                share = 100 * reached // asked.rate
                self.reasons.append(f"cross traffic from {asked.source}: {share} % of the rate that was asked")
        return results

    # the script

    def begin_wave(self) -> None:
        """Guests begin to move: links are as the scenario says, and the script starts anew."""
        for load in self._load.values():
            load.begin()
        if not self._scenario.script or self._testbed is None:
            return
        for name, asked in self._before.items():
            self._apply(name, asked)
        self._before.clear()
        self._pending = sorted(self._scenario.script, key=lambda change: change.at)

    def play(self, elapsed_ns: int) -> None:
        """Make the changes that are due. :raises LinkError: one that cannot be applied."""
        while self._pending and self._pending[0].at <= elapsed_ns:
            change = self._pending.pop(0)
            testbed = self._testbed
            assert testbed is not None
            link = testbed.link_named(change.link)
            self._before.setdefault(link.name, link.asked)
            first, second = (end.node for end in link.ends)
            speed = card_speed(self._scenario, self._plan.hypervisors, first, second)
            forward, backward = (changed(direction, change, speed) for direction in link.asked)
            begin_ns = now_ns()
            self._apply(link.name, (forward, backward))
            told = {"at_ns": elapsed_ns, "link": link.name, "took_ns": now_ns() - begin_ns, "applied": link.applied}
            self._told.setdefault("script", []).append(told)

    def _apply(self, name: str, directions: tuple[Direction, Direction]) -> None:
        assert self._testbed is not None
        self._testbed.change_link(name, *directions)

    # the end

    def check(self) -> None:
        """:raises HostError: when a load has ended by itself."""
        for load in self._load.values():
            load.check()
        for process, _output in self._flows:
            if not process.alive:
                raise HostError(f"{process.name} ended: {process.last_lines()}")

    def stop(self) -> dict[str, Any]:
        """End all of it. :returns: what was applied, for the result."""
        if self._flows:
            self._told["cross_traffic"] = self._flow_results()
            self._flows = []
        for process in self._servers:
            process.stop(Deadline(STOP_NS))
        for name, load in self._load.items():
            level, reasons = load.stop()
            self._told.setdefault("load", {})[name] = load.asked.model_dump()
            self._told.setdefault("load_measured", {})[name] = level
            self.reasons += reasons
        self._load, self._servers = {}, []
        for name, limits in self._limits.items():
            used = limits.memory_used()
            if used.get("memory_kills", 0) > limits.applied.get("memory_kills", 0):
                ended = f"the kernel ended {used['memory_kills']} of its processes"
                self.reasons.append(f"hosts.{name}.memory = {limits.applied['memory'] >> 20}MiB is too little: {ended}")
            limits.applied |= used
        return self._told


def wait(until: Deadline) -> None:
    """Let a stretch of a stated length pass; nothing else happens meanwhile."""
    time.sleep(until.remaining_s)


@contextlib.contextmanager
def at_work(
    scenario: Scenario,
    plan: Plan,
    directory: Path,
    record_cgroup: Callable[[Path], Path] | None,
    notify: Callable[[str], None],
) -> Iterator[Testbed]:
    """A testbed whose guests have worked for the warm-up, with limits and load on its hypervisors and cross traffic,
    without calibration and clients: what is looked at is the guests. All of it ends with the context.

    To be called in a sandbox. :raises BenchError: what could not be raised.
    """
    bare = scenario.model_copy(update={"calibration": scenario.calibration.model_copy(update={"enabled": False})})
    testbed = Testbed(bare, plan, directory, notify)
    surroundings = Surroundings(bare, plan, directory, record_cgroup)
    with contextlib.ExitStack() as stack:
        stack.callback(testbed.close)
        testbed.raise_network()
        surroundings.prepare(testbed)
        testbed.boot_guests()
        stack.callback(surroundings.stop)
        surroundings.start(testbed)
        notify("letting the guest work")
        wait(Deadline(scenario.run.warmup))
        yield testbed


def changed(direction: Direction, change: ScriptSpec, speed_bps: int = 0) -> Direction:
    """A direction of a link after a change of the script, behind a card of some speed (0: unlimited)."""
    wanted = {
        "rate_bps": None if change.bandwidth is None else limited(change.bandwidth, speed_bps),
        "delay_ns": change.delay,
        "jitter_ns": change.jitter,
        "loss": change.loss,
    }
    return dataclasses.replace(direction, **{key: value for key, value in wanted.items() if value is not None})  # type: ignore[arg-type]
