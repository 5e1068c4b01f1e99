"""The survival map by real migrations: for each outage one, whose stop is stretched (``migration.hold``).

One testbed; the guest goes back and forth, once for each outage. Each kind of connection that a client flow can be is a
flow of its own through every migration, and each is set against the same theory as in the laboratory
(:mod:`bench.analysis.survival_moves`). What takes a kernel setting of a whole namespace (``retries2``, ``probes``) and
idle connections are the laboratory's alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from bench.analysis.survival_moves import evaluate_moves
from bench.clock import NS_PER_S
from bench.errors import ProbeError
from bench.flows.tcp_options import TcpOptions, check_supported
from bench.moving.schedule import Order
from bench.plan import Plan
from bench.result import RunResult
from bench.runner import Runner
from bench.scenario import ClientSpec, Scenario, SurvivalSpec
from bench.scenario.clients import TcpSpec
from bench.survival.cells import Variant, base_of, variants
from bench.survival.result import SurvivalResult
from bench.testbed import Testbed
from bench.timeline import Event
from bench.units import format_duration

LONGEST_NS: Final = 25 * NS_PER_S
"""A stall of twice this must end while a run waits for its flows."""


def request_first(spec: SurvivalSpec) -> SurvivalSpec:
    """Requests as the base of all variants: in a stream to the guest it is the guest's kernel that speaks first when it
    leaves TCP_REPAIR, and a client's timers are not what ends its wait.
    """
    patterns = sorted(spec.patterns, key=lambda pattern: pattern != "request")
    return spec.model_copy(update={"patterns": tuple(patterns)})


def flow_of(variant: Variant, name: str, interval_ns: int, size: int) -> ClientSpec | None:
    """The flow that is such a connection; None for what only the laboratory can make."""
    from_guest = variant.sends_first == "guest"
    bulk = "tcp-download" if from_guest else "tcp-upload"
    kind = {"request": "tcp-request", "stream": bulk, "connect": "tcp-connect"}.get(variant.pattern)
    if kind is None:
        return None
    tcp = TcpSpec.model_construct(
        congestion=variant.congestion,
        user_timeout=variant.user_timeout_ns,
        rto_min=0 if variant.kernel.rto_min_ns == 200_000_000 else variant.kernel.rto_min_ns,
    )
    return ClientSpec.model_construct(
        kind=cast("Any", kind),
        name=name,
        direction="from-guest" if from_guest and variant.pattern == "request" else "to-guest",
        think=interval_ns,
        interval=interval_ns,
        size=size,
        rate=size * 8 * NS_PER_S // interval_ns if variant.pattern == "stream" else 0,
        timeout=600 * NS_PER_S,
        tcp=tcp,
    )


def chosen(scenario: Scenario) -> dict[str, tuple[Variant, ClientSpec]]:
    """Flow name -> the variant that it is, and the flow; those that this kernel can make."""
    spec = scenario.survival
    bases = {end: base_of(spec, end) for end in spec.sends_first}
    found: dict[str, tuple[Variant, ClientSpec]] = {}
    for variant in variants(spec):
        base = bases[variant.sends_first]
        if (variant.kernel.retries2, variant.kernel.probes) != (base.kernel.retries2, base.kernel.probes):
            continue
        name = f"cell-{len(found)}"
        flow = flow_of(variant, name, spec.interval, spec.size)
        if flow is not None and _supported(flow):
            found[name] = variant, flow
    return found


def _supported(flow: ClientSpec) -> bool:
    options = TcpOptions(congestion=flow.tcp.congestion, rto_min_ns=flow.tcp.rto_min)
    try:
        check_supported(options, str(flow.name))
    except ProbeError:
        return False
    return True


class MoveLab:
    """One map; parameters as of :class:`bench.survival.lab.Lab`.

    :param make_plan: of a scenario, once.
    """

    def __init__(
        self,
        scenario: Scenario,
        make_plan: Callable[[Scenario], Plan],
        run_directory: Path,
        output: Path,
        progress: Callable[[Event], None],
    ) -> None:
        scenario = scenario.model_copy(update={"survival": request_first(scenario.survival)})
        self._flows = chosen(scenario)
        clients = tuple(flow for _variant, flow in self._flows.values())
        run = scenario.run.model_copy(update={"warmup": scenario.survival.warmup, "settle": NS_PER_S // 2, "repeat": 1})
        self._scenario = scenario.model_copy(update={"clients": clients, "run": run})
        self._plan = make_plan(self._scenario)
        self._directory = run_directory
        self._output = output
        self._progress = progress

    def run(self) -> SurvivalResult:
        """:raises BenchError: when the testbed cannot be raised, or a part of it dies."""
        spec = self._scenario.survival
        outages = [outage for outage in spec.outages if outage <= LONGEST_NS]
        testbed = Testbed(self._scenario, self._plan, self._directory, self._step)
        runs: list[tuple[int, int, RunResult]] = []
        with contextlib.closing(testbed):
            testbed.raise_network()
            testbed.boot_guests()
            runs += [
                (outage_ns, repeat, self._move(testbed, outage_ns, repeat))
                for repeat in range(spec.repeats)
                for outage_ns in outages
            ]
        labels = {
            name: f"{variant.sends_first}: {variant.label(base_of(spec, variant.sends_first))}"
            for name, (variant, _flow) in self._flows.items()
        }
        result = evaluate_moves(
            runs,
            {name: variant for name, (variant, _flow) in self._flows.items()},
            labels,
            interval_ns=spec.interval,
            title=self._scenario.title,
        )
        result.write(self._output)
        return result

    def _move(self, testbed: Testbed, outage_ns: int, repeat: int) -> RunResult:
        """One migration that lasts so much longer."""
        guest = self._scenario.guests[0].name
        here = testbed.guests.places()[guest]
        there = next(name for name in self._plan.hypervisors if name != here)
        migration = self._scenario.migration.model_copy(update={"hold": outage_ns})
        scenario = self._scenario.model_copy(update={"migration": migration})
        plan = replace(self._plan, homes=testbed.guests.places(), orders=(Order(guest, there),))
        for part in (testbed, testbed.guests):
            part.scenario, part.plan = scenario, plan
        output = self._output / f"{format_duration(outage_ns).replace(' ', '')}-{repeat + 1}"
        output.mkdir()
        self._step(f"a migration whose stop is stretched by {format_duration(outage_ns)}")
        return Runner(scenario, plan, testbed.directory, output, self._progress, testbed=testbed).run()

    def _step(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._progress(Event.now("survival", "step", text=text))
