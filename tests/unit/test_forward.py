"""Which frames a forwarder sends on: those that came after the cut, whenever they are read."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from bench.clock import NS_PER_S, now_ns
from bench.forward import arrival_ns

STAMP = 35


def stamped(ago_ns: int) -> list[tuple[int, int, bytes]]:
    """What the kernel tells of a frame that came so long ago."""
    return [(socket.SOL_SOCKET, STAMP, struct.pack("=qq", *divmod(time.time_ns() - ago_ns, NS_PER_S)))]


@pytest.mark.parametrize("ago_ns", [0, 5_000_000, 3 * NS_PER_S])
def test_a_frame_came_when_the_kernel_says(ago_ns: int) -> None:
    before_ns = now_ns()
    at_ns = arrival_ns(stamped(ago_ns))
    assert before_ns - ago_ns - 1_000_000 <= at_ns <= now_ns() - ago_ns + 1_000_000


def test_a_frame_without_a_stamp_or_with_one_from_the_future_came_now() -> None:
    for told in ([], [(socket.SOL_SOCKET, STAMP, b"")], stamped(-NS_PER_S)):
        before_ns = now_ns()
        assert before_ns <= arrival_ns(told) <= now_ns()
