"""udp-stream: one-way datagrams at a rate; the guest's sink notes what arrives (:mod:`bench.flows.datagram`).

Schedule: datagram *k* is due at ``start + k * interval``, by a periodic timerfd; below :data:`~datagram.MIN_TICK_NS`
several leave together. What this process was too late for by more than that is skipped and counted. A record is what
was sent; :mod:`bench.collect` adds what arrived.
"""

from __future__ import annotations

import socket
from typing import Any

from bench.clock import now_ns
from bench.flows import datagram
from bench.flows.notes import flow_number
from bench.probe.flows.base import Flow
from bench.probe.loop import Periodic
from bench.records import STATUS_UNSENT


class UdpStreamFlow(Flow):
    """See the module."""

    kind = "udp-stream"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rate_bps = self.spec.rate_bps
        self._interval_ns = datagram.interval_ns(self.spec.size, rate_bps) if rate_bps else self.spec.interval_ns
        self._number = flow_number(self.spec.name)
        self._sock: socket.socket | None = None
        self._timer: Periodic | None = None
        self._due_ns = 0
        self._skipped = 0

    def start(self) -> None:
        try:
            sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._sock = sock
            sock.connect((self.guest_address, datagram.PORT))
            self.local_port = sock.getsockname()[1]
        except OSError as error:
            self.fail(error)
            return
        self._due_ns = now_ns()
        self._timer = self.loop.every(max(self._interval_ns, datagram.MIN_TICK_NS), self._tick, self.fail)
        self.event("flow_started", local_port=self.local_port)

    def _tick(self, _expirations: int) -> None:
        due = max(0, now_ns() - self._due_ns) // self._interval_ns + 1
        burst = min(due, datagram.MAX_BURST if self._interval_ns < datagram.MIN_TICK_NS else 1)
        self._skipped += due - burst
        self._due_ns += due * self._interval_ns
        for _ in range(burst):
            self._send()

    def _send(self) -> None:
        sock = self._sock
        if sock is None:
            return
        sent_ns, status = now_ns(), 0
        data = datagram.pack(self._number, len(self.records), sent_ns, self.spec.size)
        try:
            sock.send(data)
        except OSError:  # perhaps that of an earlier one (an ICMP answer to it): it is cleared now
            try:
                sock.send(data)
            except OSError:
                status = STATUS_UNSENT
        self.records.append(sent_ns, 0, len(data), status)
        self.last_reply_ns = sent_ns  # nobody answers; that it goes on is all that can be said meanwhile

    def stop(self) -> None:
        if not self.done:
            self.stopping = True
            self.finish()

    def release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def extra(self) -> dict[str, Any]:
        return {"skipped": self._skipped}
