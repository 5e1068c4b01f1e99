"""A connection that was restored sends in segments as large as before the move."""

from __future__ import annotations

import socket
import struct

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.guest import tcp_repair
from bench.host.commands import run
from bench.host.sandbox import call_in_sandbox

pytestmark = pytest.mark.root


def segment_bytes(sock: socket.socket) -> int:
    """tcpi_snd_mss of struct tcp_info (linux/tcp.h)."""
    return int(struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 16)[0])


def move() -> list[int]:
    """In a namespace of its own, over loopback with Ethernet's MTU: the segment size before and after."""
    run(["ip", "link", "set", "lo", "mtu", "1500"], deadline=Deadline(10 * NS_PER_S))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        served, _address = listener.accept()
        before = segment_bytes(served)
        state = tcp_repair.dump(served)
        assert state is not None
        served.close()
        restored = tcp_repair.restore(state, None)
        assert not tcp_repair.finish(restored, state)
        restored.send(b"?")  # the kernel tells the size it last sent with
        after = segment_bytes(restored)
        restored.close()
    return [before, after]


def test_the_segment_size_moves_with_a_connection() -> None:
    before, after = call_in_sandbox(move)
    assert before == after == 1448
