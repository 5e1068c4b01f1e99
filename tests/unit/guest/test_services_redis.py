"""The key-value server: commands, errors in Redis' words, and data in guest memory."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_connection import Client, drain, make_machine, packed

from bench.guest.services.base import Machine
from bench.guest.services.keyspace import ZSET, Keyspace
from bench.guest.services.redis_collections import format_score
from bench.guest.services.redis_commands import COMMANDS
from bench.guest.store import MIN_REGION_BYTES, Store, StoreFull


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
