"""The SSH carrier over the loopback: a real sshd and paramiko, no guest and no network."""

import contextlib
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.migration import wire
from bench.migration.certificates import make_ssh_key
from bench.migration.ssh import Ssh
from bench.migration.transport import PeerLost
from bench.migration.wire import Kind

pytestmark = pytest.mark.root

HELLO = wire.encode_json(Kind.HELLO, {"ticket": "t"})


class Tunnel:
    """The destination's side open, and credentials for the source's."""

    def __init__(self, stack, directory):
        self.source, destination = Ssh().credentials()
        place = SimpleNamespace(
            address="127.0.0.1",
            port=0,
            ticket="t",
            link_timeout_ns=5 * NS_PER_S,
            credentials=destination,
            guest_log=str(directory / "guest.log"),
        )
        self.reception = Ssh().receive(place, stack)

    def dial(self, **changed):
        credentials = {**self.source, **self.reception.hints, **changed}
        return (
            Ssh().dialer("127.0.0.1", self.reception.port, 2 * NS_PER_S, credentials).dial(Deadline(5 * NS_PER_S), {})
        )

    def enter(self):
        never, other = os.pipe()
        try:
            return self.reception.door.wait(Deadline(10 * NS_PER_S), never, lambda: None)
        finally:
            os.close(never)
            os.close(other)


@pytest.fixture
def tunnel(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Tunnel(stack, tmp_path)


def test_bytes_go_both_ways_and_what_waits_counts_as_queued(tunnel):
    here = tunnel.dial()
    here.send(HELLO)
    there = tunnel.enter().connection
    data = os.urandom(4 << 20)
    sender = threading.Thread(target=here.send, args=(data,))
    sender.start()
    received = bytearray(len(data))
    there.read_into(memoryview(received))
    sender.join()
    assert bytes(received) == data
    there.send(b"answer")
    assert here.read_exactly(6) == b"answer"
    wait_until(lambda: here.info().queued_bytes == 0, Deadline(5 * NS_PER_S), "all of it acknowledged")
    assert here.info().acked_bytes == here.sent_bytes == len(HELLO) + len(data)
    cost = here.cost()
    assert 0 < cost["overhead_bytes"] < len(data) // 50
    assert min(cost["cpu_ns"], cost["handshake_ns"], tunnel.reception.cost()["cpu_ns"]) > 0
    here.close()
    there.close()


def test_a_peer_that_reads_nothing_fills_the_queue_and_ends_in_a_lost_peer(tunnel):
    """Nothing blocks beyond the poll, which serves what it watches; what is in the tunnel is in the figure."""
    here = tunnel.dial()
    here.send(HELLO)
    there = tunnel.enter().connection
    served = []
    waker, wake = socket.socketpair()
    with waker, wake:
        here.watch(waker.fileno(), lambda: served.append(waker.recv(1)))
        wake.send(b"c")
        here.give_up = Deadline(NS_PER_S)
        with pytest.raises(PeerLost):
            here.send(bytes(64 << 20))
        assert served == [b"c"]
        assert here.broken
        here.abort()
    with contextlib.suppress(PeerLost):  # what was under way before the reset may still be read
        while there.read_available(memoryview(bytearray(1 << 20))):
            pass
    there.close()


def test_a_wrong_host_key_is_refused_before_anything_is_sent(tunnel):
    with pytest.raises(PeerLost, match=r"host key .* is not the one made for this migration; nothing was sent"):
        tunnel.dial(host_key=make_ssh_key().public)


def test_a_wrong_key_is_refused(tunnel):
    with pytest.raises(PeerLost, match="Authentication"):
        tunnel.dial(key=make_ssh_key().key)


def test_nothing_but_the_engine_can_be_reached(tunnel):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PeerLost, match="prohibited"):
        tunnel.dial(forward=["127.0.0.1", other.getsockname()[1]])


def test_strangers_do_not_keep_the_source_out(tunnel):
    with contextlib.ExitStack() as held:
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-stranger\r\n", b"\0" * 64):
            stranger = held.enter_context(
                socket.create_connection(("127.0.0.1", tunnel.reception.port), 5, source_address=("127.0.0.2", 0))
            )
            stranger.sendall(said)
        here = tunnel.dial()
        here.send(HELLO)
        tunnel.enter().connection.close()
        here.close()
