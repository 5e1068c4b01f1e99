"""A disk's connection, over a libnbd whose answers come when the test says so."""

import contextlib
import errno
import socket
import sys
import types

import pytest

from bench.storage.export import WRITE, Export, Request


class Error(Exception):
    errnum = 0


class Code:
    """libnbd's pointer to an error."""

    def __init__(self, value):
        self.value = value


class Handle:
    """:ivar ready: whether the handshake is over; *servers* are what each handle's server is called, in turn.

    :ivar dead: the connection is gone; *reset* lets the next write find that out.
    """

    made: list
    servers: list
    at_once = True

    def __init__(self):
        self.made.append(self)
        self.sock = socket.socket()
        self.ready = self.dead = self.reset = False
        self.calls = []
        self.server = self.servers[min(len(self.made), len(self.servers)) - 1]

    def __getattr__(self, name):
        if name.startswith("set_"):
            return lambda *_args: None
        raise AttributeError(name)

    def aio_connect_tcp(self, _host, _port):
        self.ready = self.at_once

    def aio_is_ready(self):
        return self.ready

    def aio_is_dead(self):
        return self.dead

    aio_is_closed = aio_is_dead

    def aio_get_fd(self):
        if self.dead:
            raise Error
        return self.sock.fileno()

    def aio_get_direction(self):
        return 1

    def aio_notify_read(self):
        self.ready = True

    def get_size(self):
        return 1 << 20

    def get_export_description(self):
        return self.server

    def aio_pwrite(self, buffer, offset, completion, flags=0):
        del flags
        self.calls.append((offset, bytes(buffer)))
        self.completion = completion
        if self.reset:  # libnbd: "command queued, ignoring state machine failure"
            self.dead = True
            completion(Code(errno.ENOTCONN))


@pytest.fixture
def nbd(monkeypatch):
    Handle.made, Handle.servers, Handle.at_once = [], ["one"], True
    made = types.SimpleNamespace(
        NBD=Handle, Error=Error, CMD_FLAG_FUA=1, Buffer=types.SimpleNamespace(from_buffer=lambda view: view)
    )
    monkeypatch.setitem(sys.modules, "nbd", made)
    yield Handle
    for handle in Handle.made:
        handle.sock.close()


def write(offset, byte, told):
    return Request(WRITE, offset, 512, memoryview(bytearray([byte] * 512)), False, told.append)


def finish(export, handle, error=0):
    """The last request is done."""
    handle.completion(Code(error))
    with contextlib.suppress(IndexError):
        export.on_time()


def test_a_server_that_has_answered_everything_at_once_is_not_waited_for(nbd):
    export = Export(("h", 1), "g", "vda", "h1")
    told = []
    export.submit(write(0, 7, told))
    export.open(1)
    assert export.connected
    assert export.size_bytes == 1 << 20
    assert nbd.made[0].calls == [(0, bytes([7] * 512))]


def test_what_another_server_did_not_flush_is_written_again_in_order_before_anything_else(nbd):
    nbd.servers = ["one", "two"]
    export = Export(("h", 1), "g", "vda", "h1")
    export.open(1)
    told = []
    for number in (1, 2):
        export.submit(write(256 * number, number, told))
        finish(export, nbd.made[0])
    export.submit(write(4096, 3, told))  # on its way when the connection breaks
    export.open(2)
    second = nbd.made[1]
    assert told == [0, 0]
    assert [offset for offset, _data in second.calls] == [256]
    assert not export.connected
    finish(export, second)
    finish(export, second)
    assert [offset for offset, _data in second.calls] == [256, 512, 4096]
    assert export.connected


def test_the_same_server_is_not_told_again(nbd):
    export = Export(("h", 1), "g", "vda", "h1")
    export.open(1)
    told = []
    export.submit(write(0, 1, told))
    finish(export, nbd.made[0])
    export.open(2)
    assert nbd.made[1].calls == []
    assert export.connected


def test_a_connection_that_breaks_while_something_is_sent_is_made_anew(nbd):
    """Its socket is closed then: no event of it would ever tell."""
    export = Export(("h", 1), "g", "vda", "h1")
    export.open(1)
    nbd.made[0].reset = True
    told = []
    export.submit(write(0, 7, told))
    for _ in range(2):  # it is told, it tries again
        assert export.due_ns() is not None
        export.on_time()
    assert export.connected
    assert nbd.made[1].calls == [(0, bytes([7] * 512))]
    finish(export, nbd.made[1])
    assert told == [0]
