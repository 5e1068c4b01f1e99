"""tcp-download and tcp-upload from the guest: bulk with verified content, by a client that moves.

The server is one of the bench's (:mod:`bench.outside.server`): ``GET /stream`` or chargen, and ``POST /upload``, as
:mod:`bench.probe.flows.tcp_download` and :mod:`bench.probe.flows.tcp_upload` use them the other way round. An upload's
progress is what the server's kernel has acknowledged, looked at every :data:`SAMPLE_NS`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import ProbeError
from bench.flows.http import parse_head, unlike, upload_answer
from bench.flows.pattern import MAX_SLICE_BYTES, matches, pattern_slice
from bench.flows.spec import APPLICATION_TIMEOUT
from bench.guest.clients.stream import StreamFlow
from bench.guest.services.base import integer, pack, unpack
from bench.records import STATUS_CORRUPT, STATUS_PROGRESS

SAMPLE_NS = NS_PER_MS
CHUNK_BYTES = 64 << 10
MAX_CATCH_UP_BYTES = 64 << 10
STOP_LIMIT_NS = 10 * NS_PER_S
_ENDLESS_BYTES = 1 << 50


class _Bulk(StreamFlow):
    """Bytes to be said first, an answer's head, and an offset in the pattern."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._unsent = b""
        self._answer = bytearray()
        self._offset = 0

    def progress(self, at_ns: int, size: int, status: int = 0) -> None:
        self.note(self.count, at_ns, at_ns, size, STATUS_PROGRESS | status)
        self.count += 1
        self.last_reply_ns = at_ns

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "unsent": pack(self._unsent),
            "answer": pack(self._answer),
            "offset": self._offset,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._unsent, self._answer = unpack(state["unsent"]), bytearray(unpack(state["answer"]))
        self._offset = integer(state, "offset")

    def report(self) -> dict[str, Any]:
        return {**super().report(), "bytes": self._offset}


class DownloadFlow(_Bulk):
    """The server streams, the guest verifies every byte."""

    kind = "tcp-download"
    port = 19

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._in_body = not self.spec.rate_bps

    @property
    def port_now(self) -> int:
        return 80 if self.spec.rate_bps else self.port

    def opened(self) -> None:
        if self.spec.rate_bps:
            rate = max(1, self.spec.rate_bps // 8)
            target = f"/stream?rate={rate}&bytes={_ENDLESS_BYTES}"
            self._unsent = f"GET {target} HTTP/1.1\r\nHost: {self.spec.address}\r\n\r\n".encode()
        self.waiting(now_ns())

    def output(self, limit: int) -> bytes:
        return self._unsent[:limit]

    def sent(self, count: int) -> None:
        self._unsent = self._unsent[count:]

    def take(self, data: bytes, received_ns: int) -> None:
        if self.stopping:
            return
        if not self._in_body:
            self._answer += data
            head = parse_head(self._answer)
            if head is None:
                return
            if head.status != 200:
                raise ProbeError(f"GET /stream was answered {head.status}")
            data = bytes(self._answer[head.head_bytes :])
            self._answer.clear()
            self._in_body = True
        for at in range(0, len(data), MAX_SLICE_BYTES):
            piece = data[at : at + MAX_SLICE_BYTES]
            good = matches(piece, self._offset)
            self._offset += len(piece)
            self.progress(received_ns, len(piece), 0 if good else STATUS_CORRUPT)
        self.waiting(received_ns)

    def stop(self) -> None:
        if not self.done:
            self.stopping = True
            connection = self.connection
            self.finish()
            if connection is not None:
                connection.close()  # the server would stream for ever

    def state(self) -> dict[str, Any]:
        return {**super().state(), "in_body": self._in_body}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._in_body = bool(state["in_body"])


class UploadFlow(_Bulk):
    """The guest posts the pattern in chunks; at its stop the server says how many bytes of which CRC-32 came."""

    kind = "tcp-upload"
    port = 80

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rate = self.spec.rate_bps // 8
        self._least_chunk = max(1, min(512, self._rate // 200))
        self._crc = 0
        self._written = 0  # bytes of the connection that the kernel took
        self._acked = 0
        self._credit = 0
        self._offered_ns = 0
        self._ended = False

    def opened(self) -> None:
        self._unsent = (
            f"POST /upload HTTP/1.1\r\nHost: {self.spec.address}\r\n"
            "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode()
        self._offered_ns = now_ns()

    def wake_ns(self) -> int | None:
        return None if self.done else now_ns() + SAMPLE_NS

    def output(self, limit: int) -> bytes:
        now = now_ns()
        self._sample(now)
        if not self._unsent and not self._ended and not self.done:
            self._produce(now)
        return self._unsent[:limit]

    def _produce(self, now: int) -> None:
        if not self._rate:
            self._chunk(CHUNK_BYTES)
            return
        self._credit = min(
            self._credit + self._rate * (now - self._offered_ns), max(MAX_CATCH_UP_BYTES, self._least_chunk) * NS_PER_S
        )
        self._offered_ns = now
        due = self._credit // NS_PER_S
        if due >= self._least_chunk:
            self._credit -= due * NS_PER_S
            self._chunk(due)

    def _chunk(self, count: int) -> None:
        content = pattern_slice(self._offset, count)
        self._crc = zlib.crc32(content, self._crc)
        self._offset += count
        self._unsent = b"%x\r\n%b\r\n" % (count, bytes(content))

    def sent(self, count: int) -> None:
        self._unsent = self._unsent[count:]
        self._written += count
        if not self._waiting_since_ns:
            self.waiting(now_ns())

    def _sample(self, now: int) -> None:
        if self.connection is None:
            return
        acked = self._written - self.connection.unacknowledged_bytes()
        if acked > self._acked:
            self.progress(now, acked - self._acked)
            self._acked = acked
            self.waiting(0 if acked >= self._written and not self._ended else now)

    def take(self, data: bytes, received_ns: int) -> None:
        self._answer += data
        body = upload_answer(self._answer)
        if body is not None:
            self._verify(body)

    def _verify(self, body: bytes) -> None:
        sent = {"bytes": self._offset, "crc32": self._crc}
        said = unlike(body, sent)
        if said is not None:
            self.event("upload_mismatch", sent=sent, reply=said)
            self.progress(now_ns(), 0, STATUS_CORRUPT)
        if not self._ended:
            raise ProbeError("POST /upload was answered before its end")
        self.finish()

    def reset(self) -> None:
        self._unsent, self._offset, self._crc, self._written, self._acked = b"", 0, 0, 0, 0
        self._answer.clear()

    def stop(self) -> None:
        """End the request; the server's answer, or a time limit, ends the flow."""
        if self.stopping or self.done:
            return
        self.stopping = True
        if self.connection is None:
            self.finish()
            return
        self._unsent += b"0\r\n\r\n"
        self._ended = True
        self.at(now_ns() + STOP_LIMIT_NS, lambda: self.fail(APPLICATION_TIMEOUT))
        self.poke()

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "crc": self._crc,
            "written": self._written,
            "acked": self._acked,
            "ended": self._ended,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._crc, self._written, self._acked = (integer(state, key) for key in ("crc", "written", "acked"))
        self._ended = bool(state["ended"])
        self._offered_ns = now_ns()  # a guest that stood still has produced nothing
