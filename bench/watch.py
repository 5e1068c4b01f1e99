"""Everything that watches a run: frames, captures, the clients. Started in order, heard all the while, then stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.guest_flows import GuestFlows, flow_order
from bench.plan import Plan
from bench.plan_cards import card_addresses, guest_address
from bench.probe.capture import CapturePort, Captures
from bench.probe.clients import ClientAgents, FlowReport
from bench.probe.frames import Frames, FrameWatcher
from bench.probe.switches import SwitchWatch
from bench.scenario import Scenario
from bench.testbed import Testbed
from bench.timeline import Event

POLL_NS: Final = 20 * NS_PER_MS
RECOVERY_NS: Final = 60 * NS_PER_S


@dataclass
class Seen:
    """What was seen, when everything has stopped."""

    reports: list[FlowReport] = field(default_factory=list)
    frames: Frames = field(default_factory=Frames)
    reasons: list[str] = field(default_factory=list)


class Watch:
    """The watchers of one run.

    :param directory: the run directory; *output* the result's.
    :param progress: called with every event, and with every step of the run as one.
    """

    def __init__(
        self, scenario: Scenario, plan: Plan, directory: Path, output: Path, progress: Callable[[Event], None]
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.directory = directory
        self.output = output
        self._progress = progress
        self._frames: FrameWatcher | None = None
        self._captures: Captures | None = None
        self._switches: SwitchWatch | None = None
        self._agents: ClientAgents | None = None
        self._guests_own: GuestFlows | None = None
        self._last_reply_ns: dict[str, int] = {}
        self._dead: set[str] = set()
        clients = [client for flows in plan.flows.values() for client in flows]
        # Nobody knows when a command gets an answer, and an idle connection gets none: nobody waits for those.
        self._silent = {client.name for client in clients if client.kind in ("command", "tcp-idle")}
        self._guest_of = {str(client.name): str(client.guest) for client in clients}

    # starting

    def start_frames(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        """Before any guest runs: the switch ports' frames, and the captures if the scenario wants them."""
        guests = self.scenario.guests
        watcher = FrameWatcher(
            self.directory / "frames.pcap",
            [address for guest in guests for address in card_addresses(guest)],
            [str(card.mac) for guest in guests for card in guest.all_cards],
        )
        stack.callback(watcher.close)
        watcher.start()
        self._frames = watcher
        if self.scenario.run.watch_switches:
            self._start_switches(stack, testbed)
        if self.scenario.run.capture:
            self._start_captures(stack, testbed)

    def _start_switches(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        """Switch state, the neighbour caches of clients and routers, and conntrack where there is a router."""
        log = self.directory / "logs" / "switches.log"
        self._switches = switches = SwitchWatch(self.directory / "events" / "probe.switches.jsonl", log)
        stack.callback(switches.stop)
        routers = {host: testbed.net[host].pid for host in self.plan.routers}
        hosts = {host: testbed.net[host].pid for host in self.plan.flows}
        switches.start(
            [
                {"mac": str(card.mac), "address": text.partition("/")[0]}
                for guest in self.scenario.guests
                for card in guest.all_cards
                for text in (card.address, card.address6)
                if text is not None
            ],
            hosts={**hosts, **routers},
            conntrack=routers,
            **testbed.control.watched(testbed.net.switches),
        )

    def closely(self, on: bool) -> None:
        """A migration goes on, or no longer: what can only be asked for is asked for more often."""
        if self._switches is not None:
            self._switches.closely(on)

    def _start_captures(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        directory = self.output / "captures"
        directory.mkdir()
        self._captures = captures = Captures(directory)
        stack.callback(captures.stop)
        for guest in self.scenario.guests:
            hosts = " or host ".join(card_addresses(guest)).split()
            keep = ("host", *hosts, "or", "arp", "or", "rarp")
            if any(card.vlan or card.address6 for card in guest.all_cards):
                keep = (*keep, "or", "icmp6", "or", "vlan")  # vlan last: what follows it is looked for behind a tag
            for name in self.plan.stations(guest.name):
                hypervisor = testbed.hypervisors[name]
                captures.start(CapturePort(f"{guest.name}@{name}", hypervisor.uplink, hypervisor.pid, keep))

    def start_clients(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        """Once the guests run."""
        self.step("starting the clients")
        directories = self.output / "requests", self.directory / "events", self.directory / "logs"
        self._agents = agents = stack.enter_context(ClientAgents(*directories))
        for host, flows in self.plan.flows.items():
            agents.spawn(host, testbed.net[host].pid)
            addressed = [
                flow_order(flow, guest_address(self.scenario, flow)) for flow in flows if flow.direction == "to-guest"
            ]
            agents.configure(host, self.scenario.guests[0].address, addressed)
        self._guests_own = own = GuestFlows(self.plan, self.directory, self.output / "requests", testbed)
        stack.callback(own.close)
        own.start()
        agents.start(self.on_event)

    # hearing

    def on_event(self, event: Event) -> None:
        """Take in and pass on an event of any process."""
        if event.name == "flow_status" and event.data.get("name") not in self._silent:
            name = str(event.data.get("name"))
            self._last_reply_ns[name] = int(event.data.get("last_reply_ns") or 0)
            if event.data.get("alive") is False:
                self._dead.add(name)
        elif event.name == "flow_started" and self._guests_own is not None:
            self._guests_own.connected(event)
        self._tell(event)

    def step(self, text: str) -> None:
        """Say what the run is doing."""
        self._tell(Event.now("runner", "step", text=text))

    def _tell(self, event: Event) -> None:
        """A closed pipe (for which rich exits) or a terminal that is gone does not end a run."""
        with contextlib.suppress(OSError, SystemExit):
            self._progress(event)

    def poll(self, timeout_ns: int = 0) -> None:
        """Hear what the clients say; waits up to *timeout_ns* for it. :raises ProbeError: when an agent died."""
        if self._agents is not None:
            self._agents.poll(self.on_event, timeout_ns)

    def filenos(self) -> list[int]:
        """What to wait for beside other things: :meth:`poll` has something to do when one can be read."""
        return list(self._agents.filenos()) if self._agents is not None else []

    # waiting

    def wait(self, testbed: Testbed, duration_ns: int, what: str) -> None:
        """Let the run go on for a time that the scenario asks for."""
        self.step(what)
        self.wait_until(testbed, Deadline(max(0, duration_ns)))

    def wait_until(self, testbed: Testbed, deadline: Deadline) -> None:
        """:raises BenchError: when a part of the testbed or a guest dies."""
        while not deadline.expired:
            self.poll(min(POLL_NS, deadline.remaining_ns))
            testbed.require_alive()
            testbed.guests.require_alive()
            self._ask_guests()

    def _ask_guests(self) -> None:
        """How the flows are that the guests run themselves; not while one moves."""
        if self._guests_own is not None:
            for event in self._guests_own.status():
                self.on_event(event)

    def wait_recovered(self, testbed: Testbed, since_ns: int) -> None:
        """Wait, bounded, until every living flow of a living guest has had an answer after *since_ns*."""
        deadline = Deadline(RECOVERY_NS)

        def waiting() -> bool:
            lost = {guest.name for guest in testbed.guests if guest.lost}
            return any(
                last < since_ns
                for name, last in self._last_reply_ns.items()
                if name not in self._dead and self._guest_of.get(name) not in lost
            )

        while waiting() and not deadline.expired:
            self.poll(POLL_NS)
            testbed.require_alive()
            testbed.guests.require_alive()
            self._ask_guests()

    # the end

    def stop(self) -> Seen:
        """Stop everything, the clients first; what was never started has seen nothing."""
        self.step("stopping the clients")
        seen = Seen()
        if self._agents is not None:
            seen.reports = self._agents.stop(self.on_event)
        if self._guests_own is not None:
            seen.reports += self._guests_own.stop()
        return seen

    def stop_frames(self, seen: Seen) -> None:
        """After the clients: add what the frames say to *seen*."""
        if self._frames is not None:
            seen.frames = self._frames.stop()
        if self._captures is not None:
            self._captures.stop()
            seen.reasons += self._captures.reasons
        if self._switches is not None:
            self._switches.stop()
            seen.reasons += self._switches.reasons
        seen.reasons += seen.frames.reasons
