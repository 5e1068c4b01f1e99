"""How long a guest's disk requests took, request by request, as events: one for each stretch of time with requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_US

EVENT: Final = "disk_requests"
STRETCH_NS: Final = 100 * NS_PER_MS
MOST_KEPT: Final = 2_000  # of one stretch; beyond that requests are counted only

Record = Callable[..., object]


class LatencyLog:
    """Collects what :meth:`done` is told and hands it to *record* as ``(EVENT, its end, disk, from_ns, latencies_us,
    requests, bytes)``.

    :param disk: its name.
    """

    def __init__(self, disk: str, record: Record) -> None:
        self._disk = disk
        self._record = record
        self._begin_ns = self._end_ns = 0
        self._latencies_us: list[int] = []
        self._requests = self._bytes = 0

    def done(self, begun_ns: int, ended_ns: int, size_bytes: int) -> None:
        """A request that ended well."""
        if self._requests and ended_ns - self._begin_ns > STRETCH_NS:
            self.close()
        if not self._requests:
            self._begin_ns = ended_ns
        self._end_ns = ended_ns
        self._requests += 1
        self._bytes += size_bytes
        if len(self._latencies_us) < MOST_KEPT:
            self._latencies_us.append((ended_ns - begun_ns) // NS_PER_US)

    def close(self) -> None:
        """Hand on what is there, as of the last request's end."""
        if not self._requests:
            return
        data: dict[str, Any] = {"disk": self._disk, "from_ns": self._begin_ns, "latencies_us": self._latencies_us}
        self._record(EVENT, self._end_ns, **data, requests=self._requests, bytes=self._bytes)
        self._latencies_us, self._requests, self._bytes = [], 0, 0
