"""Record buffers: what was appended is what is read, and bad files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.errors import ProbeError, ResultError
from bench.probe.records import RecordBuffer, load_records
from bench.records import DUPLICATES_SHIFT, RECORD, STATUS_CORRUPT, STATUS_REORDERED, ip_to_int, mac_to_int


def test_round_trip_across_chunks(tmp_path: Path) -> None:
    buffer = RecordBuffer()
    count = 65536 * 2 + 5
    for number in range(count):
        assert buffer.append(number * 10, 0, 64, 0) == number
    for number in (0, 65535, 65536, count - 1):
        buffer.answer(number, number * 10 + 3)
        buffer.flag(number, STATUS_REORDERED)
        buffer.flag(number, STATUS_CORRUPT)
        buffer.duplicate(number)
        assert buffer.received_ns(number) == number * 10 + 3
        assert buffer.sent_ns(number) == number * 10
    path = tmp_path / "f.npy"
    buffer.save(path)
    records = load_records(path)
    assert records.dtype == RECORD
    assert len(records) == len(buffer) == count
    assert np.array_equal(records["seq"], np.arange(count))
    assert np.array_equal(records["sent_ns"], np.arange(count) * 10)
    answered = np.flatnonzero(records["received_ns"])
    assert answered.tolist() == [0, 65535, 65536, count - 1]
    assert set(records["status"][answered]) == {STATUS_CORRUPT | STATUS_REORDERED | 1 << DUPLICATES_SHIFT}


def test_empty(tmp_path: Path) -> None:
    RecordBuffer().save(tmp_path / "f.npy")
    assert len(load_records(tmp_path / "f.npy")) == 0


def test_duplicates_saturate() -> None:
    buffer = RecordBuffer()
    buffer.append(1, 2, 3, STATUS_CORRUPT)
    for _ in range(70_000):
        buffer.duplicate(0)
    assert buffer.array()["status"][0] == 0xFFFF << DUPLICATES_SHIFT | STATUS_CORRUPT


def test_limit() -> None:
    buffer = RecordBuffer(limit=65536)
    for _ in range(65536):
        buffer.append(1, 2, 3, 4)
    with pytest.raises(ProbeError, match="65536 records"):
        buffer.append(1, 2, 3, 4)
    assert len(buffer) == 65536


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04nonsense", b"\x80\x04K\x01.", b"plain text, no array"]
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.npy"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=r"f\.npy"):
        load_records(path)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    for array in (np.zeros(3), np.zeros((2, 2), RECORD), np.array([{"a": 1}], dtype=object)):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ResultError, match=r"f\.npy"):
            load_records(path)
    with pytest.raises(ResultError, match=r"missing\.npy"):
        load_records(tmp_path / "missing.npy")


def test_addresses() -> None:
    assert ip_to_int("10.0.1.1") == 0x0A000101
    assert mac_to_int("52:54:00:00:00:01") == 0x525400000001
    for bad in ("10.0.1", "10.0.1.256", "a.b.c.d", ""):
        with pytest.raises(ValueError, match="IPv4"):
            ip_to_int(bad)
    with pytest.raises(ValueError, match="MAC"):
        mac_to_int("52:54:00")
