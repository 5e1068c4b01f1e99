"""One scenario, one result: raise the testbed, let the probes watch, move the guest, hand everything to analysis.

Runs inside the sandbox. Whatever ends the migration early (a cancel, Ctrl-C, a dead link) still ends in a result with
its reason and its timeline; only a bug or a testbed that cannot be raised is an exception.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.analysis.assemble import FlowRecords, Move, RawRun, assemble
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, DeadlineError, HostError
from bench.forecasting import Forecaster, sample_duration_ns
from bench.host.cgroup import make_parent
from bench.host.load import LoadSampler
from bench.host.machine import environment
from bench.host.sandbox import exit_status, notices_held
from bench.migration.driver import Migration
from bench.migration.driver import Plan as MigrationPlan
from bench.plan import Plan
from bench.probe.capture import CapturePort, Captures
from bench.probe.clients import ClientAgents, FlowReport
from bench.probe.frames import Frames, FrameWatcher
from bench.probe.records import load_records
from bench.result import RunResult
from bench.scenario import ClientSpec, Scenario
from bench.testbed import BRIDGE, Testbed
from bench.timeline import Event, Timeline

RECOVER_EVERY_NS = NS_PER_S  # a post-copy whose network failed
POLL_NS = 20 * NS_PER_MS
RECOVERY_NS = 60 * NS_PER_S


class Runner:
    """One run.

    :param run_directory: of the ledger: sockets, databases, events and logs while the run lasts.
    :param output: the result's directory, made and empty.
    :param progress: called with every event as it comes.
    :param record_cgroup: notes in the ledger a control group that is about to be made; None: make none.
    :ivar notice: the exit status that a run has which was stopped by Ctrl-C, SIGTERM or SIGHUP; 0 otherwise.
    """

    def __init__(
        self,
        scenario: Scenario,
        plan: Plan,
        run_directory: Path,
        output: Path,
        progress: Callable[[Event], None],
        *,
        record_cgroup: Callable[[Path], Path] | None = None,
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.directory = run_directory
        self.output = output
        self._progress = progress
        self._record_cgroup = record_cgroup
        self._cgroup: Path | None = None
        self._last_reply_ns: dict[str, int] = {}
        self._dead: set[str] = set()
        # Nobody knows when a command gets an answer, so nobody waits for one.
        self._commands = {client.name for client in scenario.clients if client.kind == "command"}
        self._moves: list[Move] = []
        self._reasons: list[str] = []
        self._interrupted = ""
        self._watcher: FrameWatcher | None = None
        self._captures: Captures | None = None
        self._agents: ClientAgents | None = None
        self._forecaster = Forecaster(scenario, plan)
        self.notice = 0

    def run(self) -> RunResult:
        """Run it all; writes result.json, events.jsonl, scenario.json, requests/ and logs/ below *output*.

        :raises BenchError: when the testbed cannot be raised or a part of it dies.
        """
        result = None
        try:
            with contextlib.ExitStack() as held:
                result = self._run(held)
        except KeyboardInterrupt as stop:
            self._noticed(stop)
            if result is None:
                raise
        return result

    def _run(self, held: contextlib.ExitStack) -> RunResult:
        """:param held: closed by the caller; once a result can be made, notices wait for that."""
        started_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        (self.output / "scenario.json").write_text(self.scenario.model_dump_json(indent=1) + "\n", encoding="utf-8")
        testbed = Testbed(self.scenario, self.plan, self.directory, self._step)
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(testbed.close)
                load = stack.enter_context(LoadSampler())
                try:
                    self._observe(stack, testbed)
                except KeyboardInterrupt as stop:
                    self._noticed(stop)
                held.enter_context(notices_held())
                raw = self._collect(testbed, load, started_at)
            self._step("analysing")
            result = assemble(raw)
            result.write(self.output)
            raw.timeline.write(self.output / "events.jsonl")
        except BenchError as error:
            for former, kept in ((self.directory / "logs", "logs"), (self.directory / "ovs", "logs")):
                error.message = error.message.replace(str(former), str(self.output / kept))
                error.remedy = error.remedy.replace(str(former), str(self.output / kept))
            raise
        finally:
            self._keep_logs()
        return result

    def _observe(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        """Raise the testbed, watch, migrate. What was started by the time of a notice is there to be collected."""
        testbed.raise_network()
        self._watcher = self._watch(stack)
        self._captures = self._capture(stack, testbed)
        testbed.boot_guest()
        directories = self.output / "requests", self.directory / "events", self.directory / "logs"
        self._agents = agents = stack.enter_context(ClientAgents(*directories))
        self._start_clients(agents, testbed)
        self._warm_up(agents, testbed)
        self._migrate_all(agents, testbed)
        if testbed.guest_alive:
            self._wait(agents, testbed, self.scenario.run.settle, "letting the flows settle")

    def _collect(self, testbed: Testbed, load: LoadSampler, started_at: str) -> RawRun:
        """Stop everything that watches and gather what it saw."""
        self._step("stopping the clients")
        reports = self._agents.stop(self._on_event) if self._agents is not None else []
        end_ns = now_ns()
        guest_stats = self._guest_stats(testbed)
        frames = self._watcher.stop() if self._watcher is not None else Frames()
        if self._captures is not None:
            self._captures.stop()
            self._reasons += self._captures.reasons
        self._reasons += frames.reasons
        return RawRun(
            title=self.scenario.title,
            started_at=started_at,
            guest=self.scenario.guest.name,
            guest_mac=self.scenario.guest.mac,
            guest_address=self.scenario.guest.address,
            addresses=self.plan.addresses,
            end_ns=end_ns,
            memory_bytes=self.scenario.guest.memory,
            verify=self.scenario.migration.verify,
            moves=self._moves,
            timeline=self._timeline(),
            frames=frames.records,
            interfaces=frames.interfaces,
            flows=self._flow_records(reports),
            host_ports={there: port for ports in testbed.switch_ports().values() for port, there in ports.items()},
            links=testbed.links,
            environment={
                **environment(),
                "datapath": testbed.datapath,
                "delay": sorted({link.mechanism for link in testbed.links}),
                "controller": f"{self.scenario.controller.framework}/{self.scenario.controller.app}",
                "cpu": load.summary(self._moves[0].start_ns if self._moves else end_ns - NS_PER_S, end_ns),
                "guest": guest_stats,
            },
            max_cpu_load=self.scenario.run.max_cpu_load,
            reasons=self._reasons,
            interrupted=self._interrupted,
        )

    def _noticed(self, notice: KeyboardInterrupt) -> None:
        """The run was asked to stop; it still ends in a result."""
        self._interrupted = f"interrupted by {str(notice) or 'SIGINT'}"
        self.notice = exit_status(notice)

    # what watches

    def _watch(self, stack: contextlib.ExitStack) -> FrameWatcher:
        guest = self.scenario.guest
        watcher = FrameWatcher(self.directory / "frames.pcap", [guest.address], [guest.mac])
        stack.callback(watcher.close)
        watcher.start()
        return watcher

    def _capture(self, stack: contextlib.ExitStack, testbed: Testbed) -> Captures | None:
        if not self.scenario.run.capture:
            return None
        directory = self.output / "captures"
        directory.mkdir()
        captures = Captures(directory)
        stack.callback(captures.stop)
        guest = self.scenario.guest
        keep = ("host", guest.address, "or", "arp", "or", "rarp")
        for name in (self.plan.source, self.plan.destination):
            hypervisor = testbed.hypervisors[name]
            captures.start(CapturePort(f"{guest.name}@{name}", hypervisor.uplink, hypervisor.pid, keep))
        return captures

    def _start_clients(self, agents: ClientAgents, testbed: Testbed) -> None:
        self._step("starting the clients")
        for host, flows in self.plan.flows.items():
            agents.spawn(host, testbed.net[host].pid)
            agents.configure(host, self.scenario.guest.address, [_flow(flow) for flow in flows])
        agents.start(self._on_event)

    # waiting

    def _warm_up(self, agents: ClientAgents, testbed: Testbed) -> None:
        """Let the flows get going; the last part of it also serves for looking at the guest's dirty pages."""
        sample_ns = sample_duration_ns(self.scenario)
        self._wait(agents, testbed, self.scenario.run.warmup - sample_ns, "warming up")
        if sample_ns:
            self._step("sampling the guest's dirty rate")
            self._forecaster.look(testbed, sample_ns, lambda until: self._wait_until(agents, testbed, until))

    def _wait(self, agents: ClientAgents, testbed: Testbed, duration_ns: int, what: str) -> None:
        """Let the run go on for a time that the scenario asks for."""
        self._step(what)
        self._wait_until(agents, testbed, Deadline(duration_ns))

    def _wait_until(self, agents: ClientAgents, testbed: Testbed, deadline: Deadline) -> None:
        while not deadline.expired:
            agents.poll(self._on_event, min(POLL_NS, deadline.remaining_ns))
            testbed.require_alive()
            testbed.require_guest()

    def _wait_recovered(self, agents: ClientAgents, testbed: Testbed, since_ns: int) -> None:
        """Wait, bounded, until every living flow has had an answer after *since_ns*."""
        deadline = Deadline(RECOVERY_NS)

        def waiting() -> bool:
            return any(last < since_ns for name, last in self._last_reply_ns.items() if name not in self._dead)

        while waiting() and not deadline.expired:
            agents.poll(self._on_event, POLL_NS)
            testbed.require_alive()
            testbed.require_guest()

    # moving

    def _migrate_all(self, agents: ClientAgents, testbed: Testbed) -> None:
        ends = (self.plan.source, self.plan.destination)
        for number in range(1, self.scenario.run.repeat + 1):
            source = testbed.guest.host if testbed.guest is not None else ends[0]
            destination = ends[1] if source == ends[0] else ends[0]
            if number > 1:
                self._wait(agents, testbed, self.scenario.run.pause_between, "pausing between migrations")
            move = self._migrate(agents, testbed, number, source, destination)
            if self._interrupted or not testbed.guest_alive:
                return
            self._wait_recovered(agents, testbed, move.end_ns)
            announced = testbed.announcement(self.scenario.migration.announce_delay)["offsets_ns"]
            self._wait(agents, testbed, max(announced, default=0), "announcing")
            if move.outcome["outcome"] == "failed":
                return

    def _migrate(self, agents: ClientAgents, testbed: Testbed, number: int, source: str, destination: str) -> Move:
        self._step(f"migration {number} of {self.scenario.run.repeat}: {source} to {destination}")
        plan = self._migration_plan(testbed, number, source, destination)
        forecast = self._forecaster.forecast(testbed, source, destination)
        start_ns = now_ns()
        with contextlib.ExitStack() as held:
            with Migration(plan) as migration:
                migration.start()
                outcome: dict[str, Any] | None = None
                while outcome is None:
                    outcome = self._advance(migration, agents, testbed)
                held.enter_context(notices_held())  # the guest has moved or not: that must be noted
            end_ns = now_ns()
            if outcome["outcome"] == "cancelled" and self._interrupted:
                outcome["reason"] = self._interrupted  # rather than the engine's "by command"
            if outcome["outcome"] == "completed":
                testbed.follow_guest(destination, plan.new_guest_socket)
            move = Move(
                number=number,
                source=source,
                destination=destination,
                start_ns=start_ns,
                end_ns=end_ns,
                outcome=outcome,
                ports=self._switch_ports(testbed, source, destination),
                paths={host: self.plan.switches_between(host, destination) for host in self.plan.flows},
                forecast=forecast,
            )
            self._moves.append(move)
        return move

    def _advance(self, migration: Migration, agents: ClientAgents, testbed: Testbed) -> dict[str, Any] | None:
        """Let the migration go on for a moment; its outcome when it has one. The first Ctrl-C cancels it."""
        try:
            return migration.wait(self._on_event, Deadline(POLL_NS))
        except DeadlineError:
            agents.poll(self._on_event)
            testbed.require_alive()
        except KeyboardInterrupt as stop:
            if self._interrupted:
                raise
            self._noticed(stop)
            self._step("interrupted: cancelling the migration")
            migration.cancel()
        return None

    def _migration_plan(self, testbed: Testbed, number: int, source: str, destination: str) -> MigrationPlan:
        here, there = testbed.hypervisors[source], testbed.hypervisors[destination]
        migration = self.scenario.migration
        new_socket, new_events, new_log = testbed.guest_paths(destination)
        if testbed.guest is None:
            raise HostError("no guest runs, so none can move")
        return MigrationPlan(
            source_pid=here.pid,
            destination_pid=there.pid,
            source_host=source,
            destination_host=destination,
            guest=testbed.guest_configuration(source),
            guest_socket=testbed.guest.socket_path,
            new_guest_socket=new_socket,
            new_guest_events=new_events,
            new_guest_log=new_log,
            bridge=BRIDGE,
            lease_path=testbed.lease_path,
            address=there.address,
            port=migration.port,
            migration={
                "mode": migration.mode,
                "downtime_limit_ns": migration.downtime_limit,
                "precopy_rounds": migration.precopy_rounds,
                "max_rounds": migration.max_rounds,
                "max_time_ns": migration.max_time,
                "max_bandwidth_bps": migration.max_bandwidth,
                "on_no_convergence": migration.on_no_convergence,
                "verify": migration.verify,
                "zero_pages": migration.zero_pages,
                "compression": migration.compression,
                "compression_level": migration.compression_level,
                "compression_threads": migration.compression_threads,
                "delta_cache_bytes": migration.delta_cache,
                "auto_converge": migration.auto_converge,
                "dirty_limit_bytes_per_s": migration.dirty_limit,
                "cgroup": self._throttle_cgroup(),
            },
            announce=testbed.announcement(migration.announce_delay),
            events_directory=self.directory / "events",
            log_directory=self.directory / "logs",
            tag=str(number),
            recover_every_ns=RECOVER_EVERY_NS,
        )

    def _throttle_cgroup(self) -> str:
        """The run's control group for vCPUs, made when the scenario first needs it; empty for none."""
        migration = self.scenario.migration
        wanted = migration.auto_converge or migration.on_no_convergence == "throttle"
        if not wanted or self._record_cgroup is None:
            return ""
        if self._cgroup is None:
            self._cgroup = make_parent(f"migration-bench-{self.directory.name}", self._record_cgroup)
        # A Mininet host mounts a /sys of its own, which hides the hierarchy: this process still sees it.
        return "" if self._cgroup is None else f"/proc/{os.getpid()}/root{self._cgroup}"

    # the network seen from the analysis

    def _switch_ports(self, testbed: Testbed, source: str, destination: str) -> dict[str, dict[str, str | None]]:
        """Switch -> its ports towards the old and the new place of the guest, for switches on a client's way."""
        ends = (source, destination)
        ways = [self.plan.switches_between(host, end) for end in ends for host in (*self.plan.flows, source)]
        ports = testbed.switch_ports()

        def towards(switch: str, node: str) -> str | None:
            following = self.plan.path(switch, node)[1:2]
            return next((port for port, there in ports[switch].items() if [there] == following), None)

        return {
            switch: {"old_port": towards(switch, source), "new_port": towards(switch, destination)}
            for switch in dict.fromkeys(switch for way in ways for switch in way)
        }

    # collecting

    def _on_event(self, event: Event) -> None:
        if event.name == "flow_status" and event.data.get("name") not in self._commands:
            name = str(event.data.get("name"))
            self._last_reply_ns[name] = int(event.data.get("last_reply_ns") or 0)
            if event.data.get("alive") is False:
                self._dead.add(name)
        self._tell(event)

    def _step(self, text: str) -> None:
        self._tell(Event.now("runner", "step", text=text))

    def _tell(self, event: Event) -> None:
        """A closed pipe (for which rich exits) or a terminal that is gone does not end a run."""
        with contextlib.suppress(OSError, SystemExit):
            self._progress(event)

    def _flow_records(self, reports: list[FlowReport]) -> list[FlowRecords]:
        rates = {client.name: client.rate for client in self.scenario.clients}
        return [
            FlowRecords(
                item.host,
                item.name,
                item.kind,
                item.report,
                load_records(item.records) if item.records.exists() else None,
                rates.get(item.name, 0),
            )
            for item in reports
        ]

    def _guest_stats(self, testbed: Testbed) -> dict[str, Any]:
        if testbed.guest is None:
            return {}
        try:
            return dict(testbed.guest.control.stats())
        except (HostError, DeadlineError) as error:
            self._reasons.append(f"guest: it does not answer at the end of the run: {error.message}")
            return {}

    def _timeline(self) -> Timeline:
        events: list[Event] = []
        for path in sorted((self.directory / "events").glob("*.jsonl")):
            events += Timeline.read(path)
        return Timeline(events)

    def _keep_logs(self) -> None:
        """Whatever was logged, also by a run that failed; empty logs are left out."""
        target = self.output / "logs"
        target.mkdir(exist_ok=True)
        for path in [*(self.directory / "logs").glob("*.log"), *(self.directory / "ovs").glob("*.log")]:
            if path.stat().st_size:
                shutil.copyfile(path, target / path.name)


def _flow(client: ClientSpec) -> dict[str, Any]:
    """A client of the scenario as the agent's ``configure`` wants it."""
    return {
        "name": client.name,
        "kind": client.kind,
        "interval_ns": client.interval,
        "think_ns": client.think,
        "size": client.size,
        "rate_bps": client.rate,
        "timeout_ns": client.timeout,
        "command": list(client.command),
    }
