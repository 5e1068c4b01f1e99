"""Segments that were sent again, and copies that arrived, counted from captured frames."""

from __future__ import annotations

import numpy as np

from bench.analysis.flows import Window
from bench.analysis.resent import resent
from bench.analysis.through import flow_path
from bench.records import DIRECTION_IN, DIRECTION_OUT, FRAME, KIND_IP, PROTOCOL_TCP, StructuredArray, ip_to_int

CLIENT, GUEST = ("10.0.0.3", 40000), ("10.0.1.1", 7)
PORTS = ("old", "new", "client")
PATH = flow_path(PORTS, client=CLIENT, guest=GUEST, client_interface="client", new_interface="new", old_interface="old")
WINDOW = Window(0, 10_000, pause_ns=1_000)
Seen = tuple[int, str, int, str, int, int]


def frames(*seen: Seen, flags: int = 16) -> StructuredArray:
    """Each: time, port, direction, who sent it, sequence number, bytes."""
    found = np.zeros(len(seen), FRAME)
    found["kind"], found["protocol"], found["flags"] = KIND_IP, PROTOCOL_TCP, flags
    for frame, (t_ns, port, direction, sender, seq, size) in zip(found, seen, strict=True):
        source, target = (CLIENT, GUEST) if sender == "client" else (GUEST, CLIENT)
        frame["t_ns"], frame["interface"], frame["direction"] = t_ns, PORTS.index(port), direction
        frame["src_ip"], frame["src_port"] = ip_to_int(source[0]), source[1]
        frame["dst_ip"], frame["dst_port"] = ip_to_int(target[0]), target[1]
        frame["seq"], frame["payload"] = seq & 0xFFFFFFFF, size
    return found


def test_what_begins_below_the_furthest_was_sent_again() -> None:
    seen = frames(
        (1, "client", DIRECTION_IN, "client", 100, 10),
        (2, "client", DIRECTION_IN, "client", 110, 10),
        (3, "client", DIRECTION_IN, "client", 110, 0),
        (4, "client", DIRECTION_IN, "client", 100, 10),
        (5, "client", DIRECTION_IN, "client", 110, 20),
        (6, "client", DIRECTION_IN, "client", 130, 10),
    )
    result = resent(seen, PATH, WINDOW, 2_000)
    assert result is not None
    assert (result.by_client, result.by_client_ns) == (2, [4, 5])
    assert (result.by_guest, result.copies_at_guest, result.copies_at_client) == (0, 0, 0)


def test_numbers_that_wrap_are_no_retransmissions() -> None:
    seen = frames(*((n, "client", DIRECTION_IN, "client", (1 << 32) - 20 + 10 * n, 10) for n in range(5)))
    result = resent(seen, PATH, WINDOW, 2_000)
    assert result is not None
    assert result.by_client == 0


def test_what_reached_nobody_is_no_copy() -> None:
    """The first went to the old port after the pause; the second is the first that arrived, the third a copy."""
    seen = frames(
        (1_500, "old", DIRECTION_OUT, "client", 100, 10),
        (2_500, "new", DIRECTION_OUT, "client", 100, 10),
        (2_600, "new", DIRECTION_OUT, "client", 100, 10),
    )
    result = resent(seen, PATH, WINDOW, 2_000)
    assert result is not None
    assert result.copies_at_guest == 1


def test_the_guest_s_are_counted_at_the_port_that_it_is_behind() -> None:
    seen = frames(
        (500, "old", DIRECTION_IN, "guest", 100, 10),
        (501, "client", DIRECTION_OUT, "guest", 100, 10),
        (2_200, "new", DIRECTION_IN, "guest", 100, 10),
        (2_201, "client", DIRECTION_OUT, "guest", 100, 10),
    )
    result = resent(seen, PATH, WINDOW, 2_000)
    assert result is not None
    assert (result.by_guest, result.by_guest_ns, result.copies_at_client) == (1, [2_200], 1)


def test_a_syn_that_is_repeated_counts() -> None:
    seen = frames((1, "client", DIRECTION_IN, "client", 100, 0), (2, "client", DIRECTION_IN, "client", 100, 0), flags=2)
    result = resent(seen, PATH, WINDOW, None)
    assert result is not None
    assert result.by_client == 1


def test_without_frames_nothing_is_said() -> None:
    assert resent(np.zeros(0, FRAME), PATH, WINDOW, 2_000) is None
