"""Both engines with somebody between them who spoils what crosses: the source's guest runs on as if nothing had been.

Streams by themselves are attacked in ``tests/unit/migration/test_migration_wire_hostile.py``; here whole engines are.
"""

import contextlib
import random
import socket
import threading

import pytest
from forking import forking
from test_migration_engines import MIB, Bench, run

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.channel import Channel

pytestmark = pytest.mark.root

PATIENCE = {"link_timeout_ns": 2 * NS_PER_S, "answer_timeout_ns": 2 * NS_PER_S, "verify": "pause"}


class Between:
    """A relay in front of the destination that spoils one of the two directions once, at a byte of it.

    :param direction: ``there`` (from the source) or ``back``.
    :param spoil: what comes at that byte instead: given what would, and everything before it.
    """

    def __init__(self, stack, direction, at, spoil):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.direction, self.at, self.spoil = direction, at, spoil
        self.spoiled = False
        self.target = 0
        self.sockets = []
        stack.callback(self.close)

    def start(self, target):
        self.target = target
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        with contextlib.suppress(OSError):
            near = self.listener.accept()[0]
            far = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [near, far]
            ways = {"there": (near, far), "back": (far, near)}
            for name, (source, sink) in ways.items():
                threading.Thread(target=self.relay, args=(name, source, sink), daemon=True).start()

    def relay(self, name, source, sink):
        done = bytearray()
        count = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                count += len(data)
                if name == self.direction and not self.spoiled:
                    done += data
                    if count > self.at:
                        self.spoiled = True
                        begin = len(data) - (count - self.at)
                        rest = self.spoil(data[begin:], bytes(done[: self.at]))
                        sink.sendall(data[:begin] + (rest or b""))
                        if rest is None:
                            break
                        continue
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        for sock in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def flip(rest, _before):
    return bytes([rest[0] ^ 0x10]) + rest[1:]


def noise(rest, _before):
    return random.Random(7).randbytes(5000) + rest


def again(rest, before):
    return before[-5000:] + rest


def drop(rest, _before):
    return rest[1:]


def cut(_rest, _before):
    return None


SPOILS = {function.__name__: function for function in (flip, noise, again, drop, cut)}
PLACES = {
    "there": [1, 5, 25, 200, 5000, 100_000, 4 * MIB],  # within HELLO, in the first pages, in the middle of a round
    "back": [1, 5, 25, 60],  # within SKELETON
}


@pytest.fixture
def bench(monkeypatch):
    with contextlib.ExitStack() as stack, forking():
        yield Bench(stack, monkeypatch)


def behind(monkeypatch, on_listen):
    """Have *on_listen* say which port the source is told instead of the destination's."""
    call = Channel.call

    def call_behind(self, command, *args, **options):
        value = call(self, command, *args, **options)
        return {**value, "port": on_listen(value["port"])} if command == "listen" else value

    monkeypatch.setattr(Channel, "call", call_behind)


def lives(path):
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize(("direction", "at"), [(way, at) for way, places in PLACES.items() for at in places])
def test_a_spoiled_stream_leaves_the_guest_where_it_was(bench, monkeypatch, direction, at, spoil):
    bench.boot(rate_bytes_per_s=0)  # so that no later round mends a page
    between = Between(bench.stack, direction, at, SPOILS[spoil])

    def relay(port):
        between.start(port)
        return between.port

    behind(monkeypatch, relay)
    outcome = run(bench, **PATIENCE)
    assert between.spoiled
    assert outcome["outcome"] == "failed", outcome
    assert outcome["reason"]
    bench.moving.stop()
    bench.assert_untouched()
    wait_until(lambda: not lives(bench.directory / "g-h2.sock"), Deadline(10 * NS_PER_S), "no skeleton is left")


@pytest.mark.parametrize("size", [0, 1, 100, 1 << 20])
def test_a_stranger_in_the_sources_place_disturbs_no_migration(bench, monkeypatch, size):
    bench.boot()

    def greet(port):
        stranger = socket.create_connection(("127.0.0.1", port))
        bench.stack.callback(stranger.close)
        with contextlib.suppress(OSError):
            stranger.sendall(random.Random(size).randbytes(size))
            stranger.shutdown(socket.SHUT_WR)
        return port

    behind(monkeypatch, greet)
    outcome = run(bench, **PATIENCE)
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True), outcome
    bench.moving.stop()
    bench.assert_runs_only_at("h2")
