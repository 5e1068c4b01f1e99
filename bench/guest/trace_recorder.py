"""Recording which pages a running guest writes, look by look, as a trace (:mod:`bench.memory.trace`).

As :mod:`bench.guest.dirty_rate`: the guest's own ``track`` arms its writers and :mod:`bench.memory.tracker` looks from
outside, but here every look is kept with its time and its pages. Pages that the guest's services write are in it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, GuestError
from bench.guest.client import GuestControl
from bench.memory.bitmap import DirtyBitmap, Pages
from bench.memory.image import PAGE_BYTES
from bench.memory.trace import MAX_LOOKS, MAX_WRITES
from bench.memory.tracker import open_tracker, probe

CONNECT_NS: Final = 10 * NS_PER_S
LEAST_INTERVAL_NS: Final = NS_PER_MS
MOST_DURATION_NS: Final = 3600 * NS_PER_S


def record_trace(
    guest_socket: Path, duration_ns: int, interval_ns: int, wait: Callable[[Deadline], None]
) -> tuple[int, list[tuple[int, Pages]]]:
    """Look every *interval_ns* for *duration_ns*. A look that comes late has its own time, not the one it was due at.

    :param wait: returns when its deadline has passed.
    :returns: the guest's pages, and the looks: (time in ns since the first, pages in ascending order).
    :raises GuestError: duration or interval are out of range, or it becomes more than a trace may hold.
    :raises BenchError: the guest does not answer, or cannot be tracked here.
    """
    if not LEAST_INTERVAL_NS <= interval_ns <= duration_ns <= MOST_DURATION_NS:
        raise GuestError(f"a look every {interval_ns / NS_PER_MS:g} ms for {duration_ns / NS_PER_S:g} s")
    if duration_ns // interval_ns > MAX_LOOKS:
        raise GuestError(f"more than {MAX_LOOKS} looks", "record for a shorter time, or look less often")
    method = probe()
    looks: list[tuple[int, Pages]] = []
    written = 0
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(GuestControl.connect(guest_socket, deadline=Deadline(CONNECT_NS)))
        writers = control.track(True, method)
        stack.callback(_stop_tracking, control, method)
        passed = control.memory()
        stack.callback(_close, passed.fd)
        pages = passed.size_bytes // PAGE_BYTES
        tracker = open_tracker(method, [writer.place for writer in writers], passed.size_bytes)
        stack.callback(tracker.close)
        seen = DirtyBitmap(pages)
        tracker.collect(seen)
        begin_ns = now_ns()
        for number in range(1, duration_ns // interval_ns + 1):
            wait(Deadline(max(0, begin_ns + number * interval_ns - now_ns())))
            seen.clear()
            tracker.collect(seen)
            looks.append((now_ns() - begin_ns, np.flatnonzero(seen.flags).astype(np.int64)))
            written += len(looks[-1][1])
            if written > MAX_WRITES:
                raise GuestError(f"more than {MAX_WRITES} pages written", "record for a shorter time")
    return pages, looks


def _stop_tracking(control: GuestControl, method: str) -> None:
    """A guest that is gone tracks nothing any more."""
    with contextlib.suppress(BenchError):
        control.track(False, method)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
