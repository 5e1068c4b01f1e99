"""A connection moves whole although its peer has acknowledged a part of a segment only."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.guest import tcp_repair
from bench.host.sandbox import call_in_sandbox

pytestmark = pytest.mark.root

_SO_ATTACH_FILTER = 26
_RETURN_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # classic BPF: ret 0


def make_deaf(sock: socket.socket) -> None:
    """From now on *sock* takes in nothing: it acknowledges no more."""
    program = ctypes.create_string_buffer(_RETURN_NOTHING, len(_RETURN_NOTHING))
    filter_ = struct.pack("HP", 1, ctypes.addressof(program))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


def send_acknowledgement(state: tcp_repair.TcpState, acknowledged: int) -> None:
    """As if from the peer of the connection *state*."""
    from scapy.layers.inet import IP, TCP

    segment = IP(src=state.remote[0], dst=state.local[0]) / TCP(
        sport=state.remote[1],
        dport=state.local[1],
        seq=state.receive_sequence,
        ack=acknowledged % (1 << 32),
        flags="A",
        window=1024,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(bytes(segment), (state.local[0], 0))


def move() -> list[str]:
    """In a namespace of its own: the send queue of a connection before and after 40 of its 100 bytes were received."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        served, _address = listener.accept()
        make_deaf(peer)
        served.sendall(bytes(range(100)))
        whole = tcp_repair.dump(served)
        assert whole is not None
        tcp_repair.undo(served, whole)
        send_acknowledgement(whole, whole.send_sequence - 60)
        deadline = Deadline(10 * NS_PER_S)
        wait_until(lambda: tcp_repair.in_flight_bytes(served) == 60, deadline, "40 bytes are acknowledged")
        rest = tcp_repair.dump(served)
        assert rest is not None
        served.close()
    return [whole.send_queue.hex(), rest.send_queue.hex()]


def test_only_what_is_not_acknowledged_moves() -> None:
    whole, rest = call_in_sandbox(move)
    assert bytes.fromhex(whole) == bytes(range(100))
    assert bytes.fromhex(rest) == bytes(range(40, 100))
