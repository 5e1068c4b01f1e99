"""tcp-download: the guest streams the character generator's pattern, the client verifies every byte.

With a rate: ``GET /stream?rate=BYTES_PER_S&bytes=N`` on port 80, paced by the guest. Without: chargen (RFC 864) on
port 19, as fast as it goes. One record for each ``recv``: the progress that this client sees.
"""

from __future__ import annotations

from typing import Any, Final

from bench.clock import now_ns
from bench.errors import ProbeError
from bench.flows.http import parse_head
from bench.flows.pattern import MAX_SLICE_BYTES, matches
from bench.probe.flows.tcp import TcpFlow
from bench.records import STATUS_CORRUPT, STATUS_PROGRESS

ENDLESS_BYTES: Final = 1 << 50


class TcpDownloadFlow(TcpFlow):
    """See the module."""

    kind = "tcp-download"
    port = 19

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._buffer = bytearray(MAX_SLICE_BYTES)
        self._view = memoryview(self._buffer)
        self._head = bytearray()
        self._in_body = not self.spec.rate_bps
        self._offset = 0

    @property
    def port_now(self) -> int:
        return 80 if self.spec.rate_bps else self.port

    def connected(self) -> None:
        if self.spec.rate_bps and self.sock is not None:
            rate = max(1, self.spec.rate_bps // 8)
            request = (
                f"GET /stream?rate={rate}&bytes={ENDLESS_BYTES} HTTP/1.1\r\nHost: {self.guest_address}\r\n\r\n"
            ).encode()
            if self.sock.send(request) != len(request):  # cannot happen on a new connection's empty buffer
                raise ProbeError(f"flow {self.spec.name}: the request did not fit the socket's buffer")
        self.waiting(now_ns())

    def readable(self) -> None:
        if self.sock is None:
            return
        count = self.sock.recv_into(self._buffer)
        received_ns = now_ns()
        if not count:
            self.ended()
            return
        data = self._view[:count]
        if not self._in_body:
            self._head += data
            head = parse_head(self._head)
            if head is None:
                return
            if head.status != 200:
                raise ProbeError(f"flow {self.spec.name}: GET /stream was answered {head.status}")
            data = memoryview(bytes(self._head[head.head_bytes :]))
            self._head.clear()
            self._in_body = True
            if not data:
                return
        status = STATUS_PROGRESS if matches(data, self._offset) else STATUS_PROGRESS | STATUS_CORRUPT
        self._offset += len(data)
        self.records.append(received_ns, received_ns, len(data), status)
        self.last_reply_ns = received_ns
        self.waiting(received_ns)

    def stop(self) -> None:
        if not self.done:
            self.stopping = True
            self.finish()

    def status(self) -> dict[str, Any]:
        return {**super().status(), "bytes": self._offset}

    def extra(self) -> dict[str, Any]:
        return {**super().extra(), "bytes": self._offset}
