"""The key-value server: commands, errors in Redis' words, data in guest memory, and that it can move at any byte."""

from __future__ import annotations

import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.guest.services import resp
from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine
from bench.guest.services.glob import matches, parse_glob
from bench.guest.services.keyspace import ZSET, Keyspace
from bench.guest.services.redis import RedisStream
from bench.guest.services.redis_collections import format_score
from bench.guest.services.redis_commands import COMMANDS
from bench.guest.services.registry import restore_stream
from bench.guest.store import MIN_REGION_BYTES, Store, StoreFull


def make_machine(store_bytes: int = 1 << 20) -> Machine:
    memory = memoryview(bytearray(store_bytes))
    return Machine(memory, Store.format(memory))


def packed(*words: bytes | str | int) -> bytes:
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def drain(service, most=1 << 30) -> bytes:
    out = bytearray()
    while len(out) < most and (data := service.output(min(1000, most - len(out)))):
        out += data
        service.sent(len(data))
    return bytes(out)


def reply(data: bytes, at: int = 0):
    """One reply, decoded; errors as text that begins with '-'. Returns it and the position behind it."""
    end = data.index(b"\r\n", at)
    kind, line = data[at : at + 1], data[at + 1 : end]
    at = end + 2
    if kind in (b"+", b"-"):
        return (("-" if kind == b"-" else "") + line.decode()), at
    if kind == b":":
        return int(line), at
    if line == b"-1":
        return None, at
    if kind == b"$":
        assert data[at + int(line) : at + int(line) + 2] == b"\r\n"
        return data[at : at + int(line)], at + int(line) + 2
    assert kind == b"*"
    items = []
    for _item in range(int(line)):
        item, at = reply(data, at)
        items.append(item)
    return items, at


