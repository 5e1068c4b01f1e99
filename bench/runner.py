"""One scenario, one result: raise the testbed, let the watchers watch, move the guests, hand everything to analysis.

Runs inside the sandbox. Whatever ends a migration early (a cancel, Ctrl-C, a dead link) still ends in a result with
its reason and its timeline; only a bug or a testbed that cannot be raised is an exception.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.analysis.assemble import Move, RawRun, assemble
from bench.analysis.expectations import check
from bench.analysis.overall import CardFacts, GuestFacts
from bench.clock import NS_PER_S, now_ns
from bench.collect import collect_events, collect_flows, keep_logs
from bench.errors import BenchError
from bench.forecasting import Forecaster, sample_duration_ns
from bench.host.load import LoadSampler
from bench.host.machine import environment
from bench.host.sandbox import notices_held
from bench.moving.engine_plan import EnginePlans
from bench.moving.mover import Mover
from bench.notice import Notice
from bench.plan import Plan
from bench.plan_cards import client_address, guest_address
from bench.result import RunResult
from bench.scenario import ClientSpec, GuestSpec, Scenario
from bench.surroundings import Surroundings
from bench.testbed import Testbed
from bench.timeline import Event
from bench.watch import Watch


class Runner:
    """One run.

    :param run_directory: of the ledger: sockets, databases, events and logs while the run lasts.
    :param output: the result's directory, made and empty.
    :param progress: called with every event as it comes.
    :param record_cgroup: notes in the ledger a control group that is about to be made; None: make none.
    :param testbed: one that is up already and stays up: watch it, move its guests, leave it. None: raise one.
    :param watch: in place of the usual watchers.
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
        testbed: Testbed | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.directory = run_directory
        self.output = output
        self._record_cgroup = record_cgroup
        self._watch = watch or Watch(scenario, plan, run_directory, output, progress)
        self._standing = testbed
        self._notice = Notice()
        self._mover: Mover | None = None
        self._forecaster = Forecaster(scenario, plan)
        self._surroundings = Surroundings(scenario, plan, run_directory, record_cgroup)

    @property
    def notice(self) -> int:
        """The exit status of a run that was stopped by Ctrl-C, SIGTERM or SIGHUP; 0 otherwise."""
        return self._notice.exit_code

    def run(self) -> RunResult:
        """Run it all; writes result.json, events.jsonl, scenario.json, requests/ and logs/ below *output*.

        :raises BenchError: when the testbed cannot be raised or a part of it dies.
        """
        result = None
        try:
            with contextlib.ExitStack() as held:
                result = self._run(held)
        except KeyboardInterrupt as stop:
            self._notice.note(stop)
            if result is None:
                raise
        return result

    def _run(self, held: contextlib.ExitStack) -> RunResult:
        """:param held: closed by the caller; once a result can be made, notices wait for that."""
        started_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        (self.output / "scenario.json").write_text(self.scenario.model_dump_json(indent=1) + "\n", encoding="utf-8")
        testbed = self._standing or Testbed(self.scenario, self.plan, self.directory, self._watch.step)
        try:
            with contextlib.ExitStack() as stack:
                if self._standing is None:
                    stack.callback(testbed.close)
                load = stack.enter_context(LoadSampler())
                try:
                    self._observe(stack, testbed)
                except KeyboardInterrupt as stop:
                    self._notice.note(stop)
                held.enter_context(notices_held())
                raw = self._collect(testbed, load, started_at)
            self._watch.step("analysing")
            result = assemble(raw)
            result.expectations = check(self.scenario.expect, result)
            result.write(self.output)
            raw.timeline.write(self.output / "events.jsonl")
        except BenchError as error:
            for former, kept in ((self.directory / "logs", "logs"), (self.directory / "ovs", "logs")):
                error.message = error.message.replace(str(former), str(self.output / kept))
                error.remedy = error.remedy.replace(str(former), str(self.output / kept))
            raise
        finally:
            keep_logs(self.directory, self.output)
        return result

    def _observe(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        """Raise the testbed, watch, migrate. What was started by the time of a notice is there to be collected."""
        if self._standing is None:
            testbed.raise_network()
        self._watch.start_frames(stack, testbed)
        if self._standing is None:
            self._surroundings.prepare(testbed)
            testbed.boot_guests()
        stack.callback(self._surroundings.stop)
        self._surroundings.start(testbed)
        self._watch.start_clients(stack, testbed)
        self._warm_up(testbed)
        engine_plans = EnginePlans(
            self.scenario, testbed, self.directory, self._record_cgroup, self._surroundings.vcpu_group
        )
        self._mover = Mover(
            testbed, self._watch, self._forecaster, engine_plans, self._notice, surroundings=self._surroundings
        )
        self._mover.move_all()
        if testbed.guests.places():
            self._watch.wait(testbed, self.scenario.run.settle, "letting the flows settle")

    def _warm_up(self, testbed: Testbed) -> None:
        """Let the flows get going; the last part of it also serves for looking at the guests' dirty pages."""
        sample_ns = sample_duration_ns(self.scenario)
        self._watch.wait(testbed, self.scenario.run.warmup - sample_ns, "warming up")
        if sample_ns:
            self._watch.step("sampling the guest's dirty rate")
            self._forecaster.look(testbed, sample_ns, lambda until: self._watch.wait_until(testbed, until))

    def _collect(self, testbed: Testbed, load: LoadSampler, started_at: str) -> RawRun:
        """Stop everything that watches and gather what it saw."""
        seen = self._watch.stop()
        end_ns = now_ns()
        stats, problems = testbed.guests.stats(quiet=self._standing is None)
        surroundings = self._surroundings.stop()
        disks, wrong = testbed.storage.prove(stats) if self._standing is None else ({"disks": {}}, [])
        problems += wrong
        self._watch.stop_frames(seen)
        moves: list[Move] = sorted(self._mover.moves, key=lambda move: move.start_ns) if self._mover else []
        return RawRun(
            title=self.scenario.title,
            started_at=started_at,
            guests=self._guest_facts(testbed),
            addresses=self.plan.addresses,
            end_ns=end_ns,
            verify=self.scenario.migration.verify,
            moves=moves,
            timeline=collect_events(self.directory / "events", testbed.since_ns),
            frames=seen.frames.records,
            interfaces=seen.frames.interfaces,
            flows=collect_flows(
                seen.reports,
                (client for flows in self.plan.flows.values() for client in flows),
                self.directory / "events",
                self._ends,
            ),
            host_ports=testbed.host_ports(),
            links=testbed.links,
            environment={
                **self._environment(testbed, load, stats, moves[0].start_ns if moves else end_ns - NS_PER_S, end_ns),
                **({"storage": disks} if disks["disks"] else {}),
                **({"surroundings": surroundings} if surroundings else {}),
            },
            max_cpu_load=self.scenario.run.max_cpu_load,
            reasons=[
                *(self._mover.reasons if self._mover else ()),
                *problems,
                *self._surroundings.reasons,
                *seen.reasons,
            ],
            interrupted=self._notice.reason,
        )

    def _ends(self, host: str, client: ClientSpec) -> tuple[str, str]:
        """The addresses of a flow's host and of the guest's card that it talks to; empty where nobody knows."""
        if client.kind == "command":
            return "", ""
        here = client_address(self.scenario, self.plan.addresses, host, client.family)
        return here, guest_address(self.scenario, client)

    def _guest_facts(self, testbed: Testbed) -> list[GuestFacts]:
        places = testbed.guests.places()
        return [
            GuestFacts(
                guest.name,
                guest.mac,
                guest.address,
                guest.memory,
                self.plan.homes[guest.name],
                places.get(guest.name),
                _card_facts(guest),
            )
            for guest in self.scenario.guests
        ]

    def _environment(
        self, testbed: Testbed, load: LoadSampler, stats: dict[str, dict[str, Any]], begin_ns: int, end_ns: int
    ) -> dict[str, Any]:
        """What the run ran on, and its guests: ``guest`` is the first one, ``guests`` are all of several."""
        return {
            **environment(),
            "datapath": testbed.datapath,
            "delay": sorted({link.mechanism for link in testbed.links}),
            "controller": testbed.control.name,
            "cpu": load.summary(begin_ns, end_ns),
            "guest": stats.get(self.scenario.guests[0].name, {}),
            **({"guests": stats} if len(self.scenario.guests) > 1 else {}),
        }


def _card_facts(guest: GuestSpec) -> tuple[CardFacts, ...]:
    def bare(text: str | None) -> str:
        return (text or "").partition("/")[0]

    return tuple(
        CardFacts(str(card.mac), bare(card.address), bare(card.address6), card.vlan) for card in guest.all_cards
    )
