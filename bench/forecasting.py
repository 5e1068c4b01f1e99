"""Looking at the guests of a testbed before they move, so that their migrations can be predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.analysis.dirty_rate import fit
from bench.analysis.forecast import Forecast, forecast, path_of, sharers
from bench.analysis.model import PAGE_BYTES, DirtyCurve, Levers
from bench.clock import NS_PER_MS, Deadline
from bench.errors import BenchError, MemoryTrackingError
from bench.guest.dirty_rate import INTERVALS, LEAST_INTERVAL_NS, DirtySample, sample_dirty, sample_together
from bench.guests import RunningGuest
from bench.memory.image import GuestMemory
from bench.migration.compressibility import sample_compression
from bench.migration.compression import load_codec
from bench.plan import Plan
from bench.scenario import ClientSpec, MigrationSpec, Scenario
from bench.surroundings import at_work, wait
from bench.testbed import Testbed

SAMPLE_NS: Final = 500 * NS_PER_MS
LONGER: Final = (2, 5, 10)  # times the sample: how far the model is shown beyond what was seen


def sample_duration_ns(scenario: Scenario) -> int:
    """How much of the warm-up goes into the sample; 0 when there shall be none, or there is too little warm-up."""
    duration_ns = min(SAMPLE_NS, scenario.run.warmup)
    return duration_ns if scenario.run.predict and duration_ns >= INTERVALS * LEAST_INTERVAL_NS else 0


@dataclass(frozen=True, slots=True)
class _Looked:
    """What is known of a guest: its sample, or why there is none."""

    sample: DirtySample | None
    curve: DirtyCurve = field(default_factory=DirtyCurve)
    levers: Levers = field(default_factory=Levers)
    connections: int = 0
    problem: str = ""


class Forecaster:
    """Samples each guest once and predicts each migration from that."""

    def __init__(self, scenario: Scenario, plan: Plan) -> None:
        self._scenario = scenario
        self._plan = plan
        self._looked: dict[str, _Looked] = {}

    def look(self, testbed: Testbed, duration_ns: int, wait: Callable[[Deadline], None]) -> None:
        """Sample the dirty pages of every guest that is to move, all in the same stretch of time. What fails is told by
        the forecasts: a run can do without them.

        :param wait: see :func:`bench.guest.dirty_rate.sample_dirty`.
        """
        names = list(dict.fromkeys(order.guest for order in self._plan.orders))
        guests = [testbed.guests[name] for name in names]
        try:
            samples = sample_together([guest.socket_path for guest in guests], duration_ns, wait)
        except MemoryTrackingError as error:  # nothing can be tracked here
            samples = [error] * len(guests)
        migration = self._scenario.migration
        self._looked = {
            guest.name: _look(guest, sample, migration) for guest, sample in zip(guests, samples, strict=True)
        }

    def forecast(
        self, testbed: Testbed, guest: str, source: str, destination: str, running: Sequence[tuple[str, str]]
    ) -> Forecast | None:
        """The prediction of a migration; None when nobody looked.

        :param running: source and destination of every migration that goes on at the same time, this one included.
        """
        migration = self._scenario.migration
        looked = self._looked.get(guest)
        if looked is None:
            return None
        sample = looked.sample
        if sample is None:
            return Forecast(migration.mode, None, None, note=looked.problem)
        way = self._plan.migration_path(source, destination)
        apart = way != self._plan.path(source, destination)
        return forecast(
            migration.mode,
            path_of(testbed.links, way),
            looked.curve,
            pages=sample.pages,
            zero_pages=sample.zero_pages,
            limits={
                "downtime_limit_ns": _limit_ns(migration.downtime_limit),
                "max_rounds": migration.max_rounds,
                "max_time_ns": migration.max_time,
                "max_bandwidth_bps": migration.max_bandwidth,
            },
            precopy_rounds=getattr(migration, "precopy_rounds", 1),
            connections=looked.connections,
            background_bps=0
            if apart
            else sum(self._leaving_bps(name) for name, host in testbed.guests.places().items() if host == source),
            dirty_bytes_per_s=sample.rate_bytes_per_s,
            sharers=sharers(way, [self._plan.migration_path(*ends) for ends in running]),
            levers=looked.levers,
            unknown=_unknown(migration),
        )

    def _leaving_bps(self, guest: str) -> int:
        """What the bulk that a guest sends takes of the way out of its host."""
        flows = (flow for flows in self._plan.flows_of(guest).values() for flow in flows)
        return sum(_leaving_bps(flow) for flow in flows)


def _look(guest: RunningGuest, sample: DirtySample | BenchError, migration: MigrationSpec) -> _Looked:
    try:
        if isinstance(sample, BenchError):
            raise sample
        connections = int(guest.control.stats().get("connections") or 0)
        return _Looked(sample, fit(sample.histogram, sample.interval_ns), _levers(guest, migration), connections)
    except BenchError as error:
        return _Looked(None, problem=f"the guest's dirty rate could not be sampled: {error.message}")


def _levers(guest: RunningGuest, migration: MigrationSpec) -> Levers:
    """What can be said of them now. :raises BenchError: when the guest does not answer."""
    levers = Levers(find_zeros=migration.zero_pages, dirty_bytes_per_s=migration.dirty_limit * max(1, guest.spec.vcpus))
    codec = load_codec(migration.compression, migration.compression_level, migration.compression_threads)
    if codec is None:
        return levers
    shared = guest.control.memory()
    with GuestMemory.from_fd(shared.fd, shared.size_bytes, writable=False) as memory:
        found = sample_compression(memory.words, codec, find_zeros=migration.zero_pages)
    return dataclasses.replace(levers, wire_share=found.wire_share, work_bps=found.bytes_per_s * 8)


def _unknown(migration: MigrationSpec) -> list[str]:
    """Levers that are on and that nobody can know anything of before: in words."""
    throttles = migration.auto_converge or migration.on_no_convergence == "throttle"
    told = {"delta": migration.delta_cache, "throttling": throttles, migration.security.upper(): _secured(migration)}
    return [name for name, on in told.items() if on]


def _secured(migration: MigrationSpec) -> bool:
    return migration.security != "none"


def describe(sample: DirtySample) -> dict[str, Any]:
    """A sample and the curve that it gives, as ``bench dirty-rate --json`` prints it."""
    curve = fit(sample.histogram, sample.interval_ns)
    intervals = len(sample.histogram) - 1
    sample_ns = sample.interval_ns * intervals
    seen: list[tuple[int, float | None]] = [(span.duration_ns, span.pages) for span in sample.spans]
    seen += [(sample_ns * times, None) for times in LONGER]
    return {
        "dirty_bytes_per_s": sample.rate_bytes_per_s,
        "working_set_bytes": round(curve.working_set_pages * PAGE_BYTES),
        "pages": sample.pages,
        "zero_pages": sample.zero_pages,
        "sample_ns": sample_ns,
        "intervals": intervals,
        "interval_ns": sample.interval_ns,
        "method": sample.method,
        "histogram": list(sample.histogram),
        "spans": [
            {"duration_ns": duration_ns, "pages": pages, "model_pages": curve.pages_in(duration_ns)}
            for duration_ns, pages in seen
        ],
        "classes": [{"pages": item.pages, "rate_per_s": item.rate_per_s} for item in curve.classes],
    }


def measure(
    scenario: Scenario,
    plan: Plan,
    directory: Path,
    duration_ns: int,
    notify: Callable[[str], None],
    record_cgroup: Callable[[Path], Path] | None = None,
) -> DirtySample:
    """Raise a testbed without calibration and clients, let its guests work for the warm-up, and sample the first one.

    :param record_cgroup: notes in the ledger a control group that is about to be made.

    To be called in a sandbox. :raises BenchError: what could not be raised or sampled.
    """
    with at_work(scenario, plan, directory, record_cgroup, notify) as testbed:
        notify("sampling its dirty pages")
        return sample_dirty(testbed.guests[scenario.guests[0].name].socket_path, duration_ns, wait)


def _leaving_bps(client: ClientSpec) -> int:
    """What a paced flow with its data from the guest takes of the way out; one without a rate takes what it can get."""
    from_guest = ("tcp-upload", "udp-stream") if client.direction == "from-guest" else ("tcp-download",)
    return client.rate if client.kind in from_guest else 0


def _limit_ns(downtime_limit: object) -> int | None:
    """None for a limit that is no duration: ``min``."""
    return downtime_limit if isinstance(downtime_limit, int) else None
