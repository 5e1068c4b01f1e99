"""A connection that was restored sends in segments as large as before the move, and waits as long as it was told to."""

from __future__ import annotations

import socket
import struct

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.flows.tcp_info import tcp_info
from bench.flows.tcp_options import TCP_RTO_MIN_US
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


def move_with_a_least_timeout() -> list[int]:
    """The least timeout before and after (the kernel counts in ticks), and the timer of data sent after; in us."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        served, _address = listener.accept()
        served.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MIN_US, 5000)
        found = [tcp_repair.least_timeout_us(served)]
        state = tcp_repair.dump(served)
        assert state is not None
        served.close()
        restored = tcp_repair.restore(state, None)
        found.append(tcp_repair.least_timeout_us(restored))
        tcp_repair.finish(restored, state)
        restored.send(b"?")
        found.append(tcp_info(restored).rto_ns // 1000)
        restored.close()
    return found


def test_a_least_timeout_moves_with_a_connection() -> None:
    with socket.socket() as sock:
        if not tcp_repair.least_timeout_us(sock):
            pytest.skip("this kernel has no TCP_RTO_MIN_US (Linux 6.16 has)")
    before_us, after_us, timer_us = call_in_sandbox(move_with_a_least_timeout)
    assert 5000 <= before_us == after_us < 50_000
    assert timer_us < 100_000
