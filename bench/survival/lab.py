"""The survival laboratory: every cell of the map is a connection of its own, and all outages run at once.

Runs inside the sandbox. The scenario's network is raised and calibrated, stations are hung onto it, all connections are
made and left to run for a while, then each meets its outage (:mod:`bench.link.blackout`). The map takes as long as its
longest outage and the wait after it, not as long as all of them together.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.analysis.survival import CellSeen, evaluate
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import HostError
from bench.guests import BRIDGE
from bench.host.load import LoadSampler
from bench.host.machine import environment
from bench.plan import Plan
from bench.scenario import Scenario
from bench.survival.cells import Cell, End, Kernel, cells
from bench.survival.result import SurvivalResult
from bench.survival.station import INTERFACE, Place, Station, connect_station, free_addresses, start_station
from bench.testbed import Testbed
from bench.timeline import Event

AHEAD_NS: Final = 300 * NS_PER_MS  # from scheduling the outages to the first of them
APART_NS: Final = 3 * NS_PER_MS  # outages do not begin all at once: the flows' first tries would disturb each other
GRACE_NS: Final = 5 * NS_PER_S
TELL_NS: Final = 5 * NS_PER_S
POLL_NS: Final = 200 * NS_PER_MS
END_NAMES: Final[tuple[End, ...]] = ("client", "guest")


def allowed_ns(outage_ns: int) -> int:
    """How long after its beginning a cell's outage must have had its end: theory says 2 D + R0; timers are coarse."""
    return outage_ns * 23 // 10 + GRACE_NS


