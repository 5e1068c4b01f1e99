"""Fewer points that look the same: what is drawn is decimated, what is exported is whole. Pure.

Around the switchovers every point is kept (:class:`Detail`); elsewhere each bucket keeps its least and its largest, so
that no spike gets lost (M4's idea: Jugel et al., M4: a visualization-oriented time series data aggregation, VLDB 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.clock import NS_PER_MS
from bench.records import STATUS_UNSENT, StructuredArray
from bench.result import MigrationResult

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

COARSE: Final = 800
FINE: Final = 1_600
LOST: Final = 400
_BEFORE_NS: Final = 100 * NS_PER_MS
_AFTER_NS: Final = 250 * NS_PER_MS
_FINE_BIN_NS: Final = 5 * NS_PER_MS


@dataclass(frozen=True)
class Detail:
    """Stretches of time, in CLOCK_MONOTONIC ns, in order and apart, in which every point is kept."""

    stretches: tuple[tuple[int, int], ...]

    @classmethod
    def around(cls, migrations: Sequence[MigrationResult]) -> Detail:
        """From before each pause until after the last outage."""
        wanted = []
        for one in migrations:
            if one.pause_ns is None:
                continue
            ends = [flow.outage_end_ns for flow in one.flows if flow.outage_end_ns is not None]
            wanted.append((one.pause_ns - _BEFORE_NS, max([one.resume_ns or one.pause_ns, *ends]) + _AFTER_NS))
        apart: list[tuple[int, int]] = []
        for begin, end in sorted(wanted):
            if apart and begin <= apart[-1][1]:
                apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
            else:
                apart.append((begin, end))
        return cls(tuple(apart))

    def within(self, t_ns: Integers) -> npt.NDArray[np.bool_]:
        """Which of *t_ns* lie in a stretch."""
        inside = np.zeros(len(t_ns), np.bool_)
        for begin, end in self.stretches:
            inside |= (t_ns >= begin) & (t_ns < end)
        return inside


def thin(t_ns: Integers, values: Floats, buckets: int) -> Integers:
    """The indices of at most ``2 * buckets`` points of a series in order of time: of each bucket both extremes."""
    count = len(t_ns)
    if count <= 2 * buckets:
        return np.arange(count)
    edges = np.linspace(0, count, buckets + 1).astype(np.int64)
    kept = np.empty(2 * buckets, np.int64)
    for number in range(buckets):
        part = values[edges[number] : edges[number + 1]]
        kept[2 * number] = edges[number] + int(part.argmin())
        kept[2 * number + 1] = edges[number] + int(part.argmax())
    return np.unique(kept)


def keep(t_ns: Integers, values: Floats, detail: Detail) -> Integers:
    """The indices of the points to draw: all in the detail (as far as there is room), extremes elsewhere."""
    inside = detail.within(t_ns)
    fine, coarse = np.flatnonzero(inside), np.flatnonzero(~inside)
    fine = fine[thin(t_ns[fine], values[fine], FINE // 2)]
    coarse = coarse[thin(t_ns[coarse], values[coarse], COARSE // 2)]
    return np.sort(np.concatenate([fine, coarse]))


@dataclass(frozen=True)
class Latencies:
    """Answered requests to draw: when they were sent, how long each took; and when lost ones were sent (thinned).

    :param counts: how many there are in all: answered, lost.
    """

    sent_ns: Integers
    took_ns: Floats
    lost_ns: Integers
    counts: tuple[int, int]


def latencies(records: StructuredArray, detail: Detail) -> Latencies:
    """Of a request/response flow."""
    sent, received = records["sent_ns"], records["received_ns"]
    order = np.argsort(sent, kind="stable")
    sent, received = sent[order], received[order]
    answered = received > 0
    took = (received - sent)[answered].astype(np.float64)
    kept = keep(sent[answered], took, detail)
    lost = sent[~answered]
    chosen = lost if len(lost) <= LOST else lost[np.linspace(0, len(lost) - 1, LOST).astype(np.int64)]
    return Latencies(sent[answered][kept], took[kept], chosen, (int(answered.sum()), len(lost)))


@dataclass(frozen=True)
class Throughput:
    """Bytes that arrived, by bins: their edges (one more than rates) and bit/s within."""

    edges_ns: Integers
    rates_bps: Floats


def throughput(records: StructuredArray, detail: Detail, begin_ns: int, end_ns: int) -> Throughput:
    """What arrived between the two moments, in bins of 5 ms in the detail and wider ones elsewhere."""
    arrived = records["received_ns"]
    good = (arrived > 0) & ((records["status"] & STATUS_UNSENT) == 0)
    when, sizes = arrived[good], records["bytes"][good].astype(np.float64)
    edges = _edges(detail, begin_ns, end_ns)
    if len(edges) < 2:
        return Throughput(edges, np.zeros(0))
    totals, _ = np.histogram(when, bins=edges, weights=sizes)
    return Throughput(edges, totals * 8e9 / np.diff(edges))


def _edges(detail: Detail, begin_ns: int, end_ns: int) -> Integers:
    if end_ns <= begin_ns:
        return np.zeros(0, np.int64)
    width = max(4 * _FINE_BIN_NS, (end_ns - begin_ns) // COARSE)
    coarse = np.arange(begin_ns, end_ns + 1, width, dtype=np.int64)
    stretches = [(max(begin, begin_ns), min(end, end_ns)) for begin, end in detail.stretches]
    stretches = [(begin, end) for begin, end in stretches if begin < end]
    inside = sum(end - begin for begin, end in stretches)
    fine_width = max(_FINE_BIN_NS, inside // FINE)
    parts = [coarse[~_in_any(coarse, stretches)]]
    parts += [np.arange(begin, end, fine_width, dtype=np.int64) for begin, end in stretches]
    return np.unique(np.concatenate(parts))


def _in_any(values: Integers, stretches: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    return Detail(tuple(stretches)).within(values)
