"""Looking at the guest of a testbed before it moves, so that its migration can be predicted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.analysis.dirty_rate import fit
from bench.analysis.forecast import Forecast, forecast, path_of
from bench.analysis.model import PAGE_BYTES, DirtyCurve
from bench.clock import NS_PER_MS, Deadline
from bench.errors import BenchError, HostError
from bench.guest.dirty_rate import INTERVALS, LEAST_INTERVAL_NS, DirtySample, sample_dirty
from bench.plan import Plan
from bench.scenario import ClientSpec, Scenario
from bench.testbed import Testbed, raised

SAMPLE_NS: Final = 500 * NS_PER_MS
LONGER: Final = (2, 5, 10)  # times the sample: how far the model is shown beyond what was seen


def sample_duration_ns(scenario: Scenario) -> int:
    """How much of the warm-up goes into the sample; 0 when there shall be none, or there is too little warm-up."""
    duration_ns = min(SAMPLE_NS, scenario.run.warmup)
    return duration_ns if scenario.run.predict and duration_ns >= INTERVALS * LEAST_INTERVAL_NS else 0


class Forecaster:
    """Samples the guest once and predicts each migration from that.

    :ivar sample: what was seen; None before :meth:`look`, and when that failed.
    """

    def __init__(self, scenario: Scenario, plan: Plan) -> None:
        self._scenario = scenario
        self._plan = plan
        self._curve = DirtyCurve()
        self._connections = 0
        self._problem = ""
        self.sample: DirtySample | None = None

    def look(self, testbed: Testbed, duration_ns: int, wait: Callable[[Deadline], None]) -> None:
        """Sample the guest's dirty pages. What fails is told by the forecasts: a run can do without them.

        :param wait: see :func:`bench.guest.dirty_rate.sample_dirty`.
        """
        try:
            self.sample = sample_dirty(_guest_socket(testbed), duration_ns, wait)
            assert testbed.guest is not None
            self._connections = int(testbed.guest.control.stats().get("connections") or 0)
            self._curve = fit(self.sample.histogram, self.sample.interval_ns)
        except BenchError as error:
            self.sample = None
            self._problem = f"the guest's dirty rate could not be sampled: {error.message}"

    def forecast(self, testbed: Testbed, source: str, destination: str) -> Forecast | None:
        """The prediction of a migration; None when nobody looked."""
        migration = self._scenario.migration
        if self.sample is None:
            return Forecast(migration.mode, None, None, note=self._problem) if self._problem else None
        return forecast(
            migration.mode,
            path_of(testbed.links, self._plan.path(source, destination)),
            self._curve,
            pages=self.sample.pages,
            zero_pages=self.sample.zero_pages,
            limits={
                "downtime_limit_ns": _limit_ns(migration.downtime_limit),
                "max_rounds": migration.max_rounds,
                "max_time_ns": migration.max_time,
                "max_bandwidth_bps": migration.max_bandwidth,
            },
            precopy_rounds=getattr(migration, "precopy_rounds", 1),
            connections=self._connections,
            background_bps=sum(_leaving_bps(client) for client in self._scenario.clients),
            dirty_bytes_per_s=self.sample.rate_bytes_per_s,
        )


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
    scenario: Scenario, plan: Plan, directory: Path, duration_ns: int, notify: Callable[[str], None]
) -> DirtySample:
    """Raise a testbed without calibration and clients, let its guest work for the warm-up, and sample it.

    To be called in a sandbox. :raises BenchError: what could not be raised or sampled.
    """
    bare = scenario.model_copy(update={"calibration": scenario.calibration.model_copy(update={"enabled": False})})

    def wait(until: Deadline) -> None:
        time.sleep(until.remaining_s)  # a stretch of a stated length; nothing else happens here

    with raised(bare, plan, directory, notify) as testbed:
        notify("letting the guest work")
        wait(Deadline(scenario.run.warmup))
        notify("sampling its dirty pages")
        return sample_dirty(_guest_socket(testbed), duration_ns, wait)


def _leaving_bps(client: ClientSpec) -> int:
    """What a paced download takes of the way out of the guest's host; one without a rate takes what it can get."""
    return client.rate if client.kind == "tcp-download" else 0


def _limit_ns(downtime_limit: object) -> int | None:
    """None for a limit that is no duration: ``min``."""
    return downtime_limit if isinstance(downtime_limit, int) else None


def _guest_socket(testbed: Testbed) -> Path:
    if testbed.guest is None:
        raise HostError("no guest runs, so none can be sampled")
    return testbed.guest.socket_path