class Client:
    """A client of one connection, whose service moves before each command."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.service = RedisStream(machine)

    def __call__(self, *words):
        self.service = restore_stream("redis", json.loads(json.dumps(self.service.export())), self.machine)
        self.service.received(packed(*words))
        data = drain(self.service)
        value, end = reply(data)
        assert end == len(data)
        self.machine.store.check()
        return value


@pytest.fixture
def client() -> Client:
    return Client(make_machine())


def test_strings(client):
    assert client("SET", "k", "v") == "OK"
    assert client("get", "k") == b"v"
    assert client("GET", "none") is None
    assert client("SET", "k", b"\r\n\x00\xff") == "OK"
    assert client("STRLEN", "k") == 4
    assert client("APPEND", "k", "tail") == 8
    assert client("GETSET", "k", "new") == b"\r\n\x00\xfftail"
    assert client("SETNX", "k", "x") == 0
    assert client("SETNX", "k2", "x") == 1
    assert client("MSET", "a", 1, "b", 2) == "OK"
    assert client("MGET", "a", "none", "b") == [b"1", None, b"2"]
    assert client("EXISTS", "a", "a", "none") == 2
    assert client("GETDEL", "a") == b"1"
    assert client("DEL", "a", "b", "k") == 2
    assert client("DBSIZE") == 1
    assert client("TYPE", "k2") == "string"
    assert client("TYPE", "none") == "none"
    assert client("TTL", "k2") == -1
    assert client("FLUSHALL", "ASYNC") == "OK"
    assert client("DBSIZE") == 0
    assert len(client.machine.store) == 0


def test_set_options(client):
    assert client("SET", "k", "1", "NX") == "OK"
    assert client("SET", "k", "2", "NX") is None
    assert client("SET", "other", "2", "XX") is None
    assert client("SET", "k", "2", "XX", "GET") == b"1"
    assert client("GET", "k") == b"2"
    for options in (["EX", "10"], ["PX", "10"], ["KEEPTTL"], ["EXAT", "1"]):
        assert client("SET", "k", "3", *options).startswith("-ERR option")
    for options in (["NX", "XX"], ["WHAT"], ["NX", "NX"]):
        assert client("SET", "k", "3", *options) == "-ERR syntax error"
    assert client("GET", "k") == b"2"


def test_numbers(client):
    assert client("INCR", "n") == 1
    assert client("INCRBY", "n", 41) == 42
    assert client("DECR", "n") == 41
    assert client("DECRBY", "n", -1) == 42
    assert client("INCRBY", "n", (1 << 63) - 1).startswith("-ERR increment or decrement would overflow")
    for bad in ("x", "01", "+1", " 1", "1.0", "-0", str(1 << 63), ""):
        client("SET", "bad", bad)
        assert client("INCR", "bad") == "-ERR value is not an integer or out of range"
    assert client("DECRBY", "n", -(1 << 63)) == "-ERR decrement would overflow"


def test_errors_are_in_redis_words(client):
    assert client("FOO", "a", "b") == "-ERR unknown command 'FOO', with args beginning with: 'a' 'b' "
    assert client("GET") == "-ERR wrong number of arguments for 'get' command"
    assert client("MSET", "a", 1, "b") == "-ERR wrong number of arguments for 'mset' command"
    assert client("SELECT", 0) == "OK"
    assert client("SELECT", 1) == "-ERR DB index is out of range"
    assert client("HELLO", 3) == "-NOPROTO unsupported protocol version"
    assert client("CLIENT", "KILL", "x").startswith("-ERR unknown subcommand")
    assert client("CONFIG", "SET", "x", "y").startswith("-ERR unknown subcommand")
    assert client("SCAN", "x") == "-ERR invalid cursor"
    client("LPUSH", "list", 1)
    wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value"
    for words in (["GET", "list"], ["INCR", "list"], ["SADD", "list", 1], ["HGET", "list", 1], ["ZCARD", "list"]):
        assert client(*words) == wrong
    client("SET", "string", 1)
    assert client("LPUSH", "string", 1) == wrong
    assert client("MGET", "list", "string") == [None, b"1"]
    assert client("SET", b"k" * 9000, "v").startswith("-ERR a key or member longer")
    assert client("SADD", "set", b"k" * 9000).startswith("-ERR a key or member longer")
    assert client("EXISTS", "set") == 0
    assert client("GET", b"k" * 9000) is None


def test_connection_and_server(client):
    assert client("PING") == "PONG"
    assert client("PING", "x") == b"x"
    assert client("ECHO", "x") == b"x"
    assert client("CLIENT", "SETNAME", "me") == "OK"
    assert client("CLIENT", "GETNAME") == b"me"
    assert client("CLIENT", "SETNAME", "not me").startswith("-ERR Client names")
    assert client("CLIENT", "ID") == 1
    assert Client(client.machine)("CLIENT", "ID") == 2
    assert client("HELLO", 2)[:6] == [b"server", b"redis", b"version", b"7.0.0", b"proto", 2]
    assert client("CONFIG", "GET", "save") == [b"save", b""]
    assert client("CONFIG", "GET", "append*", "save") == [b"save", b"", b"appendonly", b"no"]
    assert client("CONFIG", "GET", "nothing") == []
    assert client("COMMAND", "COUNT") == len(COMMANDS)
    assert client("COMMAND", "DOCS", "get") == []
    assert client("COMMAND", "INFO", "get", "nothing") == [[b"get", 2, [], 0, 0, 0], None]
    assert len(client("COMMAND")) == len(COMMANDS)
    client("SET", "k", "v")
    info = client("INFO")
    assert b"redis_version:7" in info
    assert b"db0:keys=1," in info
    assert client("INFO", "keyspace").startswith(b"# Keyspace")
    assert client("QUIT") == "OK"
    assert client.service.closing


def test_lists(client):
    assert client("RPUSH", "l", "c", "d") == 2
    assert client("LPUSH", "l", "b", "a") == 4
    assert client("LRANGE", "l", 0, -1) == [b"a", b"b", b"c", b"d"]
    assert client("LRANGE", "l", -3, 2) == [b"b", b"c"]
    assert client("LRANGE", "l", 3, 1) == []
    assert client("LLEN", "l") == 4
    assert client("LPOP", "l") == b"a"
    assert client("RPOP", "l", 2) == [b"d", b"c"]
    assert client("LPOP", "l", 9) == [b"b"]
    assert client("EXISTS", "l") == 0
    assert client("LPOP", "l") is None
    assert client("LPOP", "l", 1) is None
    assert client("LLEN", "l") == 0
    assert len(client.machine.store) == 0


def test_sets_hashes_and_sorted_sets(client):
    assert client("SADD", "s", "a", "b", "a") == 2
    assert client("SISMEMBER", "s", "a") == 1
    assert client("SCARD", "s") == 2
    assert sorted(client("SMEMBERS", "s")) == [b"a", b"b"]
    assert client("SREM", "s", "a", "x") == 1
    assert client("SPOP", "s") == b"b"
    assert client("SPOP", "s") is None
    assert client("SPOP", "s", 3) == []
    assert client("HSET", "h", "f", 1, "g", 2) == 2
    assert client("HSET", "h", "f", "one") == 0
    assert client("HMGET", "h", "f", "x") == [b"one", None]
    assert client("HGETALL", "h") == [b"f", b"one", b"g", b"2"]
    assert client("HDEL", "h", "f") == 1
    assert client("HEXISTS", "h", "f") == 0
    assert client("HLEN", "h") == 1
    assert client("ZADD", "z", 2, "b", "1.5", "a", "-inf", "c") == 3
    assert client("ZRANGE", "z", 0, -1) == [b"c", b"a", b"b"]
    assert client("ZRANGE", "z", 1, 1, "WITHSCORES") == [b"a", b"1.5"]
    assert client("ZADD", "z", 9, "a") == 0
    assert client("ZSCORE", "z", "a") == b"9"
    assert client("ZPOPMIN", "z", 2) == [b"c", b"-inf", b"b", b"2"]
    assert client("ZADD", "z", "nan", "a") == "-ERR value is not a valid float"
    assert client("ZADD", "z", "NX", 1, "a").startswith("-ERR option NX")
    assert client("ZREM", "z", "a") == 1
    assert client("ZCARD", "z") == 0
    client("SADD", "over", "x")
    assert client("SET", "over", "string") == "OK"
    assert client("DEL", "over", "h") == 2
    assert len(client.machine.store) == 0


def test_scores_are_written_as_redis_does():
    expected = {3.0: b"3", 1.5: b"1.5", 0.1: b"0.1", 1e20: b"1e+20", float("inf"): b"inf", -2.0: b"-2"}
    assert {score: format_score(score) for score in expected} == expected


def test_keys_and_scan(client):
    keys = {f"key:{number}".encode() for number in range(120)}
    for key in keys:
        client.service.received(packed("SET", key, "x"))
    drain(client.service)
    client("SADD", "set", *range(100))
    assert set(client("KEYS", "*")) == keys | {b"set"}
    assert sorted(client("KEYS", "key:1?")) == sorted(b"key:1%d" % digit for digit in range(10))
    for options, expected in (
        ([], keys | {b"set"}),
        (["MATCH", "key:*", "COUNT", 7], keys),
        (["TYPE", "set"], {b"set"}),
    ):
        seen, cursor = [], b"0"
        while True:
            cursor, found = client("SCAN", cursor, *options)
            seen += found
            if cursor == b"0":
                break
        assert sorted(seen) == sorted(expected)


def test_data_lies_in_guest_memory_alone(client):
    client("SET", "k", "v")
    client("RPUSH", "l", *range(500))
    client("ZADD", "z", 3, "c", 1, "a", 2, "b")
    copy = memoryview(bytearray(client.machine.memory))
    moved = Client(Machine(copy, Store.open(copy)))
    client("FLUSHALL")
    assert moved("GET", "k") == b"v"
    assert moved("LRANGE", "l", 0, -1) == [b"%d" % number for number in range(500)]
    assert moved("ZPOPMIN", "z", 3) == [b"a", b"1", b"b", b"2", b"c", b"3"]
    assert moved("DBSIZE") == 2


def test_a_full_store_refuses_and_stays_whole():
    client = Client(make_machine(MIN_REGION_BYTES))
    oom = "-OOM command not allowed when used memory > 'maxmemory'."
    for words in (["SET"], ["RPUSH", "l"], ["SADD", "s"], ["HSET", "h"], ["ZADD", "z", 1]):
        number = 0
        while True:
            number += 1
            key = f"{words[0]}:{number}"
            value = client(*words, key, "x" * 300) if words[0] in ("SET", "HSET") else client(*words, key + "x" * 300)
            if value == oom:
                break
        assert number > 10
        keyspace = Keyspace(client.machine.store)
        assert len(keyspace) == len(list(keyspace))
        client("DEL", "l", "s", "h", "z", *(f"SET:{number}" for number in range(500)))
    assert client("SET", "new", "x" * 2000) == "OK"
    assert client("FLUSHALL") == "OK"
    client.machine.store.check()
    assert client("SET", "k", "x" * 20_000) == "OK"


STEPS = ["add", "add", "add", "pop", "remove"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(-3, 3))))
@settings(max_examples=60, deadline=None)
def test_a_sorted_set_pops_in_order(steps):
    store = make_machine(MIN_REGION_BYTES).store
    keyspace, model = Keyspace(store), {}
    for name, number, score in steps:
        member = b"m%d" % number * (1 + number % 7)
        value = keyspace.get_members(b"z", ZSET, create=True)
        if name == "add":
            assert value.add(member, resp_score(score)) == (member not in model)
            model[member] = float(score)
        elif name == "remove":
            assert value.remove(member) == (model.pop(member, None) is not None)
        elif model:
            least = min((score, member) for member, score in model.items())
            assert (value.score(value.at(0)), value.at(0)) == least
            value.remove(value.at(0))
            del model[least[1]]
        assert value.ordered() == sorted((score, member) for member, score in model.items())
        keyspace.prune(b"z", value)
        store.check()


def resp_score(score: float) -> bytes:
    return struct.pack(">d", score)


def test_a_sorted_set_in_a_full_store_loses_nothing():
    store, random_source = make_machine(MIN_REGION_BYTES).store, random.Random(7)
    keyspace = Keyspace(store)
    value, model = keyspace.get_members(b"z", ZSET, create=True), {}
    try:
        while True:
            member = bytes(random_source.choice([3, 30, 300])) + b"%d" % len(model)
            score = random_source.random()
            value.add(member, resp_score(score))
            model[member] = score
    except StoreFull:
        pass
    try:
        while True:
            store.set(b"fill%d" % len(store), b"x")
    except StoreFull:
        pass
    for member in list(model)[::3]:  # change ranks and remove without any room left
        model[member] = -model[member]
        value.add(member, resp_score(model[member]))
    popped = []
    while value.count:
        popped.append((value.score(value.at(0)), value.at(0)))
        value.remove(value.at(0))
    assert popped == sorted((score, member) for member, score in model.items())
    store.check()


# the protocol


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


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"a*b*c", b"axxbyyc", True),
        (b"a*b*c", b"axxbyy", False),
        (b"?", b"", False),
        (b"h?llo", b"hello", True),
        (b"h[ae]llo", b"hallo", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[a-c]llo", b"hbllo", True),
        (b"h[c-a]llo", b"hbllo", True),
        (rb"\*x", b"*x", True),
        (rb"\*x", b"yx", False),
        (b"[", b"x", False),
        (b"[ab", b"b", True),
        (b"a" + b"*a" * 40, b"a" * 2000 + b"b", False),
    ],
)
def test_glob(pattern, text, expected):
    assert matches(parse_glob(pattern), text) == expected
