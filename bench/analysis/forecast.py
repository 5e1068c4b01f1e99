"""From a dirty sample, the links' calibration and a scenario to a prediction; afterwards it beside measurement.

Pure. The model itself is :mod:`bench.analysis.model`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.analysis import model
from bench.analysis.model import Inputs, Prediction
from bench.clock import NS_PER_MS
from bench.result import BoundResult, EfficiencyResult, LinkResult, PredictedResult, PredictionResult, RoundResult

# What a pause costs beside the link, as the bench's own engine and guests do it: stopping the vCPUs, cutting the
# network, dumping and loading connections and resuming; from the reference scenario, within a factor of two.
PAUSE_NS: Final = 4 * NS_PER_MS
CONNECTION_NS: Final = NS_PER_MS // 2
ROUND_NS: Final = NS_PER_MS
DEVICE_BYTES: Final = 8 << 10
CONNECTION_BYTES: Final = 4 << 10


@dataclass(frozen=True, slots=True)
class Path:
    """The way of the migration through the network.

    :param frame_rate_bps: of its slowest link, as calibrated, or as asked when that was not measured; None: unshaped.
    :param measured: whether the rate was measured.
    :param most_bps: what its slowest link is shaped to, or was seen to carry if that was more. A short calibration on a
        busy machine sees less than a link can carry: good enough to predict from, but no bound.
    :param least_round_trip_ns: the shortest that was seen, or else asked.
    :param mtu: the largest packet that all its links carry.
    """

    frame_rate_bps: int | None
    round_trip_ns: int
    measured: bool = False
    most_bps: int = 0
    least_round_trip_ns: int = 0
    mtu: int = model.MTU_BYTES


@dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction and what it was made from. *inputs* None: not possible, and *note* says why."""

    mode: str
    inputs: Inputs | None
    prediction: Prediction | None
    path: Path = Path(None, 0)
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""


def path_of(links: Sequence[LinkResult], nodes: Sequence[str]) -> Path:
    """The way along *nodes* (from the source's host to the destination's), as the calibration saw its links.

    The round trip is what was asked of all links, and what the calibration's paths over them took beyond that.
    """
    by_name = {link.name: link for link in links}
    rates: list[tuple[int, bool]] = []
    most: list[int] = []
    asked_ns = 0
    beyond_ns: list[int] = []
    least_ns: list[int] = []
    mtus: list[int] = []
    for first, second in itertools.pairwise(nodes):
        reverse = f"{first}-{second}" not in by_name
        link = by_name.get(f"{second}-{first}" if reverse else f"{first}-{second}")
        if link is None:
            continue
        key = "backward" if reverse else "forward"
        asked_ns += sum(int(link.asked.get(way, {}).get("delay_ns") or 0) for way in ("forward", "backward"))
        asked_bps = int(link.asked.get(key, {}).get("rate_bps") or 0)
        measured_bps = int(link.measured.get(key, {}).get("rate_bps") or 0)
        mtus.append(int(link.asked.get(key, {}).get("mtu") or model.MTU_BYTES))
        if asked_bps:
            rates.append((measured_bps or asked_bps, bool(measured_bps)))
            most.append(max(measured_bps, asked_bps))
        round_trip = link.measured.get("round_trip", {})
        if round_trip:
            beyond_ns.append(int(round_trip["median_ns"]) - int(round_trip["asked_ns"]))
            least_ns.append(int(round_trip["minimum_ns"]) - int(round_trip["asked_ns"]))
    slowest = min(rates, default=None)
    return Path(
        frame_rate_bps=slowest[0] if slowest else None,
        round_trip_ns=asked_ns + max(0, min(beyond_ns, default=0)),
        measured=bool(slowest and slowest[1]),
        most_bps=min(most, default=0),
        least_round_trip_ns=asked_ns + max(0, min(least_ns, default=0)),
        mtu=min(mtus, default=model.MTU_BYTES),
    )


def sharers(way: Sequence[str], others: Iterable[Sequence[str]]) -> int:
    """How many of the ways *others* (node by node) go over the busiest link of *way* in the same direction.

    *way* itself is one of them.
    """
    hops = [list(itertools.pairwise(other)) for other in others]
    return max([1, *(sum(hop in other for other in hops) for hop in itertools.pairwise(way))])


