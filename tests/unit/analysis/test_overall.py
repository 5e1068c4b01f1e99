"""All migrations together, and whose frames are whose."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.analysis.belonging import frames_of
from bench.analysis.overall import GuestFacts, most_at_once, overall
from bench.records import FRAME, KIND_ARP, KIND_IP, KIND_RARP, ip_to_int, mac_to_int
from bench.result import MemoryResult, MigrationResult, RelearnResult

FIRST = GuestFacts("g1", "52:54:00:00:00:01", "10.0.1.1", 1 << 24, "h1", "h2")
SECOND = GuestFacts("g2", "52:54:00:00:00:02", "10.0.1.2", 1 << 24, "h2", None)


def test_an_end_that_is_a_start_is_no_overlap() -> None:
    assert most_at_once([]) == 0
    assert most_at_once([(0, 10), (10, 20)]) == 1
    assert most_at_once([(0, 10), (9, 20), (5, 6), (7, 7)]) == 2


def moved(guest: str, start_ns: int, end_ns: int, outcome: str = "completed", **more: Any) -> MigrationResult:
    return MigrationResult.model_validate(
        {
            "guest": guest,
            "outcome": outcome,
            "source": "h1",
            "destination": "h2",
            "start_ns": start_ns,
            "end_ns": end_ns,
            "total_ns": None,
            "downtime_ns": None,
            "memory": MemoryResult(bytes=1, identical=None, digest=None),
            "relearn": RelearnResult(announce_ns=None),
            **more,
        }
    )


def test_everything_is_summed_and_what_never_started_has_no_time() -> None:
    made = overall(
        [
            moved("g1", 100, 200, downtime_ns=7, bytes_sent=50),
            moved("g2", 150, 300, "failed", bytes_sent=5),
            moved("g1", 250, 400, downtime_ns=8, bytes_sent=60),
            moved("g2", 900, 900, "cancelled"),
        ],
        [FIRST, SECOND],
    )
    assert made is not None
    assert (made.start_ns, made.end_ns, made.total_ns, made.bytes_sent) == (100, 400, 300, 115)
    assert (made.at_once, made.completed, made.cancelled, made.failed) == (2, 2, 1, 1)
    assert [(item.name, item.moved, item.downtime_ns, item.host) for item in made.guests] == [
        ("g1", 2, 15, "h2"),
        ("g2", 0, 0, None),
    ]


def test_nothing_was_to_happen() -> None:
    assert overall([], [FIRST]) is None


def test_each_guest_sees_its_own_frames_and_announcements_only() -> None:
    frames = np.zeros(6, FRAME)
    client = ip_to_int("10.0.0.9")
    for number, guest in enumerate((FIRST, SECOND)):
        address = ip_to_int(guest.address)
        to_guest, announced, asked = 3 * number, 3 * number + 1, 3 * number + 2
        frames[to_guest]["src_ip"], frames[to_guest]["dst_ip"] = client, address
        frames[to_guest]["kind"], frames[to_guest]["dst_is_guest"] = KIND_IP, True
        frames[announced]["src_mac"] = mac_to_int(guest.mac)
        frames[announced]["kind"], frames[announced]["is_announce"] = KIND_RARP, True
        frames[asked]["src_ip"], frames[asked]["dst_ip"] = address, client
        frames[asked]["kind"] = KIND_ARP
    frames["t_ns"] = np.arange(6)
    for number, guest in enumerate((FIRST, SECOND)):
        own = frames_of(frames, guest)
        assert own["t_ns"].tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
        assert own["dst_is_guest"].tolist() == [True, False, False]
        assert own["is_announce"].tolist() == [False, True, False]
    assert frames["is_announce"].sum() == 2  # the original is untouched


def test_a_frame_between_two_guests_is_for_one_of_them_only() -> None:
    frames = np.zeros(1, FRAME)
    frames["src_ip"], frames["dst_ip"] = ip_to_int(FIRST.address), ip_to_int(SECOND.address)
    frames["dst_is_guest"] = True
    assert frames_of(frames, FIRST)["dst_is_guest"].tolist() == [False]
    assert frames_of(frames, SECOND)["dst_is_guest"].tolist() == [True]
