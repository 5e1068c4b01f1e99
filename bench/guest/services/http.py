"""The guest's web server (HTTP/1.1) as a state machine that can move in the middle of anything.

========================================  ==========================================================================
``GET /``                                 a page that lies in guest memory (in the store)
``GET /page/N``                           the 4096 raw bytes of guest memory page N
``GET /stream?rate=BYTES_PER_S&bytes=N``  the chargen pattern, paced; without ``rate`` as fast as the connection takes,
                                          without ``bytes`` endless (chunked; HTTP/1.0: until the connection closes)
``POST /upload``                          any length, streamed; answers ``{"bytes": N, "crc32": C}``, both integers
========================================  ==========================================================================

HEAD works where GET does. Connections are kept alive, requests may be pipelined. A body that nobody asked for is read
and thrown away up to :data:`MAX_UNWANTED_BYTES`, so that the client gets its answer before the connection closes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine, OutputBuffer, integer, pack, unpack
from bench.guest.services.http_message import (
    HttpError,
    Request,
    head_end,
    parse_head,
    query_numbers,
    response_head,
)
from bench.guest.services.paced import MAX_RATE, MAX_TOTAL_BYTES, PatternBody
from bench.guest.store import StoreFull

PAGE_BYTES = 4096
MAX_UNWANTED_BYTES = 1 << 20
INPUT_BOUND_BYTES = 1 << 16
MAX_CHUNK_LINE_BYTES = 256
INDEX_KEY = b"/index.html"

_METHODS = {"/": "GET, HEAD", "/stream": "GET, HEAD", "/upload": "POST"}
_PAGE_PATH = re.compile(r"/page/(\d{1,12})")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")
_PHASES = ("head", "length", "chunk-size", "chunk-data", "chunk-end", "trailer", "closed")
_INDEX = b"""<!DOCTYPE html>
<html><head><title>migration-bench guest</title></head>
<body><h1>It runs</h1>
<p>This page lies in the guest's memory and moves with it.</p>
<ul><li><a href="/page/0">/page/0</a></li><li><a href="/stream?rate=1000&amp;bytes=10000">/stream</a></li></ul>
</body></html>
"""


class HttpStream:
    """One connection. ``_phase`` says what the next input byte belongs to; ``closed``: to nothing any more."""

    name = "http"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._in = bytearray()
        self._out = OutputBuffer()
        self._phase = "head"
        self._request: Request | None = None  # whose body is being read
        self._left = 0  # bytes of the body, or of the chunk, that are still to come
        self._body_bytes = 0
        self._body_crc = 0
        self._stream: PatternBody | None = None
        self._last = False  # close after the response that is being sent
        self._eof = False

    @property
    def reading(self) -> bool:
        return not self._eof and self._phase != "closed" and len(self._in) < INPUT_BOUND_BYTES

    @property
    def closing(self) -> bool:
        if self._stream is not None:
            return False
        return self._phase == "closed" or (self._eof and len(self._out) < OUTPUT_BOUND_BYTES)

    def received(self, data: bytes) -> None:
        if self._phase != "closed":
            self._in += data
            self._advance()

    def received_eof(self) -> None:
        self._eof = True

    def output(self, limit: int) -> bytes | memoryview:
        if len(self._out) or self._stream is None:
            return self._out.peek(limit)
        return self._stream.output(limit)

    def sent(self, count: int) -> None:
        if len(self._out) or self._stream is None:
            self._out.drop(count)
        else:
            self._stream.sent(count)
            if self._stream.done:
                self._stream = None
                self._next_request()
        self._advance()

    def wake_ns(self) -> int | None:
        return None if self._stream is None or len(self._out) else self._stream.wake_ns()

    # input

    def _advance(self) -> None:
        """Take as much input as can be taken now; responses wait in line behind a stream and behind full output."""
        try:
            while self._stream is None and self._step():
                pass
        except HttpError as error:
            self._refuse(error)

    def _step(self) -> bool:
        """One step of the state machine; False when it needs more input, or room for output."""
        if self._phase == "head":
            return len(self._out) < OUTPUT_BOUND_BYTES and self._read_head()
        if self._phase in ("length", "chunk-data"):
            return self._read_data()
        if self._phase in ("chunk-size", "chunk-end", "trailer"):
            return self._read_line()
        return False

    def _read_head(self) -> bool:
        skip = 0
        while bytes(self._in[skip : skip + 1]) in (b"\r", b"\n"):  # empty lines before a request (RFC 9112, 2.2)
            skip += 1
        del self._in[:skip]
        end = head_end(self._in)
        if end is None:
            return False
        request = parse_head(bytes(self._in[:end]))
        del self._in[:end]
        self._request, self._body_bytes, self._body_crc = request, 0, 0
        wanted = request.path == "/upload" and request.method == "POST"
        if request.expects_continue and request.length != 0:
            if not wanted:  # whether the body follows is open, so the connection cannot be used again
                self._last = True
                self._request = None
                self._respond(request)
                if self._stream is None:
                    self._next_request()
                return False
            self._out += b"HTTP/1.1 100 Continue\r\n\r\n"
        if request.length is not None and request.length > (MAX_TOTAL_BYTES if wanted else MAX_UNWANTED_BYTES):
            raise HttpError(413, f"a body of {request.length} bytes")
        self._left = request.length or 0
        self._phase = "chunk-size" if request.length is None else "length"
        return True

    def _read_data(self) -> bool:
        """Bytes of the body; counted and summed, not kept."""
        if self._left and not self._in:
            return False
        count = min(self._left, len(self._in))
        with memoryview(self._in) as view:
            self._body_crc = crc32(view[:count], self._body_crc)
        del self._in[:count]
        self._left -= count
        self._body_bytes += count
        if self._left:
            return False
        if self._phase == "length":
            self._answer()
        else:
            self._phase = "chunk-end"
        return True

    def _read_line(self) -> bool:
        """A chunk's size, the end of its data, or a trailer field (RFC 9112, 7.1)."""
        end = self._in.find(b"\n", 0, MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(self._in) >= MAX_CHUNK_LINE_BYTES:
                raise HttpError(400, f"a line of more than {MAX_CHUNK_LINE_BYTES} bytes in a chunked body")
            return False
        line = bytes(self._in[:end]).removesuffix(b"\r")
        del self._in[: end + 1]
        if self._phase == "chunk-size":
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise HttpError(400, "a chunk size that is none")
            self._left = int(match[1], 16)
            if not self._is_upload() and self._body_bytes + self._left > MAX_UNWANTED_BYTES:
                raise HttpError(413, f"a body of more than {MAX_UNWANTED_BYTES} bytes")
            self._phase = "chunk-data" if self._left else "trailer"
        elif self._phase == "chunk-end":
            if line:
                raise HttpError(400, "a chunk longer than its size")
            self._phase = "chunk-size"
        elif line:
            self._left += 1  # of a trailer, the number of its fields
            if self._left > MAX_CHUNK_LINE_BYTES:
                raise HttpError(431, "too many trailer fields")
        else:
            self._answer()
        return True

    def _is_upload(self) -> bool:
        return self._request is not None and self._request.path == "/upload" and self._request.method == "POST"

    # responses

    def _answer(self) -> None:
        """The request is complete."""
        request = self._request
        assert request is not None, "a body without a request"
        self._request = None
        self._left = 0
        self._last = not request.keep_alive
        self._respond(request)
        if self._stream is None:
            self._next_request()

    def _next_request(self) -> None:
        self._phase = "closed" if self._last else "head"
        if self._last:
            self._in.clear()

    def _respond(self, request: Request) -> None:
        try:
            self._route(request)
        except HttpError as error:
            body = f"{error}\n".encode()
            headers = (("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *error.headers)
            self._out += response_head(request, error.status, headers, self._last)
            if request.method != "HEAD":
                self._out += body

    def _route(self, request: Request) -> None:
        page = _PAGE_PATH.fullmatch(request.path)
        allowed = "GET, HEAD" if page else _METHODS.get(request.path)
        if allowed is None:
            raise HttpError(404, "no such page; there are /, /page/N, /stream and /upload")
        if request.method not in allowed.split(", "):
            raise HttpError(405, f"allowed: {allowed}", (("Allow", allowed),))
        if page:
            number = int(page[1])
            if number >= len(self._machine.memory) // PAGE_BYTES:
                raise HttpError(404, f"guest memory has {len(self._machine.memory) // PAGE_BYTES} pages")
            start = number * PAGE_BYTES
            content = bytes(self._machine.memory[start : start + PAGE_BYTES])
            self._send(request, "application/octet-stream", content)
        elif request.path == "/stream":
            self._send_stream(request)
        elif request.path == "/upload":
            reply = json.dumps({"bytes": self._body_bytes, "crc32": self._body_crc}) + "\n"
            self._send(request, "application/json", reply.encode())
        else:
            self._send(request, "text/html", self._index())

    def _index(self) -> bytes:
        """The page in guest memory; put there when it is missing (a new guest, or the store was emptied)."""
        store = self._machine.store
        if INDEX_KEY not in store:
            try:
                store.set(INDEX_KEY, _INDEX)
            except StoreFull:
                return _INDEX
        return store.get(INDEX_KEY) or b""

    def _send(self, request: Request, kind: str, body: bytes) -> None:
        headers = (("Content-Type", kind), ("Content-Length", str(len(body))))
        self._out += response_head(request, 200, headers, self._last)
        if request.method != "HEAD":
            self._out += body

    def _send_stream(self, request: Request) -> None:
        numbers = query_numbers(request.query, {"rate": MAX_RATE, "bytes": MAX_TOTAL_BYTES})
        total = numbers.get("bytes")
        headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=us-ascii"),)
        chunked = total is None and request.minor == 1
        if total is not None:
            headers += (("Content-Length", str(total)),)
        elif chunked:
            headers += (("Transfer-Encoding", "chunked"),)
        else:
            self._last = True  # HTTP/1.0 knows no other end
        self._out += response_head(request, 200, headers, self._last)
        if request.method != "HEAD" and total != 0:
            self._stream = PatternBody(numbers.get("rate", 0), total, chunked, self._machine.clock_ns)

    def _refuse(self, error: HttpError) -> None:
        """Answer what cannot be understood; what follows on this connection cannot be either."""
        body = f"{error}\n".encode()
        headers = (("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *error.headers)
        self._out += response_head(self._request, error.status, headers, close=True) + body
        self._last = True
        self._request = None
        self._next_request()

    # moving

    def export(self) -> dict[str, Any]:
        return {
            "in": pack(self._in),
            "out": self._out.pack(),
            "phase": self._phase,
            "request": self._request.export() if self._request else None,
            "left": self._left,
            "body_bytes": self._body_bytes,
            "body_crc": self._body_crc,
            "stream": self._stream.export() if self._stream else None,
            "last": self._last,
            "eof": self._eof,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], machine: Machine) -> HttpStream:
        service = cls(machine)
        if state["phase"] not in _PHASES:
            raise ValueError(f"phase {state['phase']!r}")
        service._in = bytearray(unpack(state["in"]))
        service._out = OutputBuffer(unpack(state["out"]))
        service._phase = state["phase"]
        service._request = None if state["request"] is None else Request.restore(state["request"])
        service._left = integer(state, "left")
        service._body_bytes = integer(state, "body_bytes")
        service._body_crc = integer(state, "body_crc")
        if state["stream"] is not None:
            service._stream = PatternBody.restore(state["stream"], machine.clock_ns)
        service._last = bool(state["last"])
        service._eof = bool(state["eof"])
        return service