def forecast(
    mode: str,
    path: Path,
    curve: model.DirtyCurve,
    *,
    pages: int,
    zero_pages: int,
    limits: Mapping[str, Any],
    connections: int,
    precopy_rounds: int = 1,
    background_bps: int = 0,
    dirty_bytes_per_s: int | None = None,
    sharers: int = 1,
    levers: model.Levers | None = None,
    unknown: Sequence[str] = (),
) -> Forecast:
    """Predict a migration.

    :param limits: ``downtime_limit_ns`` (None: as little as possible), ``max_rounds``, ``max_time_ns`` and
        ``max_bandwidth_bps``.
    :param connections: TCP connections of the guest, each of which adds to device state and pause.
    :param background_bps: what clients take of the link in the migration's direction.
    :param dirty_bytes_per_s: what was measured, to be shown.
    :param sharers: migrations that go over the same link at the same time, this one included: each is expected to get
        its even share of what the clients leave.
    :param levers: what they will do; None: nothing but find zero pages.
    :param unknown: levers that are on and of which nothing can be known beforehand, to be named.
    """
    levers = levers or model.Levers()
    if path.frame_rate_bps is None:
        return Forecast(mode, None, None, note="the path is unshaped: there is no bandwidth to predict from")
    goodput = model.goodput_bps(path.frame_rate_bps, path.mtu)
    inputs = Inputs(
        pages=pages,
        zero_pages=zero_pages,
        curve=curve,
        goodput_bps=max(goodput - background_bps, goodput / 10) / max(1, sharers),
        round_trip_ns=path.round_trip_ns,
        device_bytes=DEVICE_BYTES + connections * CONNECTION_BYTES,
        fixed_ns=PAUSE_NS + connections * CONNECTION_NS,
        round_ns=ROUND_NS,
        precopy_rounds=precopy_rounds,
        levers=levers,
        **{name: limits[name] for name in ("downtime_limit_ns", "max_rounds", "max_time_ns", "max_bandwidth_bps")},
    )
    shown = {
        "mode": mode,
        "memory_bytes": pages * model.PAGE_BYTES,
        "zero_pages": zero_pages,
        "dirty_bytes_per_s": round(curve.writes_per_s * model.PAGE_BYTES)
        if dirty_bytes_per_s is None
        else dirty_bytes_per_s,
        "working_set_bytes": round(curve.working_set_pages * model.PAGE_BYTES),
        "dirty_classes": [dataclasses.asdict(item) for item in curve.classes],
        "frame_rate_bps": path.frame_rate_bps,
        "frame_rate_measured": path.measured,
        "background_bps": background_bps,
        "sharers": sharers,
        "goodput_bps": round(inputs.goodput_bps),
        "bound_goodput_bps": round(model.goodput_bps(path.most_bps or path.frame_rate_bps, path.mtu)),
        "round_trip_ns": inputs.round_trip_ns,
        "bound_round_trip_ns": path.least_round_trip_ns,
        "downtime_limit_ns": inputs.downtime_limit_ns,
        "max_bandwidth_bps": inputs.max_bandwidth_bps,
        "device_bytes": inputs.device_bytes,
        "fixed_ns": inputs.fixed_ns,
        "round_ns": inputs.round_ns,
        "socket_bytes": inputs.socket_bytes,
        "levers": dataclasses.asdict(levers),
    }
    prediction = model.predict(inputs, mode)
    notes = [] if prediction is not None else [f"there is no model of mode {mode!r}"]
    if prediction is not None and unknown:
        notes.append(f"predicted as if without {', '.join(unknown)}: what that does is known only afterwards")
    if prediction is not None and sharers > 1:
        notes.append(
            f"{sharers} migrations share a link of the way: each is predicted as if it had 1/{sharers} of it from its "
            "beginning to its end, the bound as if it were alone"
        )
    return Forecast(mode, inputs, prediction, path, shown, "; ".join(notes))


def compare(
    made: Forecast,
    rounds: Sequence[RoundResult],
    *,
    bytes_sent: int | None,
    transfer_ns: int | None,
    downtime_ns: int | None,
    device_bytes: int | None = None,
) -> PredictionResult:
    """Prediction, lower bound and efficiency of one migration.

    The bound takes the pages that turned out: those of the first round that were not zero, and those that were sent
    while the guest was paused; before there are any (it did not complete) those that were predicted. It takes the link
    as it is shaped, not as it was seen to carry, and none of it for the clients: less than that no engine can need.

    :param bytes_sent, transfer_ns, downtime_ns: as measured; None when it did not complete.
    """
    if made.inputs is None:
        return PredictionResult(transfer_ns=transfer_ns, inputs=dict(made.shown), note=made.note)
    bound = _bound(made, rounds, device_bytes)
    return PredictionResult(
        predicted=_predicted(made.prediction),
        bound=bound,
        efficiency=EfficiencyResult(
            bytes=_share(bound.bytes, bytes_sent),
            total=_share(bound.total_ns, transfer_ns),
            downtime=_share(bound.downtime_ns, downtime_ns),
        ),
        transfer_ns=transfer_ns,
        inputs=dict(made.shown),
        note=made.note,
    )


def _predicted(prediction: Prediction | None) -> PredictedResult | None:
    if prediction is None:
        return None
    return PredictedResult(
        rounds=prediction.rounds,
        bytes=prediction.bytes,
        total_ns=prediction.total_ns,
        downtime_ns=prediction.downtime_ns,
        converged=prediction.converged,
    )


def _bound(made: Forecast, rounds: Sequence[RoundResult], device_bytes: int | None) -> BoundResult:
    inputs = made.inputs
    assert inputs is not None
    pages_once = float(inputs.pages - inputs.zero_pages)
    still: float | None = None if made.prediction is None else made.prediction.pause_pages
    if rounds:
        if rounds[0].pages == inputs.pages:  # a whole pass over memory
            pages_once = rounds[0].pages - rounds[0].zero_pages
        still = sum(item.pages - item.zero_pages for item in rounds if item.paused)
    state_bytes = inputs.device_bytes if device_bytes is None else device_bytes
    goodput = model.goodput_bps(made.path.most_bps or made.path.frame_rate_bps or 0, made.path.mtu)
    least = model.lower_bound(pages_once, still or 0, state_bytes, goodput, made.path.least_round_trip_ns)
    return BoundResult(
        bytes=least.bytes, total_ns=least.total_ns, downtime_ns=None if still is None else least.downtime_ns
    )


def _share(least: int | None, measured: int | None) -> float | None:
    return None if least is None or not measured else least / measured
