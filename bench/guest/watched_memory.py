"""Who writes a guest's memory, and what engines want of these writers: to be tracked, or to wait for missing pages.

The writers are this process, whose services write their store at the end of memory and nothing else, and the vCPUs.
Each maps the memory and has a userfaultfd of its own, so everything is switched on and off for all of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from bench.clock import Deadline
from bench.errors import BenchError, GuestError
from bench.guest.vcpu_client import VCPU_NS, Vcpu
from bench.host.kernel import set_parent_death_signal
from bench.memory.image import GuestMemory
from bench.memory.pager import ExpectedPages, expect_pages
from bench.memory.uffd import WriteTracking, arm_write_tracking

TRACK_METHODS = ("pagemap-scan", "soft-dirty")


class WatchedMemory:
    """The memory of this process' guest; neither tracked nor incomplete at first.

    :param first_page: the first one that this process writes; to look through the others as well would take a guest of
        1 GiB 0.8 ms in the pause.
    """

    def __init__(self, memory: GuestMemory, vcpus: Sequence[Vcpu], first_page: int = 0) -> None:
        self._memory = memory
        self._first_page = first_page
        self._vcpus = vcpus
        self._tracking: WriteTracking | None = None
        self._tracks = ""
        self._expected: ExpectedPages | None = None

    def writers(self) -> list[dict[str, int]]:
        """Every process that writes; this one is the first."""
        own = {"pid": os.getpid(), "base": self._memory.base, "first_page": self._first_page}
        return [own, *({"pid": vcpu.pid, "base": vcpu.base} for vcpu in self._vcpus)]

    # pre-copy

    def track(self, enable: bool, method: str) -> list[dict[str, int]]:
        """:returns: :meth:`writers`. :raises BenchError: when the kernel cannot; tracking is off then."""
        if method not in TRACK_METHODS:
            raise GuestError(f"tracking method {method[:40]!r}; known are {', '.join(TRACK_METHODS)}")
        self.stop_tracking()
        if enable:
            self._tracks = method
            try:
                if method == "pagemap-scan":
                    self._tracking = arm_write_tracking(self._memory.base, self._memory.size_bytes)
                for vcpu in self._vcpus:
                    vcpu.track(True, method, Deadline(VCPU_NS))
            except BenchError:
                self.stop_tracking()
                raise
        return self.writers()

    def stop_tracking(self) -> None:
        """Idempotent."""
        method, self._tracks = self._tracks, ""
        if self._tracking is not None:
            self._tracking.disarm()
            self._tracking = None
        if method:
            for vcpu in self._vcpus:
                vcpu.track(False, method, Deadline(VCPU_NS))

    # post-copy

    def expect(self) -> list[int]:
        """From now on every writer waits for pages that are not there. The engine answers for them: when it dies, so
        does this process, whose guest could not go on without the pages that it holds.

        :returns: their userfaultfds, in the order of :meth:`writers`; they are the caller's.
        :raises BenchError: when the kernel cannot; nobody waits then.
        """
        self.end_expecting()
        fds: list[int] = []
        try:
            set_parent_death_signal(signal.SIGKILL)
            self._expected = expect_pages(self._memory.base, self._memory.size_bytes)
            fds.append(os.dup(self._expected.fd))
            fds.extend(vcpu.expect(True, Deadline(VCPU_NS)) for vcpu in self._vcpus)
        except BaseException:
            for fd in fds:
                os.close(fd)
            self.end_expecting()
            raise
        return fds

    def end_expecting(self) -> None:
        """Every page is there, or none will be missing. Idempotent."""
        if self._expected is None:
            return
        self._expected.end()
        self._expected = None
        for vcpu in self._vcpus:
            vcpu.expect(False, Deadline(VCPU_NS))
        set_parent_death_signal(0)
