"""How busy the machine was during a run: /proc/stat ten times a second, and CPU pressure.

Source: proc(5) for ``/proc/stat``, Documentation/accounting/psi.rst for ``/proc/pressure/cpu``. Both speak of the whole
machine, in a sandbox as well.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S, NS_PER_US, now_ns

INTERVAL_NS = 100 * NS_PER_MS
MAX_SAMPLES = 10 * 3600 * 24  # a day; beyond it the oldest are dropped

_STAT = Path("/proc/stat")
_PRESSURE = Path("/proc/pressure/cpu")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
_FIELDS = 8  # user nice system idle iowait irq softirq steal; what follows is counted in user and nice already


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Clock ticks since boot of one CPU, or of all: all there were, those in which it was not idle, those stolen.

    ``busy`` includes ``steal``: time that the hypervisor gave to others is as lost to the run as time that was used.
    """

    total: int
    busy: int
    steal: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one instant.

    :param stalled_ns: how long in all some task has waited for a CPU; None where the kernel does not say (no PSI).
    """

    t_ns: int
    machine: CpuTimes
    cpus: tuple[CpuTimes, ...]
    stalled_ns: int | None


def parse_stat(text: str) -> tuple[CpuTimes, tuple[CpuTimes, ...]]:
    """The whole machine's CPU times and those of each CPU. :raises ValueError: when *text* is not /proc/stat's."""
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    if not rows or rows[0][0] != "cpu":
        raise ValueError("no line for all CPUs in /proc/stat")
    machine, *cpus = (_times([int(field) for field in row[1 : 1 + _FIELDS]]) for row in rows)
    return machine, tuple(cpus)


def _times(fields: list[int]) -> CpuTimes:
    fields += [0] * (_FIELDS - len(fields))
    total = sum(fields)
    return CpuTimes(total, total - fields[_IDLE] - fields[_IOWAIT], fields[_STEAL])


def parse_pressure(text: str) -> int | None:
    """The total of the line "some" in ns; None when there is none."""
    for line in text.splitlines():
        kind, *pairs = line.split()
        if kind == "some":
            for name, _, value in (pair.partition("=") for pair in pairs):
                if name == "total" and value.isdecimal():
                    return int(value) * NS_PER_US
    return None


def take_sample() -> Sample:
    """The state now."""
    t_ns = now_ns()
    machine, cpus = parse_stat(_STAT.read_text(encoding="ascii"))
    try:
        stalled_ns = parse_pressure(_PRESSURE.read_text(encoding="ascii"))
    except OSError:
        stalled_ns = None
    return Sample(t_ns, machine, cpus, stalled_ns)


def summarise(samples: Sequence[Sample], start_ns: int, end_ns: int) -> dict[str, Any]:
    """CPU use in a window: from the last sample before it to the first after it, as far as there are any.

    :returns: shares from 0 to 1: ``mean`` and ``max`` (of the intervals between samples) of the whole machine,
        ``steal``, ``busiest_cpu`` (the highest mean of any one CPU), ``stalled`` (part of the time in which some task
        waited for a CPU; None without PSI); and the numbers ``cpus`` and ``samples``. With fewer than two samples the
        shares are None.
    """
    first = max((n for n, sample in enumerate(samples) if sample.t_ns <= start_ns), default=0)
    last = min((n for n, sample in enumerate(samples) if sample.t_ns >= end_ns), default=len(samples) - 1)
    inside = samples[first : last + 1]
    summary: dict[str, Any] = dict.fromkeys(("mean", "max", "steal", "busiest_cpu", "stalled"))
    summary |= {"cpus": len(samples[-1].cpus) if samples else 0, "samples": len(inside)}
    if len(inside) < 2:
        return summary
    begin, end = inside[0], inside[-1]
    summary["mean"] = _share(begin.machine, end.machine)
    summary["max"] = max(_share(one.machine, two.machine) for one, two in itertools.pairwise(inside))
    ticks = end.machine.total - begin.machine.total
    summary["steal"] = _bounded((end.machine.steal - begin.machine.steal) / ticks) if ticks > 0 else 0.0
    if len(begin.cpus) == len(end.cpus):  # else one went on or off line
        summary["busiest_cpu"] = max(map(_share, begin.cpus, end.cpus), default=None)
    if begin.stalled_ns is not None and end.stalled_ns is not None:
        summary["stalled"] = _bounded((end.stalled_ns - begin.stalled_ns) / (end.t_ns - begin.t_ns))
    return summary


def _share(begin: CpuTimes, end: CpuTimes) -> float:
    ticks = end.total - begin.total
    return _bounded((end.busy - begin.busy) / ticks) if ticks > 0 else 0.0


def _bounded(share: float) -> float:
    """The kernel's counters of idle time may run backwards by a tick."""
    return round(min(1.0, max(0.0, share)), 4)


class LoadSampler:
    """Samples in a thread of its own from :meth:`start` to :meth:`stop`; a context manager."""

    def __init__(self, interval_ns: int = INTERVAL_NS) -> None:
        self._interval_s = interval_ns / NS_PER_S
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LoadSampler:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Take the first sample, and go on."""
        self._samples.append(take_sample())
        self._thread = threading.Thread(target=self._sample, name="load", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._samples.append(take_sample())
            if len(self._samples) > MAX_SAMPLES:
                del self._samples[: MAX_SAMPLES // 10]

    def stop(self) -> None:
        """Take the last sample. Idempotent."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._samples.append(take_sample())

    @property
    def samples(self) -> list[Sample]:
        """A copy of what was sampled so far."""
        return list(self._samples)

    def summary(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        """See :func:`summarise`; while sampling, what is known by now."""
        samples = self.samples
        if self._thread is not None and (not samples or samples[-1].t_ns < end_ns):
            samples.append(take_sample())
        return summarise(samples, start_ns, end_ns)
