"""What can be known of trackers without a kernel that lets us: constants, refusals, and soft-dirty's arithmetic."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from bench.errors import MemoryTrackingError
from bench.memory import tracker, uffd
from bench.memory.bitmap import DirtyBitmap


def test_the_ioctl_numbers_are_the_kernels() -> None:
    assert uffd.UFFDIO_API == 0xC018AA3F
    assert uffd.UFFDIO_REGISTER == 0xC020AA00
    assert uffd.UFFDIO_UNREGISTER == 0x8010AA01
    assert uffd.UFFDIO_WRITEPROTECT == 0xC018AA06
    assert tracker._PAGEMAP_SCAN == 0xC0606610


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(MemoryTrackingError, match=r"pagemap-scan, soft-dirty"):
        tracker.open_tracker("magic", [], 4096)


def test_a_writer_that_does_not_exist_is_named() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(MemoryTrackingError, match=str(process.pid)):
        tracker.open_tracker("pagemap-scan", [(process.pid, 4096)], 4096)


@pytest.mark.parametrize("length", [0, 100])
def test_a_length_of_no_pages_is_refused(length: int) -> None:
    with pytest.raises(MemoryTrackingError, match="multiple"):
        tracker.open_tracker("soft-dirty", [], length)


def test_probe_says_why_each_method_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "problem_of", lambda method: f"no {method} today")
    with pytest.raises(MemoryTrackingError, match=r"no pagemap-scan today.*no soft-dirty today") as caught:
        tracker.probe()
    assert "Linux 6.7" in caught.value.remedy


def test_soft_dirty_reads_bit_55_of_all_writers_while_held_and_clears_before_letting_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft_dirty = np.uint64(1 << 55)
    log: list[str] = []
    entries = {1 << 20: [0, 1 << 63, soft_dirty, 0], 1 << 21: [0, 0, soft_dirty | np.uint64(1), soft_dirty]}

    def pagemap(writer: tracker._WriterProcess) -> Iterator[tuple[int, np.ndarray]]:
        log.append("read")
        values = np.array(entries[writer.base], dtype=np.uint64)
        yield 0, values[:3]
        yield 3, values[3:]

    @contextlib.contextmanager
    def hold(pid: int) -> Iterator[None]:
        assert pid == os.getpid()
        log.append("hold")
        yield
        log.append("let go")

    monkeypatch.setattr(tracker, "_pagemap_entries", pagemap)
    monkeypatch.setattr(tracker, "_clear_soft_dirty", lambda writer: log.append("clear"))
    soft = tracker.SoftDirtyTracker([(os.getpid(), base) for base in entries], 4 * 4096, hold)
    try:
        assert log == ["clear", "clear"]
        log.clear()
        bitmap = DirtyBitmap(4)
        bitmap.set_range(0, 1)
        assert soft.collect(bitmap) == 2
        assert log == ["hold", "read", "clear", "let go"] * 2
        assert bitmap.pages().tolist() == [0, 2, 3]
        log.clear()
        assert soft.peek() == 2
        assert log == ["read", "read"]
    finally:
        soft.close()
        soft.close()
