"""Which pages a running guest writes, sampled from outside before any migration, as QEMU's ``calc-dirty-rate`` does.

The guest's own ``track`` arms its writers, and :mod:`bench.memory.tracker` looks at the end of each of many short
intervals: so the sample tells not only how many pages one interval dirties but how many of them come again. Costs the
guest what tracking costs it (a fault at the first write to each page after a look), and is switched off at the end,
also when this process dies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, GuestError
from bench.guest.client import GuestControl
from bench.memory.bitmap import DirtyBitmap, Pages
from bench.memory.image import PAGE_BYTES, GuestMemory
from bench.memory.tracker import DirtyTracker, open_tracker, probe
from bench.memory.zero import zero_pages

INTERVALS: Final = 20
LEAST_INTERVAL_NS: Final = 5 * NS_PER_MS
MOST_SAMPLE_NS: Final = 60 * NS_PER_S
SPANS: Final = (1, 2, 5, 10, 20)  # in intervals
CONNECT_NS: Final = 10 * NS_PER_S
_COUNTED_PAGES: Final = 16_384  # to estimate the share of zero pages: its standard error is below 0.4 %
_BATCH_PAGES: Final = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Distinct pages in stretches of one length: *pages* is the mean over all of them, *duration_ns* their mean."""

    duration_ns: int
    pages: float


@dataclass(frozen=True, slots=True)
class DirtySample:
    """What was seen.

    :param pages: of the guest's memory.
    :param zero_pages: of them; exact for a small guest, else estimated from a random sample.
    :param interval_ns: mean length of an interval.
    :param histogram: element k: pages that were written in exactly k of the intervals; sums to *pages*.
    :param spans: distinct pages in one interval, in two, and so on: the measured dirty curve.
    """

    pages: int
    zero_pages: int
    method: str
    interval_ns: int
    histogram: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def rate_bytes_per_s(self) -> int:
        """Memory that is modified in a second, as the shortest interval shows it."""
        return round(self.spans[0].pages * PAGE_BYTES * NS_PER_S / self.spans[0].duration_ns)


def sample_dirty(
    guest_socket: Path, duration_ns: int, wait: Callable[[Deadline], None], intervals: int = INTERVALS
) -> DirtySample:
    """Track the guest for *duration_ns*, over a control connection of its own.

    :param wait: called with the end of each interval; returns when it has passed.
    :raises GuestError: the duration is out of range.
    :raises BenchError: the guest does not answer, or cannot be tracked here.
    """
    (found,) = sample_together([guest_socket], duration_ns, wait, intervals)
    if isinstance(found, BenchError):
        raise found
    return found


