"""tcp-upload: ``POST /upload``, chunked, of the character generator's pattern; what counts is what was acknowledged.

Content is offered at ``rate`` (0: as fast as it goes) on a 1 ms timer. The same timer samples ``tcpi_bytes_acked``
(tcp(7)); each change is one progress record, so that a progress time is exact to that millisecond. What could not be
offered during a stall is made up for by at most :data:`MAX_CATCH_UP_BYTES`: afterwards the rate holds again.

At its stop the flow ends the request and verifies the guest's reply ``{"bytes": …, "crc32": …}``.
"""

from __future__ import annotations

import socket
import zlib
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.flows.http import MAX_ANSWER_BYTES, unlike, upload_answer
from bench.flows.pattern import pattern_slice
from bench.flows.spec import APPLICATION_TIMEOUT
from bench.flows.tcp_info import tcp_info
from bench.probe.flows.tcp import TcpFlow
from bench.probe.loop import Periodic
from bench.records import STATUS_CORRUPT, STATUS_PROGRESS

SAMPLE_NS: Final = NS_PER_MS
CHUNK_BYTES: Final = 64 << 10
MAX_CATCH_UP_BYTES: Final = 64 << 10
MAX_BURST_CHUNKS: Final = 4
STOP_LIMIT_NS: Final = 10 * NS_PER_S
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; the socket module has it from Python 3.12 on (as a constant)
_NOTSENT_BYTES: Final = 256 << 10


class TcpUploadFlow(TcpFlow):
    """See the module."""

    kind = "tcp-upload"
    port = 80

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rate = self.spec.rate_bps // 8
        self._least_chunk = max(1, min(512, self._rate // 200))
        self._timer: Periodic | None = None
        self._unsent = memoryview(b"")
        self._offset = 0
        self._crc = 0
        self._acked = 0
        self._sent = 0
        self._offered_ns = 0
        self._credit = 0
        self._reply = bytearray()
        self._ended = False

    def connected(self) -> None:
        if self.sock is None:
            return
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_BYTES)
        self._acked = tcp_info(self.sock).bytes_acked
        self._sent = self._acked
        self._unsent = memoryview(
            (
                f"POST /upload HTTP/1.1\r\nHost: {self.guest_address}\r\n"
                "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
            ).encode()
        )
        self._offered_ns = now_ns()
        self._timer = self.loop.every(SAMPLE_NS, self._tick, self.fail)
        self.writable()

    def _tick(self, _expirations: int) -> None:
        """Sample what is acknowledged, then offer what is due."""
        if self.sock is None:
            return
        acked = tcp_info(self.sock).bytes_acked
        now = now_ns()
        if acked > self._acked:
            self.records.append(now, now, min(acked - self._acked, 0xFFFFFFFF), STATUS_PROGRESS)
            self._acked = acked
            self.last_reply_ns = now
            self.waiting(0 if acked >= self._sent and not self._ended else now)
        if self._rate:
            self._credit += self._rate * (now - self._offered_ns)  # in byte-nanoseconds: no rounding is lost
            self._offered_ns = now
            self._credit = min(self._credit, MAX_CATCH_UP_BYTES * NS_PER_S)
            self._flush()
            due = self._credit // NS_PER_S
            if not self._unsent and due >= self._least_chunk and not self._ended:
                self._credit -= due * NS_PER_S
                self._chunk(due)
                self._flush()

    def writable(self) -> None:
        self._flush()
        if not self._rate:
            for _ in range(MAX_BURST_CHUNKS):  # then let the other flows of this process run
                if self._unsent or self._ended:
                    break
                self._chunk(CHUNK_BYTES)
                self._flush()
            self.want_write(not self._ended or bool(self._unsent))

    def _chunk(self, count: int) -> None:
        content = pattern_slice(self._offset, count)
        self._crc = zlib.crc32(content, self._crc)
        self._offset += count
        self._unsent = memoryview(b"%x\r\n%b\r\n" % (count, bytes(content)))

    def _flush(self) -> None:
        if not self._unsent or self.sock is None:
            return
        try:
            sent = self.sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        if sent:
            self._unsent = self._unsent[sent:]
            self._sent += sent
            if not self._waiting_since_ns:
                self.waiting(now_ns())
        if self._rate:
            self.want_write(bool(self._unsent))

    def stop(self) -> None:
        """End the request; the guest's reply, or a time limit, ends the flow."""
        if self.stopping or self.done:
            return
        self.stopping = True
        if not self._connected:
            self.finish()
            return
        self._unsent = memoryview(bytes(self._unsent) + b"0\r\n\r\n")
        self._ended = True
        self._at(now_ns() + STOP_LIMIT_NS, self._gave_no_reply)
        self.writable()

    def _gave_no_reply(self) -> None:
        self.fail(APPLICATION_TIMEOUT)

    def readable(self) -> None:
        if self.sock is None:
            return
        data = self.sock.recv(MAX_ANSWER_BYTES)
        if not data:
            self.ended()
            return
        self._reply += data
        body = upload_answer(self._reply)
        if body is not None:
            self._verify(body)

    def _verify(self, body: bytes) -> None:
        sent = {"bytes": self._offset, "crc32": self._crc}
        said = unlike(body, sent)
        if said is not None:
            self.event("upload_mismatch", sent=sent, reply=said)
            now = now_ns()
            self.records.append(now, now, 0, STATUS_PROGRESS | STATUS_CORRUPT)
        if self._ended:
            self.finish()
        else:
            self.fail("EPROTO")  # a reply before the end of the request

    def release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        super().release()

    def status(self) -> dict[str, Any]:
        return {**super().status(), "bytes": self._acked}

    def extra(self) -> dict[str, Any]:
        return {**super().extra(), "bytes": self._offset, "crc32": self._crc}
