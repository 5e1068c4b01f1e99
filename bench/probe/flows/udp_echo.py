"""udp-echo: a datagram to the echo service (RFC 862) on a fixed schedule, whatever comes back.

Payload: 8 bytes sequence number, 8 bytes send time (both little endian), then seeded content up to ``size``.

Schedule: probe *k* is due at ``start + k * interval``, absolute, by a periodic timerfd, so that it never drifts. When
this process was kept from running over several due times, one probe is sent and the others are skipped and counted
(``skipped``): a burst after the fact would measure the burst, not the network.

Lost means no answer while the flow went on, nor within :data:`~bench.flows.spec.GRACE_NS` of the probe; an answer that
is merely late counts as an answer. A reply is *reordered* when a later probe was answered before; further copies are
duplicates.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any, Final

from bench.clock import NS_PER_S, now_ns
from bench.flows.spec import GRACE_NS, filler
from bench.probe.flows.base import Flow
from bench.probe.loop import READABLE, Periodic
from bench.records import STATUS_CORRUPT, STATUS_REORDERED, STATUS_UNSENT

ECHO_PORT: Final = 7
_HEADER: Final = struct.Struct("<QQ")
_BUFFER_BYTES: Final = 2048
_MAX_SIZE: Final = 1472
_FILLER_STEPS: Final = 65521  # a prime below the filler's length less a datagram: consecutive probes differ


class UdpEchoFlow(Flow):
    """See the module."""

    kind = "udp-echo"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._content = memoryview(filler(self.spec.name))
        self._content_bytes = max(0, min(self.spec.size, _MAX_SIZE) - _HEADER.size)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._sock: socket.socket | None = None
        self._timer: Periodic | None = None
        self._answered = 0
        self._highest = -1
        self._stray = 0
        self._skipped = 0

    def start(self) -> None:
        try:
            sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._sock = sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect((self.guest_address, ECHO_PORT))
            self.local_port = sock.getsockname()[1]
        except OSError as error:
            self.fail(error)
            return
        self.loop.watch(sock.fileno(), READABLE, self._readable, self.fail)
        self._timer = self.loop.every(self.spec.interval_ns, self._tick, self.fail)
        self.event("flow_started", local_port=self.local_port)

    def _payload_content(self, number: int) -> memoryview:
        start = number % _FILLER_STEPS
        return self._content[start : start + self._content_bytes]

    def _tick(self, expirations: int) -> None:
        self._skipped += expirations - 1
        sock = self._sock
        if sock is None:
            return
        number = len(self.records)
        content = self._payload_content(number)
        sent_ns = now_ns()
        data = _HEADER.pack(number, sent_ns) + content
        status = 0
        try:
            sock.send(data)
        except OSError:
            # Perhaps the error of an earlier probe (an ICMP answer to it): it is cleared now, so try this one again.
            try:
                sock.send(data)
            except OSError:
                status = STATUS_UNSENT
        self.records.append(sent_ns, 0, len(data), status)

    def _readable(self, _events: int) -> None:
        sock = self._sock
        while sock is not None:
            try:
                count = sock.recv_into(self._buffer)
            except OSError:  # nothing left, or an ICMP answer to some probe: that one is lost, the flow goes on
                break
            self._received(count, now_ns())
        if self.stopping and self._answered == len(self.records):
            self.finish()

    def _received(self, count: int, received_ns: int) -> None:
        number, sent_ns = _HEADER.unpack_from(self._buffer) if count >= _HEADER.size else (-1, 0)
        if not 0 <= number < len(self.records) or self.records.sent_ns(number) != sent_ns:
            self._stray += 1
            return
        good = self._view[_HEADER.size : count] == self._payload_content(number)
        if not good:
            self.records.flag(number, STATUS_CORRUPT)
        if self.records.received_ns(number):
            self.records.duplicate(number)
            return
        self.records.answer(number, received_ns)
        self._answered += 1
        self.last_reply_ns = received_ns
        if number > self._highest:
            self._highest = number
        else:
            self.records.flag(number, STATUS_REORDERED)

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        if self._timer is not None:
            self._timer.close()
        records = self.records.array()
        open_ns = records["sent_ns"][records["received_ns"] == 0]
        if len(open_ns):
            self._at(int(open_ns[-1]) + GRACE_NS, self.finish)
        else:
            self.finish()

    def finish(self) -> None:
        if not self.done and self.stopping:
            self._judge()
        super().finish()

    def _judge(self) -> None:
        """A datagram flow has no connection to lose: it is alive when its last second's probes found an answer."""
        records = self.records.array()
        if len(records):
            last_second = records["sent_ns"] >= records["sent_ns"][-1] - max(NS_PER_S, 20 * self.spec.interval_ns)
            if not records["received_ns"][last_second].any():
                self.alive, self.error = False, "ETIMEDOUT"

    def release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self.loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def extra(self) -> dict[str, Any]:
        # A stray answer names no probe of ours: its header itself is broken, or it is somebody else's.
        return {"skipped": self._skipped, "stray": self._stray}
