"""Redis commands on lists, sets, hashes and sorted sets: those that redis-benchmark uses, and their nearest relatives.

A command with several elements that meets a full store answers -OOM; the elements before that one are stored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from bench.guest.services import resp
from bench.guest.services.keyspace import HASH, SET, ZSET, ListValue, Members
from bench.guest.services.redis_commands import CommandError, Session, command, integer_argument, syntax_error

_SCORE = struct.Struct(">d")


def format_score(score: float) -> bytes:
    """A double as Redis writes it: the shortest text that reads back the same, whole numbers without a point."""
    if math.isinf(score):
        return b"inf" if score > 0 else b"-inf"
    if score == int(score) and abs(score) < 1e17:
        return b"%d" % int(score)
    return repr(score).encode()


def _score(text: bytes) -> float:
    try:
        score = float(text.decode("ascii"))
    except ValueError:
        score = math.nan
    if math.isnan(score) or b"_" in text or text != text.strip():
        raise CommandError("ERR value is not a valid float")
    return score + 0.0  # -0 is 0


@contextmanager
def _members(session: Session, key: bytes, kind: bytes) -> Any:
    """The collection, made when it is not there; removed again when it is left empty, whatever happens."""
    members = session.keyspace.get_members(key, kind, create=True)
    try:
        yield members
    finally:
        session.keyspace.prune(key, members)


# lists


def _push(session: Session, args: list[bytes], left: bool) -> bytes:
    value = session.keyspace.get_list(args[1], create=True)
    assert value is not None, "it was created"
    try:
        for element in args[2:]:
            value.push(element, left)
    finally:
        session.keyspace.prune(args[1], value)
    return resp.number(value.length)


@command("lpush", -3)
def _lpush(session: Session, args: list[bytes]) -> bytes:
    return _push(session, args, left=True)


@command("rpush", -3)
def _rpush(session: Session, args: list[bytes]) -> bytes:
    return _push(session, args, left=False)


def _count_argument(args: list[bytes]) -> int | None:
    """The optional count behind the key."""
    if len(args) > 3:
        raise CommandError(f"ERR wrong number of arguments for '{args[0].decode('ascii').lower()}' command")
    if len(args) < 3:
        return None
    count = integer_argument(args[2])
    if count < 0:
        raise CommandError("ERR value is out of range, must be positive")
    return count


def _take(
    session: Session, key: bytes, value: ListValue | Members, count: int, pop: Callable[[], bytes]
) -> list[bytes]:
    """*pop* up to *count* times, then remove what is empty."""
    size = value.length if isinstance(value, ListValue) else value.count
    taken = [pop() for _turn in range(min(count, size))]
    session.keyspace.prune(key, value)
    return taken


def _pop(session: Session, args: list[bytes], left: bool) -> bytes:
    count = _count_argument(args)
    value = session.keyspace.get_list(args[1])
    if value is None:
        return resp.NIL if count is None else resp.NIL_ARRAY
    taken = _take(session, args[1], value, 1 if count is None else count, lambda: value.pop(left) or b"")
    return resp.bulk(taken[0]) if count is None else resp.bulks(taken)


@command("lpop", -2)
def _lpop(session: Session, args: list[bytes]) -> bytes:
    return _pop(session, args, left=True)


@command("rpop", -2)
def _rpop(session: Session, args: list[bytes]) -> bytes:
    return _pop(session, args, left=False)


@command("llen", 2)
def _llen(session: Session, args: list[bytes]) -> bytes:
    value = session.keyspace.get_list(args[1])
    return resp.number(value.length if value else 0)


@command("lrange", 4)
def _lrange(session: Session, args: list[bytes]) -> bytes:
    start, stop = integer_argument(args[2]), integer_argument(args[3])
    value = session.keyspace.get_list(args[1])
    return resp.bulks(value.range(start, stop)) if value else resp.EMPTY


# sets


@command("sadd", -3)
def _sadd(session: Session, args: list[bytes]) -> bytes:
    with _members(session, args[1], SET) as members:
        return resp.number(sum(members.add(member) for member in args[2:]))


def _remove(session: Session, args: list[bytes], kind: bytes) -> bytes:
    members = session.keyspace.get_members(args[1], kind)
    if members is None:
        return resp.number(0)
    removed = sum(members.remove(member) for member in args[2:])
    session.keyspace.prune(args[1], members)
    return resp.number(removed)


def _cardinality(session: Session, key: bytes, kind: bytes) -> bytes:
    members = session.keyspace.get_members(key, kind)
    return resp.number(members.count if members else 0)


def _payload(session: Session, key: bytes, kind: bytes, member: bytes) -> bytes | None:
    members = session.keyspace.get_members(key, kind)
    return members.get(member) if members else None


@command("srem", -3)
def _srem(session: Session, args: list[bytes]) -> bytes:
    return _remove(session, args, SET)


@command("spop", -2)
def _spop(session: Session, args: list[bytes]) -> bytes:
    """The members come in no order anyway, so the last is as arbitrary as any; a copy of the guest takes the same."""
    count = _count_argument(args)
    members = session.keyspace.get_members(args[1], SET)
    if members is None:
        return resp.NIL if count is None else resp.EMPTY

    def pop() -> bytes:
        member = members.at(members.count - 1)
        members.remove(member)
        return member

    taken = _take(session, args[1], members, 1 if count is None else count, pop)
    return resp.bulk(taken[0]) if count is None else resp.bulks(taken)


@command("scard", 2)
def _scard(session: Session, args: list[bytes]) -> bytes:
    return _cardinality(session, args[1], SET)


@command("sismember", 3)
def _sismember(session: Session, args: list[bytes]) -> bytes:
    return resp.number(_payload(session, args[1], SET, args[2]) is not None)


@command("smembers", 2)
def _smembers(session: Session, args: list[bytes]) -> bytes:
    members = session.keyspace.get_members(args[1], SET)
    return resp.bulks(members.all()) if members else resp.EMPTY


# hashes


@command("hset", -4)
@command("hmset", -4)
def _hset(session: Session, args: list[bytes]) -> bytes:
    name = args[0].lower()
    if len(args) % 2:
        raise CommandError(f"ERR wrong number of arguments for '{name.decode('ascii')}' command")
    with _members(session, args[1], HASH) as members:
        added = sum(members.add(args[at], args[at + 1]) for at in range(2, len(args), 2))
    return resp.number(added) if name == b"hset" else resp.OK


@command("hget", 3)
def _hget(session: Session, args: list[bytes]) -> bytes:
    return resp.bulk(_payload(session, args[1], HASH, args[2]))


@command("hmget", -3)
def _hmget(session: Session, args: list[bytes]) -> bytes:
    return resp.bulks(_payload(session, args[1], HASH, field) for field in args[2:])


@command("hexists", 3)
def _hexists(session: Session, args: list[bytes]) -> bytes:
    return resp.number(_payload(session, args[1], HASH, args[2]) is not None)


@command("hdel", -3)
def _hdel(session: Session, args: list[bytes]) -> bytes:
    return _remove(session, args, HASH)


@command("hlen", 2)
def _hlen(session: Session, args: list[bytes]) -> bytes:
    return _cardinality(session, args[1], HASH)


@command("hgetall", 2)
def _hgetall(session: Session, args: list[bytes]) -> bytes:
    members = session.keyspace.get_members(args[1], HASH)
    if members is None:
        return resp.EMPTY
    return resp.bulks(item for field in members.all() for item in (field, members.get(field)))


# sorted sets


@command("zadd", -4)
def _zadd(session: Session, args: list[bytes]) -> bytes:
    if args[2].lower() in (b"nx", b"xx", b"gt", b"lt", b"ch", b"incr"):
        raise CommandError(f"ERR option {args[2].decode('ascii').upper()} is not supported")
    if len(args) % 2:
        raise syntax_error()
    pairs = [(_score(args[at]), args[at + 1]) for at in range(2, len(args), 2)]
    with _members(session, args[1], ZSET) as members:
        return resp.number(sum(members.add(member, _SCORE.pack(score)) for score, member in pairs))


@command("zrem", -3)
def _zrem(session: Session, args: list[bytes]) -> bytes:
    return _remove(session, args, ZSET)


@command("zcard", 2)
def _zcard(session: Session, args: list[bytes]) -> bytes:
    return _cardinality(session, args[1], ZSET)


@command("zscore", 3)
def _zscore(session: Session, args: list[bytes]) -> bytes:
    payload = _payload(session, args[1], ZSET, args[2])
    return resp.NIL if payload is None else resp.bulk(format_score(_SCORE.unpack(payload)[0]))


@command("zpopmin", -2)
def _zpopmin(session: Session, args: list[bytes]) -> bytes:
    count = _count_argument(args)
    members = session.keyspace.get_members(args[1], ZSET)
    if members is None:
        return resp.EMPTY
    scores: list[bytes] = []

    def pop() -> bytes:
        member = members.at(0)
        scores.append(format_score(members.score(member)))
        members.remove(member)
        return member

    taken = _take(session, args[1], members, 1 if count is None else count, pop)
    return resp.bulks(item for pair in zip(taken, scores, strict=True) for item in pair)


@command("zrange", -4)
def _zrange(session: Session, args: list[bytes]) -> bytes:
    start, stop = integer_argument(args[2]), integer_argument(args[3])
    if [option.lower() for option in args[4:]] not in ([], [b"withscores"]):
        raise syntax_error()
    members = session.keyspace.get_members(args[1], ZSET)
    if members is None:
        return resp.EMPTY
    start = max(0, start + members.count if start < 0 else start)
    stop = stop + members.count if stop < 0 else stop
    chosen = members.ordered()[start : max(0, stop + 1)]
    if len(args) == 5:
        return resp.bulks(item for score, member in chosen for item in (member, format_score(score)))
    return resp.bulks(member for _score, member in chosen)
