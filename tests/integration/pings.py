"""Pings that wait for every answer.

ping(8) waits for its last answers only as long as twice the longest round trip so far, or its interval, once it has had
any (its ``-W`` is for when there is none at all): on a busy machine one that comes 30 ms late counts as lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.host.kernel import entered_netns

_ECHO_REPLY, _ECHO_REQUEST = 0, 8  # RFC 792
_SO_TIMESTAMPNS = 35  # socket(7)
_IP_HEADER_BYTES = 20
_WITHIN_NS = 5 * NS_PER_S


def round_trips_ms(netns_pid: int, address: str, count: int, every_ms: int = 20) -> dict[int, float]:
    """Echo requests numbered from 1, *every_ms*, sent whatever becomes of those before.

    :returns: number -> ms until the kernel had its answer, of those that were answered within 5 s of the last one.
    """
    with entered_netns(netns_pid):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.connect((address, 0))
        name = os.getpid() & 0xFFFF
        sent: dict[int, int] = {}
        answered: dict[int, float] = {}

        def collect(deadline: Deadline) -> None:
            while len(answered) < len(sent) and select.select([sock], [], [], deadline.remaining_s)[0]:
                with contextlib.suppress(OSError):  # an ICMP error: about one that will not be answered
                    packet, ((_level, _kind, stamp),), *_rest = sock.recvmsg(2048, 64)
                    kind, _code, _sum, its_name, number = struct.unpack_from("!BBHHH", packet, _IP_HEADER_BYTES)
                    if (kind, its_name) == (_ECHO_REPLY, name):
                        seconds, ns = struct.unpack("@qq", stamp)
                        answered[number] = (seconds * NS_PER_S + ns - sent[number]) / NS_PER_MS

        for number in range(1, count + 1):
            sent[number] = time.time_ns()
            with contextlib.suppress(OSError):  # the same, about one before
                sock.send(_request(name, number))
            next_one = Deadline(every_ms * NS_PER_MS)
            collect(next_one)
            time.sleep(next_one.remaining_s if number < count else 0)  # nothing to wait for but the time
        collect(Deadline(_WITHIN_NS))
        return answered


def _request(name: int, number: int) -> bytes:
    total = (_ECHO_REQUEST << 8) + name + number
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF  # RFC 1071; zeros add nothing
    return struct.pack("!BBHHH", _ECHO_REQUEST, 0, check, name, number) + bytes(56)
