"""The guest at the source, and what a migration does to it: tracked, held back, paused, resumed, ended."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import BenchError
from bench.guest.client import GuestControl, Paused, Pausing
from bench.memory.bitmap import DirtyBitmap
from bench.memory.image import GuestMemory
from bench.memory.tracker import DirtyTracker, open_tracker
from bench.migration.engine import Reporter, log, reason_of
from bench.migration.order import Order
from bench.migration.pages import new_hashes
from bench.migration.storage import has_disks, timeout_of
from bench.migration.throttle import Throttler

CONTROL_NS: Final = 10 * NS_PER_S  # to reach the guest
QUIT_NS: Final = 10 * NS_PER_S


class DepartingGuest:
    """One guest that is to leave. Use as a context: it lets go of the guest, which is not ended by that.

    :ivar pending: pages that the destination does not have yet, as far as known.
    :ivar tracker: None before :meth:`track` and after the end.
    :ivar throttler: None before :meth:`track`.

    :raises BenchError: (constructor) when the guest does not answer.
    """

    def __init__(self, order: Order, report: Reporter) -> None:
        self._order = order
        self._report = report
        self._stack = contextlib.ExitStack()
        self._tracking = False
        self.tracker: DirtyTracker | None = None
        self.throttler: Throttler | None = None
        with contextlib.ExitStack() as stack:
            self.control = GuestControl.connect(order.guest_socket, deadline=Deadline(CONTROL_NS), peer="source guest")
            stack.callback(self.control.close)
            memory = self.control.memory()
            self.memory = GuestMemory.from_fd(memory.fd, memory.size_bytes, writable=False)
            stack.callback(self.memory.close)
            self._stack = stack.pop_all()
        self.memory_bytes = memory.size_bytes
        self.pending = DirtyBitmap(self.memory.page_count)

    def __enter__(self) -> DepartingGuest:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def track(self, method: str) -> None:
        """Note from now on what the guest writes. :param method: of :data:`bench.memory.tracker.TRACKERS`."""
        writers = self.control.track(True, method)
        self._tracking = True
        self.tracker = open_tracker(method, [writer.place for writer in writers], self.memory_bytes)
        self._stack.callback(self.tracker.close)
        order = self._order
        self.throttler = Throttler(self.control, order.levers, self._report, order.guest.get("vcpus", 1))

    def collect(self) -> int:
        """Add to :attr:`pending` what the guest wrote since the last collect. :returns: how many pages that were."""
        assert self.tracker is not None
        return self.tracker.collect(self.pending)

    def begin_pause(self) -> Pausing:
        """From here on the guest stands still, until the handover or :meth:`resume`."""
        pausing = self.control.begin_pause(Deadline(CONTROL_NS + timeout_of(self._order.guest)))
        times = pausing.still()
        self._report("pause_begin", times.get("pause_begin_ns"))
        self._report("paused", times.get("vcpus_stopped_ns"), net_cut_ns=times.get("net_cut_ns"))
        if self.throttler is not None:
            self.throttler.ended(now_ns())
        return pausing

    def end_pause(self, pausing: Pausing) -> Paused:
        """Wait for the device state."""
        paused = pausing.finish()
        self._stack.callback(os.close, paused.fd)
        return paused

    def resume(self) -> tuple[bool, str | None]:
        """Have the paused guest run here again. :returns: whether it does, and who owns it, None if it did not say."""
        try:
            resumed, owner = self.control.resume()
        except (BenchError, OSError) as error:
            log(f"resume: {reason_of(error)}")
            return False, None
        if resumed:
            self._report("resumed_at_source")
        return resumed, owner

    def let_be(self) -> None:
        """The guest stays: nothing of the migration remains in it."""
        self._close_tracker()
        with contextlib.suppress(BenchError, OSError):
            self.control.open_door()
            if self.throttler is not None:
                self.throttler.release()
            if self._tracking:
                self.control.track(False, "pagemap-scan")
            if has_disks(self._order.guest):
                self.control.disks("unmirror")

    def end(self) -> None:
        """It runs at the destination: what is left here goes. :raises BenchError: when it does not answer."""
        self._close_tracker()
        self.control.quit(Deadline(QUIT_NS))
        self._report("source_gone")

    def digest(self) -> str:
        """Of its memory as it is now."""
        hashes = new_hashes(self.memory.page_count, self._order.post_copy)
        hashes.update_range(self.memory.words)
        return hashes.digest()

    def _close_tracker(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None
