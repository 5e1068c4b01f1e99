"""The web server: what it answers, and that it can move at any byte."""

from __future__ import annotations

import json
import re
from http.client import HTTPResponse
from io import BytesIO
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import GuestError
from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine
from bench.guest.services.http import INPUT_BOUND_BYTES, MAX_UNWANTED_BYTES, HttpStream
from bench.guest.services.http_message import MAX_HEAD_BYTES
from bench.guest.services.paced import MAX_BEHIND_NS
from bench.guest.services.pattern import chargen_slice
from bench.guest.services.registry import restore_stream
from bench.guest.store import MIN_REGION_BYTES, Store

HOST = b"Host: g1\r\n"


class Clock:
    """CLOCK_MONOTONIC of a test."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


def make_machine() -> Machine:
    memory = memoryview(bytearray(16 * 4096 + MIN_REGION_BYTES))
    for page in range(16):
        memory[page * 4096 : page * 4096 + 8] = b"page %3d" % page
    return Machine(memory, Store.format(memory[-MIN_REGION_BYTES:]), Clock())


@pytest.fixture
def machine() -> Machine:
    return make_machine()


def drain(service, limit=1 << 16, most=1 << 30) -> bytearray:
    out = bytearray()
    while len(out) < most and (data := service.output(min(limit, most - len(out)))):
        out += data
        service.sent(len(data))
    return out


class FakeSocket(BytesIO):
    def makefile(self, _mode):
        return self


def responses(data: bytes, methods: list[str]) -> list[tuple[int, dict[str, str], bytes]]:
    """Parsed by Python's own client; everything must belong to a response."""
    file, found = FakeSocket(bytes(data)), []
    file.close = lambda: None  # type: ignore[method-assign]
    for method in methods:
        while True:
            response = HTTPResponse(file, method=method)  # type: ignore[arg-type]
            response.begin()
            if response.status != 100:
                break
        found.append((response.status, dict(response.headers), response.read()))
    assert not file.read(), "bytes behind the last response"
    return found


def ask(machine, request: bytes, method="GET"):
    service = HttpStream(machine)
    service.received(request)
    (response,) = responses(drain(service), [method])
    return response, service


