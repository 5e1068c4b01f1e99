"""A connection that was restored has the congestion window and a retransmission timeout as before the move."""

from __future__ import annotations

import socket
import struct

import pytest

from bench.clock import Deadline
from bench.guest import tcp_repair
from bench.guest.device_state import TcpState
from bench.guest.path_memory import remembered
from bench.guest.port import GUEST_INTERFACE
from bench.host.commands import run
from bench.host.sandbox import call_in_sandbox

pytestmark = pytest.mark.root

GUEST, CLIENT = "10.0.1.1", "10.0.0.1"


def tcp_info(sock: socket.socket) -> tuple[int, int]:
    """(retransmission timeout in us, congestion window in segments)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("I", info, 8)[0], struct.unpack_from("I", info, 80)[0]


def converse() -> list[list[int]]:
    """In a namespace of its own: what a connection's dump looks like restored, without and with its path remembered."""
    deadline = Deadline(10 * 10**9)
    for line in (
        f"ip link add {GUEST_INTERFACE} type veth peer name there",
        f"ip addr add {GUEST}/16 dev {GUEST_INTERFACE}",
        f"ip addr add {CLIENT}/32 dev lo",
        f"ip link set {GUEST_INTERFACE} up",
        "ip link set there up",
    ):
        run(line.split(), deadline=deadline)
    with socket.create_server((GUEST, 80)) as listener, socket.create_connection((GUEST, 80), 5, (CLIENT, 0)) as client:
        served, _address = listener.accept()
        for _ in range(200):
            served.send(b"x" * 1000)
            client.recv(1000, socket.MSG_WAITALL)
        state = tcp_repair.dump(served)
        assert isinstance(state, TcpState)
        served.close()
    run(["ip", "addr", "del", f"{CLIENT}/32", "dev", "lo"], deadline=deadline)
    run(["ip", "tcp_metrics", "flush"], deadline=deadline)
    plain = tcp_repair.restore(state, None)
    without = tcp_info(plain)
    tcp_repair._silent_close(plain)
    with remembered([state]):
        restored = tcp_repair.restore(state, None)
    after = tcp_info(restored)
    routes = run(["ip", "-o", "route"], deadline=deadline).stdout.splitlines()
    addresses = run(["ip", "-o", "-4", "addr", "show", "dev", "lo"], deadline=deadline).stdout
    tcp_repair._silent_close(restored)
    return [list(without), list(after), [state.congestion_window], [len(routes), addresses.count(CLIENT)]]


def test_window_and_timeout_move_with_a_connection_and_nothing_is_left_behind():
    without, after, window, left = call_in_sandbox(converse)
    assert without[0] > 900_000, "the kernel's own fallback, which would show as an outage of the bench's making"
    assert after[0] <= 250_000
    assert after[1] == window[0] >= 10
    assert left == [1, 0]
