"""One connection to the key-value server without a socket, its service moved before each command."""

from __future__ import annotations

import json

from bench.guest.services.base import Machine
from bench.guest.services.redis import RedisStream
from bench.guest.services.registry import restore_stream
from bench.guest.store import Store


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