class Lab:
    """One map.

    :param run_directory: of the ledger.
    :param output: the result's directory.
    :param progress: called with every event as it comes.
    """

    def __init__(
        self, scenario: Scenario, plan: Plan, run_directory: Path, output: Path, progress: Callable[[Event], None]
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self._directory = run_directory
        self._output = output
        self._progress = progress
        self._cells = cells(scenario.survival, "survival")
        self._pairs: dict[Kernel, dict[End, Station]] = {}
        self._begin_ns: dict[int, int] = {}
        self._done: set[int] = set()
        self._connecting: dict[str, int] = {}
        self.notice = 0

    def run(self) -> SurvivalResult:
        """:raises BenchError: when the testbed or a station cannot be raised, or dies."""
        testbed = Testbed(self.scenario, self.plan, self._directory, self._step)
        with contextlib.ExitStack() as stack:
            stack.callback(testbed.close)
            load = stack.enter_context(LoadSampler())
            testbed.raise_network()
            self._make_stations(stack, testbed)
            self._connect()
            begin_ns = now_ns()
            self._schedule()
            self._await(testbed)
            seen = self._collect()
            result = evaluate(
                self.scenario.survival,
                seen,
                title=self.scenario.title,
                environment={**environment(), "cpu": load.summary(begin_ns, now_ns()), **self._connecting},
                max_cpu_load=self.scenario.run.max_cpu_load,
            )
        result.write(self._output)
        return result

    # before the outages

    def _make_stations(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        kernels = list(dict.fromkeys(cell.variant.kernel for cell in self._cells))
        self._step(f"hanging up {len(kernels)} pairs of stations")
        hypervisor = testbed.hypervisors[self.plan.source]
        client = next(iter(self.plan.clients), None)
        if client is None:
            raise HostError("the topology has no client host", "use one with a host of role 'client'")
        host = testbed.net[client]
        places: dict[End, Place] = {
            "client": Place(client, host.pid, str(host.defaultIntf())),
            "guest": Place(hypervisor.name, hypervisor.pid, BRIDGE),
        }
        subnet = ipaddress.IPv4Network(self.scenario.network.subnet)
        addresses = free_addresses(subnet, {*self.plan.addresses.values(), self.scenario.guest.address})
        for number, kernel in enumerate(kernels):
            self._pairs[kernel] = pair = {}
            for end in END_NAMES:
                log = self._directory / "logs" / f"station.{end}-{number}.log"
                pair[end] = start_station(end, kernel, places[end], number, log)
                stack.callback(pair[end].close)
        for kernel, pair in self._pairs.items():
            for end, station in pair.items():
                connect_station(station, ipaddress.IPv4Interface(f"{next(addresses)}/{self.plan.prefix_length}"))
                settings = {"interface": INTERFACE, "role": end, "retries2": kernel.retries2, "probes": kernel.probes}
                told = station.call("prepare", settings)
                if end == "client":
                    self._connecting = {key: int(value) for key, value in told.items()}

    def _connect(self) -> None:
        self._step(f"making {len(self._cells)} connections")
        spec = self.scenario.survival
        for kernel, pair in self._pairs.items():
            ends = {
                end: [
                    _end(cell, end, spec.interval, spec.size) for cell in self._cells if cell.variant.kernel == kernel
                ]
                for end in ("client", "guest")
            }
            pair["guest"].call("listen", {"ends": ends["guest"]})
            pair["client"].call("connect", {"address": pair["guest"].address, "ends": ends["client"]})
        self._step(f"letting them run for {spec.warmup / NS_PER_S:g} s")
        self._read(Deadline(spec.warmup), lambda: False)

    def _schedule(self) -> None:
        begin_ns = now_ns() + AHEAD_NS
        waits = {cell.number for cell in self._cells if cell.variant.pattern == "connect"}
        for order, cell in enumerate(self._cells):
            self._begin_ns[cell.number] = begin_ns + order * APART_NS
        for kernel, pair in self._pairs.items():
            outages = [
                [cell.number, self._begin_ns[cell.number], self._begin_ns[cell.number] + cell.outage_ns]
                for cell in self._cells
                if cell.variant.kernel == kernel
            ]
            for station in pair.values():
                there = set(station.call("schedule", {"outages": outages})["open"])
                missing = {item[0] for item in outages} - there - waits
                if missing:
                    raise HostError(
                        f"{len(missing)} of {len(outages)} connections of the {station.end} station are not there "
                        f"after the warm-up",
                        "look at its log, or use a longer survival.warmup",
                    )
        longest = max(cell.outage_ns for cell in self._cells)
        self._step(f"{len(self._cells)} outages of up to {longest / NS_PER_S:g} s have begun")

    # while they last

    def _await(self, testbed: Testbed) -> None:
        told = Deadline(TELL_NS)
        last_ns = max(self._begin_ns[cell.number] + allowed_ns(cell.outage_ns) for cell in self._cells)

        def over() -> bool:
            nonlocal told
            testbed.require_alive()
            if told.expired:
                told = Deadline(TELL_NS)
                left_s = max(0, last_ns - now_ns()) / NS_PER_S
                self._step(f"{len(self._done)} of {len(self._cells)} cells done, at most {left_s:.0f} s left")
            waiting = [cell for cell in self._cells if cell.number not in self._done]
            now = now_ns()
            return all(now > self._begin_ns[cell.number] + allowed_ns(cell.outage_ns) for cell in waiting)

        self._read(Deadline(max(0, last_ns - now_ns()) + NS_PER_S), over)

    def _read(self, deadline: Deadline, over: Callable[[], bool]) -> None:
        """Take what the stations say until *over*, or the deadline. :raises ChannelClosed: when one has died."""
        stations = [station for pair in self._pairs.values() for station in pair.values()]
        while not deadline.expired and not over():
            wait_s = min(POLL_NS / NS_PER_S, deadline.remaining_s)
            for channel in select.select([station.channel for station in stations], [], [], wait_s)[0]:
                self._note(channel.receive_ready())

    def _note(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Once one end of a cell has seen its end, the other one need not go on."""
        numbers: set[int] = set()
        for message in messages:
            event = message.get("event") or {}
            if event.get("name") == "cell_done":
                numbers.add(int(event["data"]["number"]))
        numbers -= self._done
        self._done |= numbers
        kernels = {cell.number: cell.variant.kernel for cell in self._cells}
        for kernel in {kernels[number] for number in numbers}:
            mine = [number for number in numbers if kernels[number] == kernel]
            for station in self._pairs[kernel].values():
                station.channel.post("end", {"numbers": mine})

    # after them

    def _collect(self) -> list[CellSeen]:
        self._step("collecting what was seen")
        ends: dict[tuple[str, int], Mapping[str, Any]] = {}
        dropped: dict[tuple[str, int], Sequence[int]] = {}
        for pair in self._pairs.values():
            for end, station in pair.items():
                report = station.call("report", {})
                ends |= {(end, item["number"]): item for item in report["ends"]}
                dropped |= {(end, number): bursts for number, _frames, bursts in report["dropped"]}
        return [
            CellSeen(
                variant=cell.variant,
                outage_ns=cell.outage_ns,
                repeat=cell.repeat,
                begin_ns=self._begin_ns[cell.number],
                ends={end: ends.get((end, cell.number), {}) for end in END_NAMES},
                dropped_ns={end: tuple(dropped.get((end, cell.number), ())) for end in END_NAMES},
                syn_retries=self._connecting.get("syn_retries", 6),
                syn_linear=self._connecting.get("syn_linear_timeouts", 0),
            )
            for cell in self._cells
        ]

    def _step(self, text: str) -> None:
        with contextlib.suppress(OSError, SystemExit):
            self._progress(Event.now("runner", "step", text=text))


def _end(cell: Cell, end: str, interval_ns: int, size: int) -> dict[str, Any]:
    """An end of a cell as its station's ``listen`` or ``connect`` wants it."""
    variant = cell.variant
    keep = variant.keepalive
    return {
        "number": cell.number,
        "pattern": variant.pattern,
        "first": variant.sends_first == end,
        "interval_ns": interval_ns,
        "size": size,
        "congestion": variant.congestion,
        "user_timeout_ns": variant.user_timeout_ns,
        "keepalive": None if keep is None else [keep.idle_ns, keep.interval_ns, keep.count],
    }
