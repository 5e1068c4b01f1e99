"""Redis commands on strings, keys and the server; each with its arity, its answers and error texts as Redis 7 has them.

What is not supported is refused in Redis' words, never ignored: keys do not expire, so SET with EX is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.guest.services import resp
from bench.guest.services.glob import matches, parse_glob
from bench.guest.services.keyspace import TYPE_NAMES, Keyspace

VERSION = "7.0.0"
MAX_STRING_BYTES = resp.MAX_BULK_BYTES
_MAX_SCAN = 10_000
_CONFIG = {b"save": b"", b"appendonly": b"no", b"databases": b"1", b"maxmemory-policy": b"noeviction", b"timeout": b"0"}


class CommandError(Exception):
    """An error reply; the text begins with its code."""


@dataclass(slots=True)
class Session:
    """What a connection knows between two commands."""

    keyspace: Keyspace
    client_id: int
    client_name: bytes = b""
    quitting: bool = False


Handler = Callable[[Session, list[bytes]], bytes]


@dataclass(frozen=True, slots=True)
class Command:
    """*arity* counts the command's name; a negative one is a minimum."""

    name: str
    arity: int
    handler: Handler

    def accepts(self, count: int) -> bool:
        return count == self.arity if self.arity >= 0 else count >= -self.arity


COMMANDS: dict[bytes, Command] = {}


def command(name: str, arity: int) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        COMMANDS[name.encode()] = Command(name, arity, handler)
        return handler

    return register


def syntax_error() -> CommandError:
    """What Redis answers to options that it does not know."""
    return CommandError("ERR syntax error")


def unsupported(option: bytes) -> CommandError:
    """The answer to an option about expiry."""
    return CommandError(f"ERR option {option.decode('utf-8', 'replace').upper()} is not supported: keys do not expire")


def integer_argument(text: bytes) -> int:
    """:raises CommandError: when *text* is no 64-bit integer."""
    value = resp.parse_integer(text)
    if value is None:
        raise CommandError("ERR value is not an integer or out of range")
    return value


# strings


@command("get", 2)
def _get(session: Session, args: list[bytes]) -> bytes:
    return resp.bulk(session.keyspace.get(args[1]))


@command("set", -3)
def _set(session: Session, args: list[bytes]) -> bytes:
    key, value = args[1], args[2]
    if len(args) == 3:
        session.keyspace.set(key, value)
        return resp.OK
    options = {option.lower() for option in args[3:]}
    for option in (b"ex", b"px", b"exat", b"pxat", b"keepttl"):
        if option in options:
            raise unsupported(option)
    if not options <= {b"nx", b"xx", b"get"} or len(options) != len(args) - 3 or {b"nx", b"xx"} <= options:
        raise syntax_error()
    keyspace = session.keyspace
    old = keyspace.get(key) if b"get" in options else None
    answer = resp.bulk(old) if b"get" in options else resp.OK
    if options & {b"nx", b"xx"} and (keyspace.kind(key) is None) != (b"nx" in options):
        return answer if b"get" in options else resp.NIL
    keyspace.set(key, value)
    return answer


@command("setnx", 3)
def _setnx(session: Session, args: list[bytes]) -> bytes:
    if session.keyspace.kind(args[1]) is not None:
        return resp.number(0)
    session.keyspace.set(args[1], args[2])
    return resp.number(1)


@command("getset", 3)
def _getset(session: Session, args: list[bytes]) -> bytes:
    old = session.keyspace.get(args[1])
    session.keyspace.set(args[1], args[2])
    return resp.bulk(old)


@command("getdel", 2)
def _getdel(session: Session, args: list[bytes]) -> bytes:
    old = session.keyspace.get(args[1])
    if old is not None:
        session.keyspace.delete(args[1])
    return resp.bulk(old)


@command("mset", -3)
def _mset(session: Session, args: list[bytes]) -> bytes:
    """A full store ends it with -OOM; the pairs before that one are stored."""
    if len(args) % 2 == 0:
        raise CommandError("ERR wrong number of arguments for 'mset' command")
    for at in range(1, len(args), 2):
        session.keyspace.set(args[at], args[at + 1])
    return resp.OK


@command("mget", -2)
def _mget(session: Session, args: list[bytes]) -> bytes:
    return resp.bulks(session.keyspace.get_if_string(key) for key in args[1:])


