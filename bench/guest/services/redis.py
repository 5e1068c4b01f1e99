"""The guest's key-value server: Redis' protocol over the guest's store, as a state machine that can move at any byte.

The data is in guest memory (:mod:`bench.guest.services.keyspace`); a connection holds unparsed input, unsent output and
its name. While more than :data:`OUTPUT_BOUND_BYTES` of replies wait to be sent no further command is executed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.guest.services import (
    redis_collections,  # noqa: F401 - registers its commands
    resp,
)
from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine, OutputBuffer, integer, pack, unpack
from bench.guest.services.keyspace import Keyspace, WrongType
from bench.guest.services.redis_commands import COMMANDS, CommandError, Session
from bench.guest.store import MAX_KEY_BYTES, StoreFull

WRITES = frozenset(
    b"append decr decrby del flushall flushdb getdel getset hdel hmset hset incr incrby lpop lpush mset rpop rpush sadd"
    b" set setnx spop srem unlink zadd zpopmin zrem".split()
)
"""The commands that may change the store: a durable one has them on its disk before their replies leave."""

INPUT_BOUND_BYTES = resp.MAX_COMMAND_BYTES + (1 << 16)


def execute(session: Session, words: list[bytes]) -> bytes:
    """The reply to one command."""
    command = COMMANDS.get(words[0].lower())
    if command is None:
        return resp.error(_unknown(words))
    if not command.accepts(len(words)):
        return resp.error(f"ERR wrong number of arguments for '{command.name}' command")
    try:
        return command.handler(session, words)
    except CommandError as problem:
        return resp.error(str(problem))
    except WrongType:
        return resp.error("WRONGTYPE Operation against a key holding the wrong kind of value")
    except StoreFull:
        return resp.error("OOM command not allowed when used memory > 'maxmemory'.")
    except ValueError:
        return resp.error(f"ERR a key or member longer than about {MAX_KEY_BYTES} bytes")


def replay(machine: Machine, commands: Iterable[bytes]) -> None:
    """Carry out again what a durable store's log holds."""
    session = Session(Keyspace(machine.store), 0)
    for payload in commands:
        parser = resp.CommandParser()
        parser.feed(payload)
        words = parser.next()
        if words is not None:
            execute(session, words)


def _unknown(words: list[bytes]) -> str:
    shown = ""
    for word in words[1:]:
        if len(shown) >= 128:
            break
        shown += f"'{word[: 128 - len(shown)].decode('utf-8', 'surrogateescape')}' "
    name = words[0][:128].decode("utf-8", "surrogateescape")
    return f"ERR unknown command '{name}', with args beginning with: {shown}"


class RedisStream:
    """One connection."""

    name = "redis"

    def __init__(self, machine: Machine) -> None:
        keyspace = Keyspace(machine.store)
        self._session = Session(keyspace, keyspace.new_client())
        self._parser = resp.CommandParser()
        self._out = OutputBuffer()
        self._eof = False
        self._begin_holding(machine)

    def _begin_holding(self, machine: Machine) -> None:
        """Of a durable store: replies wait until what they tell of is on the disk."""
        self._journal = machine.journal
        self._held: deque[tuple[int, int]] = deque()  # from which byte on, and what must be on the disk for it
        self._produced = len(self._out)
        self._taken = 0
        self._poke: Callable[[], None] | None = None

    def attach(self, poke: Callable[[], None]) -> None:
        """:param poke: called when :meth:`output` may have more by itself."""
        self._poke = poke

    @property
    def reading(self) -> bool:
        return (
            not self._eof
            and not self._session.quitting
            and len(self._out) < OUTPUT_BOUND_BYTES
            and self._parser.waiting_bytes < INPUT_BOUND_BYTES
        )

    @property
    def closing(self) -> bool:
        if self._held:
            return self._journal is not None and bool(self._journal.error)
        return self._session.quitting or (self._eof and len(self._out) < OUTPUT_BOUND_BYTES)

    def received(self, data: bytes) -> None:
        if not self._session.quitting:
            self._parser.feed(data)
            self._advance()

    def received_eof(self) -> None:
        self._eof = True

    def output(self, limit: int) -> bytes:
        journal, held = self._journal, self._held
        if journal is None or not held:
            return self._out.peek(limit)
        while held and held[0][1] <= journal.durable:
            held.popleft()
        if held and self._poke is not None:
            journal.watch(self._poke)  # what it was called for may have been an earlier commit
        return self._out.peek(min(limit, held[0][0] - self._taken) if held else limit)

    def sent(self, count: int) -> None:
        self._out.drop(count)
        self._taken += count
        self._advance()

    def wake_ns(self) -> int | None:
        return None

    def _advance(self) -> None:
        """Execute what is complete, as far as there is room for replies."""
        session, parser, out = self._session, self._parser, self._out
        try:
            while len(out) < OUTPUT_BOUND_BYTES and not session.quitting and (words := parser.next()) is not None:
                out += self._execute(session, words)
        except resp.ProtocolError as problem:
            reply = resp.error(f"ERR Protocol error: {problem}")
            self._produced += len(reply)
            out += reply
            session.quitting = True
        if session.quitting:
            self._parser = resp.CommandParser()

    def _execute(self, session: Session, words: list[bytes]) -> bytes:
        """The reply to a command. One of a durable store is held until everything before it is on the disk."""
        journal = self._journal
        if journal is None:
            return execute(session, words)
        if words[0].lower() in WRITES:
            payload = resp.bulks(words)
            refused = journal.accepts(len(payload))
            if refused:
                journal.refused += 1
                reply = resp.error(f"MISCONF the store is durable, and {refused}")
            else:
                reply = execute(session, words)
                journal.append(payload)
        else:
            reply = execute(session, words)
        if not journal.settled:
            if not self._held or self._held[-1][1] < journal.appended:
                self._held.append((self._produced, journal.appended))
            if self._poke is not None:
                journal.watch(self._poke)
        self._produced += len(reply)
        return reply

    def export(self) -> dict[str, Any]:
        session = self._session
        return {
            "parser": self._parser.export(),
            "out": self._out.pack(),
            "client_id": session.client_id,
            "client_name": pack(session.client_name),
            "quitting": session.quitting,
            "eof": self._eof,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], machine: Machine) -> RedisStream:
        service = cls.__new__(cls)  # __init__ would count a new client in guest memory
        service._session = Session(
            Keyspace(machine.store),
            integer(state, "client_id"),
            unpack(state["client_name"]),
            bool(state["quitting"]),
        )
        service._parser = resp.CommandParser.restore(state["parser"])
        service._out = OutputBuffer(unpack(state["out"]))
        service._eof = bool(state["eof"])
        service._begin_holding(machine)
        return service