def sample_together(
    guest_sockets: Sequence[Path], duration_ns: int, wait: Callable[[Deadline], None], intervals: int = INTERVALS
) -> list[DirtySample | BenchError]:
    """As :func:`sample_dirty`, of several guests in the same stretch of time.

    :returns: for each its sample, or what kept it from being sampled.
    :raises GuestError: the duration is out of range.
    """
    if not intervals * LEAST_INTERVAL_NS <= duration_ns <= MOST_SAMPLE_NS:
        raise GuestError(
            f"a dirty-rate sample of {duration_ns / NS_PER_MS:g} ms",
            f"{intervals * LEAST_INTERVAL_NS // NS_PER_MS} ms to {MOST_SAMPLE_NS // NS_PER_S} s are allowed",
        )
    method = probe()
    with contextlib.ExitStack() as stack:
        sampled = [_Sampled(stack, path, method, intervals) for path in guest_sockets]
        for one in sampled:
            one.begin()
        begin_ns = now_ns()
        for number in range(1, intervals + 1):
            wait(Deadline(max(0, begin_ns + number * duration_ns // intervals - now_ns())))
            for one in sampled:
                one.end_interval()
        return [one.sample() for one in sampled]


class _Sampled:
    """One guest while it is sampled. What fails is kept: then nothing more is done with it.

    :param stack: tracking ends, and everything is closed, with it.
    """

    def __init__(self, stack: contextlib.ExitStack, guest_socket: Path, method: str, intervals: int) -> None:
        self._method = method
        self._intervals = intervals
        self._problem: BenchError | None = None
        self._tracker: DirtyTracker
        self._seen: _Seen
        self._attempt(lambda: self._open(stack, guest_socket))

    def _open(self, stack: contextlib.ExitStack, guest_socket: Path) -> None:
        control = stack.enter_context(GuestControl.connect(guest_socket, deadline=Deadline(CONNECT_NS)))
        passed = control.memory()
        memory = stack.enter_context(GuestMemory.from_fd(passed.fd, passed.size_bytes, writable=False))
        self._pages, self._zeros = memory.page_count, _count_zero(memory)
        writers = control.track(True, self._method)
        stack.callback(_stop_tracking, control, self._method)
        tracker = open_tracker(self._method, [writer.place for writer in writers], passed.size_bytes)
        stack.callback(tracker.close)
        self._tracker, self._seen = tracker, _Seen(memory.page_count, self._intervals)

    def begin(self) -> None:
        """What was written since tracking began belongs to no interval."""

        def begin() -> None:
            self._tracker.collect(self._seen.now)
            self._seen.begin()

        self._attempt(begin)

    def end_interval(self) -> None:
        """Take in what this one has dirtied."""

        def end() -> None:
            self._tracker.collect(self._seen.now)
            self._seen.end_interval(now_ns())

        self._attempt(end)

    def sample(self) -> DirtySample | BenchError:
        if self._problem is not None:
            return self._problem
        return DirtySample(
            pages=self._pages,
            zero_pages=self._zeros,
            method=self._method,
            interval_ns=self._seen.elapsed_ns // self._intervals,
            histogram=self._seen.histogram(),
            spans=self._seen.spans(),
        )

    def _attempt(self, work: Callable[[], object]) -> None:
        if self._problem is None:
            try:
                work()
            except BenchError as error:
                self._problem = error


def _stop_tracking(control: GuestControl, method: str) -> None:
    """A guest that is gone tracks nothing any more."""
    with contextlib.suppress(BenchError):
        control.track(False, method)


class _Seen:
    """Counts pages over intervals, and distinct pages over stretches of them.

    :ivar now: what the running interval has dirtied.
    """

    def __init__(self, pages: int, intervals: int) -> None:
        self.now = DirtyBitmap(pages)
        self._intervals = intervals
        self._times = np.zeros(pages, dtype=np.uint16)
        self._lengths = [length for length in SPANS if length <= intervals]
        self._unions = [DirtyBitmap(pages) for _ in self._lengths]
        self._found: list[list[int]] = [[] for _ in self._lengths]
        self._ends_ns: list[int] = []

    def begin(self) -> None:
        self.now.clear()
        self._ends_ns = [now_ns()]

    def end_interval(self, at_ns: int) -> None:
        self._ends_ns.append(at_ns)
        self._times += self.now.flags
        for length, union, found in zip(self._lengths, self._unions, self._found, strict=True):
            union.merge(self.now)
            if (len(self._ends_ns) - 1) % length == 0:
                found.append(len(union))
                union.clear()
        self.now.clear()

    @property
    def elapsed_ns(self) -> int:
        return self._ends_ns[-1] - self._ends_ns[0]

    def histogram(self) -> tuple[int, ...]:
        return tuple(np.bincount(self._times, minlength=self._intervals + 1).tolist())

    def spans(self) -> tuple[Span, ...]:
        return tuple(
            Span((self._ends_ns[len(found) * length] - self._ends_ns[0]) // len(found), sum(found) / len(found))
            for length, found in zip(self._lengths, self._found, strict=True)
        )


def _count_zero(memory: GuestMemory) -> int:
    """Zero pages of *memory*: all counted, or estimated from pages picked at random (always the same)."""
    count = memory.page_count
    picked: Pages = np.arange(count, dtype=np.int64)
    if count > _COUNTED_PAGES:
        picked = np.sort(np.random.default_rng(0).integers(0, count, _COUNTED_PAGES))
    zeros = sum(
        int(np.count_nonzero(zero_pages(memory.words[picked[begin : begin + _BATCH_PAGES]])))
        for begin in range(0, len(picked), _BATCH_PAGES)
    )
    return round(zeros * count / len(picked))