@command("append", 3)
def _append(session: Session, args: list[bytes]) -> bytes:
    value = (session.keyspace.get(args[1]) or b"") + args[2]
    if len(value) > MAX_STRING_BYTES:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    session.keyspace.set(args[1], value)
    return resp.number(len(value))


@command("strlen", 2)
def _strlen(session: Session, args: list[bytes]) -> bytes:
    return resp.number(len(session.keyspace.get(args[1]) or b""))


def _add(session: Session, key: bytes, change: int) -> bytes:
    old = session.keyspace.get(key)
    value = (0 if old is None else integer_argument(old)) + change
    if not -(1 << 63) <= value < 1 << 63:
        raise CommandError("ERR increment or decrement would overflow")
    session.keyspace.set(key, b"%d" % value)
    return resp.number(value)


@command("incr", 2)
def _incr(session: Session, args: list[bytes]) -> bytes:
    return _add(session, args[1], 1)


@command("decr", 2)
def _decr(session: Session, args: list[bytes]) -> bytes:
    return _add(session, args[1], -1)


@command("incrby", 3)
def _incrby(session: Session, args: list[bytes]) -> bytes:
    return _add(session, args[1], integer_argument(args[2]))


@command("decrby", 3)
def _decrby(session: Session, args: list[bytes]) -> bytes:
    change = integer_argument(args[2])
    if change == -(1 << 63):
        raise CommandError("ERR decrement would overflow")
    return _add(session, args[1], -change)


# keys


@command("del", -2)
@command("unlink", -2)
def _del(session: Session, args: list[bytes]) -> bytes:
    return resp.number(sum(session.keyspace.delete(key) for key in args[1:]))


@command("exists", -2)
def _exists(session: Session, args: list[bytes]) -> bytes:
    return resp.number(sum(session.keyspace.kind(key) is not None for key in args[1:]))


@command("type", 2)
def _type(session: Session, args: list[bytes]) -> bytes:
    kind = session.keyspace.kind(args[1])
    return b"+%b\r\n" % (b"none" if kind is None else TYPE_NAMES[kind].encode())


@command("ttl", 2)
@command("pttl", 2)
def _ttl(session: Session, args: list[bytes]) -> bytes:
    return resp.number(-2 if session.keyspace.kind(args[1]) is None else -1)


@command("keys", 2)
def _keys(session: Session, args: list[bytes]) -> bytes:
    tokens = parse_glob(args[1])
    return resp.bulks(key for key in session.keyspace if matches(tokens, key))


@command("scan", -2)
def _scan(session: Session, args: list[bytes]) -> bytes:
    if not args[1].isdigit() or int(args[1]) >= 1 << 64:
        raise CommandError("ERR invalid cursor")
    count, tokens, kind = 10, parse_glob(b"*"), None
    for at in range(2, len(args), 2):
        option, value = args[at].lower(), args[at + 1] if at + 1 < len(args) else None
        if value is None:
            raise syntax_error()
        if option == b"count":
            count = integer_argument(value)
            if count < 1:
                raise syntax_error()
        elif option == b"match":
            tokens = parse_glob(value)
        elif option == b"type":
            kind = value.lower()
        else:
            raise syntax_error()
    cursor, keys = session.keyspace.scan(int(args[1]), min(count, _MAX_SCAN))
    found = [key for key in keys if matches(tokens, key)]
    if kind is not None:
        found = [key for key in found if TYPE_NAMES[session.keyspace.kind(key) or b"s"].encode() == kind]
    return resp.array([resp.bulk(b"%d" % cursor), resp.bulks(found)])


@command("dbsize", 1)
def _dbsize(session: Session, args: list[bytes]) -> bytes:
    del args
    return resp.number(len(session.keyspace))


@command("flushall", -1)
@command("flushdb", -1)
def _flush(session: Session, args: list[bytes]) -> bytes:
    if len(args) > 2 or (len(args) == 2 and args[1].lower() not in (b"async", b"sync")):
        raise syntax_error()
    session.keyspace.clear()
    return resp.OK


# connection and server


@command("ping", -1)
def _ping(session: Session, args: list[bytes]) -> bytes:
    del session
    if len(args) > 2:
        raise CommandError("ERR wrong number of arguments for 'ping' command")
    return resp.bulk(args[1]) if len(args) == 2 else b"+PONG\r\n"


@command("echo", 2)
def _echo(session: Session, args: list[bytes]) -> bytes:
    del session
    return resp.bulk(args[1])


@command("quit", -1)
def _quit(session: Session, args: list[bytes]) -> bytes:
    del args
    session.quitting = True
    return resp.OK


