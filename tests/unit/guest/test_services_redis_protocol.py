"""The key-value server's protocol: what breaks it, its limits, and that a connection can move at any byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_connection import drain, make_machine, packed

from bench.errors import GuestError
from bench.guest.services import resp
from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine
from bench.guest.services.redis import RedisStream
from bench.guest.services.registry import restore_stream
from bench.guest.store import MIN_REGION_BYTES, Store


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2000000\r\n", "invalid multibulk length"),
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$%d\r\n" % (resp.MAX_BULK_BYTES + 1), "invalid bulk length"),
        (b"*" + b"1" * 70_000, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 70_000, "too big bulk count string"),
        (b"x" * 70_000, "too big inline request"),
        (b'GET "x\r\n', "unbalanced quotes in request"),
        (b"GET 'x'y\r\n", "unbalanced quotes in request"),
        (packed("MSET", *([b"x" * 1_000_000] * 5)), "invalid bulk length"),
    ],
)
def test_protocol_errors_close_the_connection(data, text):
    service = RedisStream(make_machine())
    service.received(packed("PING") + data + packed("PING"))
    assert drain(service) == b"+PONG\r\n-ERR Protocol error: " + text.encode() + b"\r\n"
    assert service.closing
    assert not service.reading


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"PING", [b"PING"]),
        (b"  set  a\tb  ", [b"set", b"a", b"b"]),
        (rb'set "a b" "\x41\n\"\\"', [b"set", b"a b", b'A\n"\\']),
        (rb"set 'a\'b' 'x\n'", [b"set", b"a'b", rb"x\n"]),
        (b'set ""', [b"set", b""]),
        (b"", []),
    ],
)
def test_inline_commands(line, words):
    assert resp.split_inline(line) == words


def test_pipelines_are_bounded_by_their_output():
    service = RedisStream(make_machine())
    service.received(packed("SET", "k", "x" * 1000))
    service.received(packed("GET", "k") * 5000)
    assert not service.reading
    assert len(service.output(1 << 30)) < OUTPUT_BOUND_BYTES + 2000
    assert drain(service) == b"+OK\r\n" + (b"$1000\r\n" + b"x" * 1000 + b"\r\n") * 5000
    assert service.reading


def test_the_end_of_the_clients_data_lets_the_replies_out():
    service = RedisStream(make_machine())
    service.received(packed("PING") * 3 + b"*1\r\n$4\r\nPI")
    service.received_eof()
    assert not service.reading
    assert drain(service) == b"+PONG\r\n" * 3
    assert service.closing


COMMAND_STREAMS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"PING\r\n",
                b"\r\n",
                b"*0\r\n",
                b"SET \"a b\" 'c'\n",
                packed("INCR", "n"),
                packed("RPUSH", "l", "x" * 40, b"\r\n$5\r\n"),
                packed("LRANGE", "l", 0, -1),
                packed("ZADD", "z", 1, "a"),
                packed("CLIENT", "SETNAME", "n1"),
                packed("CLIENT", "GETNAME"),
                packed("NONSENSE"),
                packed("QUIT"),
                b"*1\r\n!",
            ]
        ),
        st.lists(st.binary(max_size=20), min_size=1, max_size=4).map(lambda words: packed(*words)),
        st.tuples(st.sampled_from([b"SET", b"APPEND"]), st.binary(max_size=4), st.binary(max_size=60)).map(
            lambda words: packed(*words)
        ),
    ),
    max_size=12,
)


def play(pieces, moves, takes):
    machine = make_machine(MIN_REGION_BYTES)
    service, out = RedisStream(machine), b""
    for number, piece in enumerate(pieces):
        service.received(piece)
        for turn in range(2):
            if moves and moves[(2 * number + turn) % len(moves)]:
                copy = memoryview(bytearray(machine.memory))
                machine = Machine(copy, Store.open(copy))
                service = restore_stream("redis", json.loads(json.dumps(service.export())), machine)
            if takes:
                out += drain(service, most=takes[number % len(takes)])
    service.received_eof()
    return out + drain(service), service.closing, sorted(machine.store.keys())


@given(COMMAND_STREAMS, st.data())
@settings(max_examples=100, deadline=None)
def test_it_can_move_at_any_byte(commands, data):
    stream = b"".join(commands)
    expected = play([stream], [], [])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    moves = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    takes = data.draw(st.lists(st.integers(0, 100), max_size=4))
    assert play(pieces, moves, takes) == expected
    if len(stream) < 120:
        assert play([stream[at : at + 1] for at in range(len(stream))], [True], takes) == expected


@pytest.mark.parametrize("size", [resp.MAX_INLINE_BYTES - 1, resp.MAX_INLINE_BYTES, resp.MAX_INLINE_BYTES + 1])
def test_limits_do_not_depend_on_how_the_stream_is_cut(size):
    for stream in (b"PING " + b"x" * (size - 5) + b"\n", b"*" + b"0" * (size - 1) + b"\r\n"):
        assert play([stream], [], []) == play([stream[:7], stream[7:-2], stream[-2:-1], stream[-1:]], [True], [])


def test_broken_states_are_refused():
    machine = make_machine()
    good = RedisStream(machine).export()
    for key in good:
        with pytest.raises(GuestError):
            restore_stream("redis", {other: value for other, value in good.items() if other != key}, machine)
    for change in ({"client_id": -1}, {"out": 3}, {"parser": {}}, {"parser": None}):
        with pytest.raises(GuestError):
            restore_stream("redis", {**good, **change}, machine)
