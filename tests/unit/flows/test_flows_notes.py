"""What both ends of a flow noted becomes its records: first arrivals, copies, order, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.errors import ResultError
from bench.flows import datagram
from bench.flows.notes import NoteFile, arrived, flow_number, load_notes, records_of
from bench.records import DUPLICATES_SHIFT, RECORD, STATUS_CORRUPT, STATUS_REORDERED


def written(path: Path, *notes: tuple[int, ...], flow: str = "one") -> Path:
    file = NoteFile(path)
    for note in notes:
        file.note(flow_number(flow), *note)
    file.close()
    return path


def test_the_parts_of_several_processes_are_one_flow(tmp_path: Path) -> None:
    before = written(tmp_path / "a.flows", (0, 100, 0, 50), (1, 200, 0, 50), (2, 300, 0, 50))
    after = written(tmp_path / "b.flows", (0, 100, 110, 50), (2, 300, 310, 50), (2, 300, 320, 50), (3, 400, 410, 50))
    other = written(tmp_path / "c.flows", (0, 7, 8, 9), flow="another")
    records = records_of(load_notes([before, after, other]), "one")
    assert list(records["seq"]) == [0, 1, 2, 3]
    assert list(records["sent_ns"]) == [100, 200, 300, 400]
    assert list(records["received_ns"]) == [110, 0, 310, 410]
    assert list(records["status"] >> DUPLICATES_SHIFT) == [0, 0, 1, 0]


def test_what_arrives_after_a_later_one_is_reordered_and_what_is_wrong_is_corrupt(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flows", (0, 1, 30, 9), (1, 2, 20, 9), (2, 3, 40, 9, STATUS_CORRUPT))
    records = records_of(load_notes([path]), "one")
    assert list(records["status"]) == [STATUS_REORDERED, 0, STATUS_CORRUPT]


def test_a_file_that_a_kill_cut_is_read_up_to_there_and_none_is_no_notes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flows", (0, 1, 2, 3), (1, 2, 3, 4))
    path.write_bytes(path.read_bytes()[:-7])
    assert len(load_notes([path])) == 1
    assert len(records_of(load_notes([]), "one")) == 0
    assert not (written(tmp_path / "none.flows")).exists()
    with pytest.raises(ResultError):
        load_notes([tmp_path / "missing.flows"])


def test_a_sender_s_records_take_in_what_arrived() -> None:
    sent = np.zeros(3, RECORD)
    sent["seq"], sent["sent_ns"] = [0, 1, 2], [10, 20, 30]
    received = np.zeros(3, RECORD)
    received["seq"], received["received_ns"], received["status"] = [0, 2, 9], [15, 35, 99], [0, STATUS_CORRUPT, 0]
    records = arrived(sent, received)
    assert list(records["received_ns"]) == [15, 0, 35]
    assert list(records["status"]) == [0, 0, STATUS_CORRUPT]


@pytest.mark.parametrize("size", [24, 25, 1000, 1400])
def test_a_datagram_says_of_which_flow_it_is_and_whether_it_is_whole(size: int) -> None:
    for number in (0, 1, 12345):
        data = datagram.pack(7, number, 1234, size)
        assert len(data) == size
        came = datagram.unpack(data)
        assert came == datagram.Arrived(7, number, 1234, True)
        if size > 24:
            broken = datagram.unpack(data[:-1] + bytes([data[-1] ^ 1]))
            assert broken is not None
            assert not broken.good


@pytest.mark.parametrize("data", [b"", b"MBUS", b"x" * 24, b"MBUS" + b"\xff" * 20])
def test_what_is_no_datagram_of_a_flow_is_none(data: bytes) -> None:
    assert datagram.unpack(data) is None


def test_the_interval_makes_the_rate() -> None:
    assert datagram.interval_ns(1250, 10_000_000) == 1_000_000
    assert datagram.interval_ns(100, 10**12) == 1