def test_pages_of_guest_memory(machine):
    (status, headers, body), service = ask(machine, b"GET /page/3 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (status, body) == (200, bytes(machine.memory[3 * 4096 : 4 * 4096]))
    assert headers["Content-Length"] == "4096"
    assert service.reading
    assert not service.closing
    last = len(machine.memory) // 4096
    assert ask(machine, b"GET /page/%d HTTP/1.1\r\n" % (last - 1) + HOST + b"\r\n")[0][0] == 200
    assert ask(machine, b"GET /page/%d HTTP/1.1\r\n" % last + HOST + b"\r\n")[0][0] == 404


def test_the_index_lies_in_guest_memory(machine):
    (status, headers, body), _service = ask(machine, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (status, headers["Content-Type"]) == (200, "text/html")
    start = bytes(machine.memory).index(body)
    machine.memory[start : start + 15] = b"<!DOCTYPE HTML>"
    assert ask(machine, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")[0][2] == b"<!DOCTYPE HTML>" + body[15:]
    machine.store.clear()
    assert ask(machine, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")[0][2] == body


@pytest.mark.parametrize("path", [b"/", b"/page/0", b"/stream?bytes=100", b"/stream", b"/nothing"])
def test_head_is_get_without_its_body(machine, path):
    service = HttpStream(machine)
    service.received(b"HEAD " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    head = drain(service)
    assert head.endswith(b"\r\n\r\n")
    service = HttpStream(machine)
    service.received(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert drain(service, most=len(head)) == head


def test_a_stream_of_known_length(machine):
    (status, headers, body), service = ask(machine, b"GET /stream?bytes=100000 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (status, body) == (200, bytes(chargen_slice(0, 100_000)))
    assert headers["Content-Length"] == "100000"
    assert ask(machine, b"GET /stream?bytes=0 HTTP/1.1\r\n" + HOST + b"\r\n")[0][2] == b""
    assert service.wake_ns() is None


def test_an_endless_stream_is_chunked_and_the_connection_stays_open(machine):
    service = HttpStream(machine)
    service.received(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
    data = drain(service, most=1 << 20)
    head, _empty, chunks = data.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    plain = re.sub(rb"(^|\r\n)4000\r\n", b"", chunks)
    assert bytes(chargen_slice(0, 500_000)) == plain[:500_000]
    service.received_eof()
    assert not service.closing


def test_an_endless_stream_in_http_1_0_ends_with_the_connection(machine):
    service = HttpStream(machine)
    service.received(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _empty, body = drain(service, most=10_000).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert body == bytes(chargen_slice(0, len(body)))


def paced(machine, clock, service, duration_ns, step_ns):
    """Bytes sent while the owner wakes when it is told to, but no more often than each *step_ns*."""
    sent, end = 0, clock.now + duration_ns
    while clock.now < end:
        while data := service.output(1 << 20):
            service.sent(len(data))
            sent += len(data)
        wake = service.wake_ns()
        assert wake is not None
        clock.now = max(wake, clock.now + step_ns)
    return sent


@pytest.mark.parametrize("rate", [1, 999, 1000, 2_500_000, 1_000_000_000])
def test_a_paced_stream_keeps_its_rate_in_pieces_of_a_millisecond(machine, rate):
    service, clock = HttpStream(machine), machine.clock_ns
    service.received(b"GET /stream?rate=%d&bytes=%d HTTP/1.1\r\n" % (rate, 1 << 50) + HOST + b"\r\n")
    head = service.output(1 << 16)
    service.sent(len(head))
    sent = paced(machine, clock, service, 3 * NS_PER_S, 0)
    assert sent == pytest.approx(3 * rate, abs=rate / 1000 + 1)
    late = paced(machine, clock, service, 3 * NS_PER_S, MAX_BEHIND_NS // 2)  # late each time, but made up for
    assert late == pytest.approx(3 * rate, abs=rate / 20 + 2)


def test_a_paced_stream_does_not_burst_after_a_gap_or_a_move(machine):
    service, clock, rate = HttpStream(machine), machine.clock_ns, 1_000_000
    service.received(b"GET /stream?rate=%d&bytes=%d HTTP/1.1\r\n" % (rate, 1 << 40) + HOST + b"\r\n")
    paced(machine, clock, service, NS_PER_S, 0)
    clock.now += 10 * NS_PER_S
    assert len(drain(service)) <= rate // 1000
    moved = restore_stream("http", json.loads(json.dumps(service.export())), machine)
    clock.now -= 5 * NS_PER_S  # another machine, another clock
    assert drain(moved) == b""
    wake = moved.wake_ns()
    assert wake is not None
    assert wake - clock.now == NS_PER_MS
    assert paced(machine, clock, moved, NS_PER_S, 0) == pytest.approx(rate, abs=2 * rate / 1000)


def test_nothing_is_due_while_the_connection_takes_no_output(machine):
    """A wake-up is asked for only when output() had nothing, so an owner that waits for the socket is not woken."""
    service = HttpStream(machine)
    service.received(b"GET /stream?rate=1000000&bytes=10000 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert service.wake_ns() is None  # the head waits
    drain(service)
    machine.clock_ns.now += 2 * NS_PER_MS
    assert service.output(10)
    assert service.wake_ns() is None


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000])
def test_uploads_are_counted_and_summed(machine, size):
    body = bytes(chargen_slice(5, size))
    expected = {"bytes": size, "crc32": crc32(body)}
    request = b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size
    assert json.loads(ask(machine, request + body)[0][2]) == expected
    chunks = b"".join(b"%x;ext=1\r\n" % len(part) + part + b"\r\n" for part in (body[:7], body[7:]) if part)
    request = b"POST /upload HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    (_status, _headers, reply), service = ask(machine, request + chunks + b"0\r\nTrailer: x\r\n\r\n")
    assert json.loads(reply) == expected
    assert not service.closing


def test_an_upload_is_not_kept(machine):
    service = HttpStream(machine)
    service.received(b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (1 << 40))
    for _piece in range(20):
        service.received(bytes(1 << 18))
        assert service.reading
    assert len(json.dumps(service.export())) < 2000


def test_expect_100_continue(machine):
    service = HttpStream(machine)
    head = HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    service.received(b"POST /upload HTTP/1.1\r\n" + head)
    assert drain(service) == b"HTTP/1.1 100 Continue\r\n\r\n"
    service.received(b"abc")
    assert b'{"bytes": 3' in drain(service)
    for line in (b"POST / HTTP/1.1\r\n", b"POST /nothing HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n"):
        service = HttpStream(machine)
        service.received(line + head)
        assert not drain(service).startswith(b"HTTP/1.1 100")
        assert service.closing
        assert not service.reading


def test_pipelined_requests_are_answered_in_order(machine):
    service = HttpStream(machine)
    requests = b"".join(b"GET /page/%d HTTP/1.1\r\n" % (number % 16) + HOST + b"\r\n" for number in range(100))
    service.received(b"\r\n" + requests + b"GET /stream?bytes=9 HTTP/1.1\r\n" + HOST + b"\r\n" + requests)
    assert len(service.export()["out"]) < 2 * OUTPUT_BOUND_BYTES
    found = responses(drain(service, limit=1000), ["GET"] * 201)
    assert [body[:8] for _status, _headers, body in found[:100]] == [b"page %3d" % (n % 16) for n in range(100)]
    assert found[100][2] == b" !\"#$%&'("
    assert found[101:] == found[:100]


def test_input_waits_behind_output_that_nobody_takes(machine):
    service = HttpStream(machine)
    request = b"GET /page/1 HTTP/1.1\r\n" + HOST + b"\r\n"
    received = 0
    while service.reading:
        service.received(request * 100)
        received += 100
        assert received < 10_000
    assert len(json.dumps(service.export())) < 4 * (OUTPUT_BOUND_BYTES + INPUT_BOUND_BYTES)
    assert len(responses(drain(service), ["GET"] * received)) == received
    assert service.reading


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x" * MAX_HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: 9999999999999999999\r\n\r\n", 413),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 300, 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (MAX_UNWANTED_BYTES + 1), 413),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (MAX_UNWANTED_BYTES + 1), 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Expect: a miracle\r\n\r\n", 417),
    ],
)
def test_what_cannot_be_understood_is_answered_and_closes(machine, request_bytes, status):
    (found, headers, _body), service = ask(machine, request_bytes)
    assert (found, headers["Connection"]) == (status, "close")
    assert service.closing
    assert not service.reading
    service.received(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert drain(service) == b""


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /nothing", 404),
        (b"GET /page/", 404),
        (b"GET /page/x", 404),
        (b"GET /page/-1", 404),
        (b"OPTIONS *", 404),
        (b"DELETE /", 405),
        (b"POST /page/1", 405),
        (b"GET /upload", 405),
        (b"PUT /upload", 405),
        (b"GET /stream?rate=fast", 400),
        (b"GET /stream?rate=1&rate=1", 400),
        (b"GET /stream?speed=1", 400),
        (b"GET /stream?bytes=-1", 400),
        (b"GET http://g1/page/1", 200),
        (b"GET http://g1", 200),
    ],
)
def test_what_is_understood_and_refused_keeps_the_connection(machine, line, status):
    service = HttpStream(machine)
    method = line.split()[0].decode()
    service.received(line + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\nbody")
    service.received(b"GET /page/1 HTTP/1.1\r\n" + HOST + b"\r\n")
    (found, headers, _body), after = responses(drain(service), [method, "GET"])
    assert (found, after[0]) == (status, 200)
    assert (found == 405) == ("Allow" in headers)


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1\r\nHost: a", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: Close", False),
        (b"HTTP/1.0", False),
        (b"HTTP/1.0\r\nConnection: Keep-Alive", True),
    ],
)
def test_keep_alive(machine, head, keeps):
    (_status, headers, _body), service = ask(machine, b"GET / " + head + b"\r\n\r\n")
    assert service.closing != keeps
    assert headers.get("Connection", "").lower() in (("", "keep-alive") if keeps else ("close",))


def test_the_end_of_the_clients_data_lets_the_answers_out(machine):
    service = HttpStream(machine)
    service.received(b"GET /page/1 HTTP/1.1\r\n" + HOST + b"\r\nGET /pa")
    service.received_eof()
    assert len(drain(service)) > 4096
    assert service.closing
    assert not service.reading


def test_lines_may_end_in_lf_alone(machine):
    assert ask(machine, b"GET /page/1 HTTP/1.1\nHost: x\n\n")[0][0] == 200


REQUESTS = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HEAD /page/1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /page/2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"GET /stream?bytes=300 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
            b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n" + b"u" * 20,
            b"POST /upload HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nxyz",
            b"POST /upload HTTP/1.1\nHost:\nTransfer-Encoding:chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\nT:1\r\n\r\n",
            b"DELETE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"broken\r\n\r\n",
            b"\r\n",
        ]
    ),
    min_size=1,
    max_size=6,
)


