"""What a lever costs: the ``cost`` of the source's ``finished`` event, which becomes the result's.

One object per lever that was on, each with what it saved on the wire and what it took, as far as it applies::

    zero_pages   {pages, saved_bytes, cpu_ns, time_ns}
    compression  {codec, level, threads, pages, plain_pages, input_bytes, output_bytes, saved_bytes, cpu_ns, time_ns}
    delta        {cache_bytes, pages, hits, misses, overflows, refused, hit_rate, input_bytes, output_bytes,
                 saved_bytes, cpu_ns, time_ns}
    streams      {count, joined_ns, bytes, pages, retransmits, window_limited_ns: each a list, one of each stream}
    throttle, dirty_limit                                                          see bench.migration.throttle
    max_bandwidth {limit_bps, time_ns}                                             waited so as to keep to it
    announce_delay {time_ns}                                                       how much later it began
    unpacking    {cpu_ns, time_ns}                                                 at the destination
    security     {carrier, connections, handshake_ns, wire_bytes, overhead_bytes, cpu_ns, time_ns,
                 destination: {cpu_ns, refused}}                                   of TLS and SSH

``handshake_ns`` is that of the first connection, from TCP on; ``overhead_bytes`` are those of ``wire_bytes`` that are
no frames; ``cpu_ns`` counts encrypting alone for TLS, the whole tunnel (the pump here, the sshd there) for SSH.

``postcopy``, of pages that crossed after the switchover, see :mod:`bench.migration.driver`. ``cpu_ns`` is the time of
all processors, threads of a library included; ``time_ns`` is how long the engine waited. What streams gain is time,
which only a run with another number of them shows; ``window_limited_ns``, how long a stream's receive window was full,
says whether more of them could.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.clock import now_ns

COUNTED: Final = ("pages", "saved_bytes", "cpu_ns", "time_ns")


class Meter:
    """Adds up the time spent inside ``with meter:``; not reentrant."""

    def __init__(self) -> None:
        self.cpu_ns = 0
        self.time_ns = 0
        self._cpu_begin_ns = 0
        self._begin_ns = 0

    def __enter__(self) -> None:
        self._cpu_begin_ns = time.process_time_ns()
        self._begin_ns = now_ns()

    def __exit__(self, *_exc: object) -> None:
        self.time_ns += now_ns() - self._begin_ns
        self.cpu_ns += time.process_time_ns() - self._cpu_begin_ns

    def to_json(self) -> dict[str, int]:
        return {"cpu_ns": self.cpu_ns, "time_ns": self.time_ns}


def added(costs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Costs of several senders as one: of levers that more than one had, what is counted is added up."""
    total: dict[str, dict[str, Any]] = {}
    for cost in costs:
        for lever, item in cost.items():
            so_far = total.setdefault(lever, {})
            for key, value in item.items():
                so_far[key] = so_far[key] + value if key in so_far and key in COUNTED else value
    return total


def unpacking(told: object) -> dict[str, Any]:
    """The destination's part, as READY told it; nothing when it took no time or made no sense."""
    if not isinstance(told, dict):
        return {}
    meter = {key: told.get(key) for key in ("cpu_ns", "time_ns")}
    if not all(isinstance(value, int) for value in meter.values()) or not any(meter.values()):
        return {}
    return {"unpacking": meter}