@command("select", 2)
def _select(session: Session, args: list[bytes]) -> bytes:
    del session
    if integer_argument(args[1]) != 0:
        raise CommandError("ERR DB index is out of range")
    return resp.OK


@command("hello", -1)
def _hello(session: Session, args: list[bytes]) -> bytes:
    """RESP2 only: a client that asks for RESP3 falls back."""
    if len(args) > 1 and args[1] != b"2":
        if resp.parse_integer(args[1]) is None:
            raise CommandError("ERR Protocol version is not an integer or out of range")
        raise CommandError("NOPROTO unsupported protocol version")
    if len(args) > 2:
        raise CommandError("ERR syntax error in HELLO option: none is supported")
    return resp.array(
        [
            *(resp.bulk(item) for item in (b"server", b"redis", b"version", VERSION.encode(), b"proto")),
            resp.number(2),
            resp.bulk(b"id"),
            resp.number(session.client_id),
            *(resp.bulk(item) for item in (b"mode", b"standalone", b"role", b"master", b"modules")),
            resp.EMPTY,
        ]
    )


@command("client", -2)
def _client(session: Session, args: list[bytes]) -> bytes:
    what = args[1].lower()
    if what == b"id" and len(args) == 2:
        return resp.number(session.client_id)
    if what == b"getname" and len(args) == 2:
        return resp.bulk(session.client_name or None)
    if what == b"setname" and len(args) == 3:
        if any(not 0x21 <= byte <= 0x7E for byte in args[2]) or len(args[2]) > 1024:
            raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
        session.client_name = args[2]
        return resp.OK
    if what == b"setinfo" and len(args) == 4:
        return resp.OK  # what a client library calls itself; nobody asks for it
    raise _unknown_subcommand("CLIENT", args[1])


def _unknown_subcommand(name: str, given: bytes) -> CommandError:
    text = given[:128].decode("utf-8", "surrogateescape")
    return CommandError(f"ERR unknown subcommand or wrong number of arguments for '{text}'. Try {name} HELP.")


@command("command", -1)
def _command(session: Session, args: list[bytes]) -> bytes:
    del session
    what = args[1].lower() if len(args) > 1 else b""
    if what == b"count":
        return resp.number(len(COMMANDS))
    if what == b"docs":
        return resp.EMPTY
    if what not in (b"", b"info"):
        raise _unknown_subcommand("COMMAND", args[1])
    wanted = [name.lower() for name in args[2:]] if len(args) > 2 else list(COMMANDS)
    return resp.array(_describe(name) for name in wanted)


def _describe(name: bytes) -> bytes:
    """Name and arity; flags and key positions are left empty."""
    if name not in COMMANDS:
        return resp.NIL_ARRAY
    zero = resp.number(0)
    return resp.array([resp.bulk(name), resp.number(COMMANDS[name].arity), resp.EMPTY, zero, zero, zero])


@command("config", -2)
def _config(session: Session, args: list[bytes]) -> bytes:
    if args[1].lower() != b"get" or len(args) < 3:
        raise _unknown_subcommand("CONFIG", args[1])
    known = {**_CONFIG, b"maxmemory": b"%d" % session.keyspace.store.capacity_bytes}
    patterns = [parse_glob(pattern.lower()) for pattern in args[2:]]
    found = [name for name in known if any(matches(pattern, name) for pattern in patterns)]
    return resp.bulks(item for name in found for item in (name, known[name]))


@command("info", -1)
def _info(session: Session, args: list[bytes]) -> bytes:
    store, keys = session.keyspace.store, len(session.keyspace)
    sections = {
        "server": ["# Server", f"redis_version:{VERSION}", "redis_mode:standalone", "server_name:migration-bench"],
        "memory": ["# Memory", f"used_memory:{store.used_bytes}", f"maxmemory:{store.capacity_bytes}"],
        "persistence": ["# Persistence", "loading:0"],
        "replication": ["# Replication", "role:master", "connected_slaves:0"],
        "keyspace": ["# Keyspace", *([f"db0:keys={keys},expires=0,avg_ttl=0"] if keys else [])],
    }
    wanted = {name.lower().decode("utf-8", "replace") for name in args[1:]} or {"all"}
    if wanted & {"all", "default", "everything"}:
        wanted = set(sections)
    text = "\r\n\r\n".join("\r\n".join(lines) for name, lines in sections.items() if name in wanted)
    return resp.bulk(text.encode() + b"\r\n" if text else b"")