def play(machine, pieces, moves, takes):
    """Feed *pieces*; after each, take a little output and, where *moves* says so, go on from the exported state."""
    service, out = HttpStream(machine), bytearray()
    for number, piece in enumerate(pieces):
        service.received(piece)
        for turn in range(2):
            if moves and moves[(2 * number + turn) % len(moves)]:
                service = restore_stream("http", json.loads(json.dumps(service.export())), machine)
            if takes:
                out += drain(service, most=takes[number % len(takes)])
    service.received_eof()
    out += drain(service)
    return out, service.closing


@given(REQUESTS, st.data())
@settings(max_examples=150, deadline=None)
def test_it_can_move_at_any_byte(requests, data):
    stream = b"".join(requests)
    machine = make_machine()
    expected = play(machine, [stream], [], [])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    moves = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    takes = data.draw(st.lists(st.integers(0, 400), max_size=4))
    assert play(machine, pieces, moves, takes) == expected
    if len(stream) < 200:
        assert play(machine, [stream[at : at + 1] for at in range(len(stream))], [True], takes) == expected


@given(st.lists(st.tuples(st.integers(0, 9_000_000), st.integers(1, 700), st.booleans()), max_size=60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_paced_stream_can_move_at_any_byte(steps, chunked):
    machine = make_machine()
    target = b"/stream?rate=100000" + (b"" if chunked else b"&bytes=60000")
    service = HttpStream(machine)
    service.received(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    out = bytearray()
    for pause_ns, most, move in steps:
        machine.clock_ns.now += pause_ns
        out += drain(service, most=most)
        if move:
            service = restore_stream("http", json.loads(json.dumps(service.export())), machine)
    unpaced = HttpStream(machine)
    unpaced.received(b"GET " + target.replace(b"rate=100000", b"rate=0") + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert drain(unpaced, most=len(out)) == out


def test_broken_states_are_refused(machine):
    service = HttpStream(machine)
    service.received(b"GET /stream?bytes=9 HTTP/1.1\r\n" + HOST + b"\r\nPOST /upload HTTP/1.1\r\n")
    good = service.export()
    for key in good:
        with pytest.raises(GuestError):
            restore_stream("http", {other: value for other, value in good.items() if other != key}, machine)
    for change in ({"phase": "dancing"}, {"left": -1}, {"in": 5}, {"request": {"method": "GET"}}, {"stream": {}}):
        with pytest.raises(GuestError):
            restore_stream("http", {**good, **change}, machine)
