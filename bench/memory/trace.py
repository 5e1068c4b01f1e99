"""Traces of modified pages: which pages of a guest's memory were written between one look and the next.

A text file of JSON lines. The first says what it is, each other one is a look::

    {"format": "migration-bench/page-trace/1", "page_bytes": 4096, "pages": 4096, "title": "..."}
    {"t_us": 20113, "runs": [[0, 12], [17, 1], [1024, 64]]}
    {"t_us": 40090, "runs": []}

``pages``: of the guest's memory. ``t_us``: microseconds since the recording began, growing from look to look. ``runs``:
[first page, number of pages] in ascending order, without overlap: what was written since the look before. What is
larger than :data:`MAX_FILE_BYTES`, :data:`MAX_LOOKS` or :data:`MAX_WRITES` is refused, as is anything else that breaks
these rules, with the number of its line.

A replay (:class:`bench.guest.workload.Trace`) writes each page of a look once, spread evenly over the time since the
look before, and begins anew after the last look. Lean: numpy and the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.errors import GuestError
from bench.memory.content import PAGE_BYTES

FORMAT: Final = "migration-bench/page-trace/1"
MAX_FILE_BYTES: Final = 256 << 20
MAX_LOOKS: Final = 1_000_000
MAX_WRITES: Final = 20_000_000
MAX_PAGES: Final = 1 << 28  # 1 TiB
MAX_TIME_US: Final = 24 * 3600 * 10**6

Times: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """A whole trace, one element for each page of each look.

    :param pages: of the guest that it was recorded from.
    :param numbers: the pages that were written, in the order of the looks.
    :param times_ns: when a replay writes each of them, in ascending order; none is later than *duration_ns*.
    :param digest: SHA-256 of the file, in hexadecimal.
    """

    pages: int
    looks: int
    duration_ns: int
    numbers: Indices
    times_ns: Times
    digest: str = ""

    def within(self, first: int, count: int) -> Trace:
        """Only what is written to *count* pages from page *first* on."""
        kept = (self.numbers >= first) & (self.numbers < first + count)
        return Trace(self.pages, self.looks, self.duration_ns, self.numbers[kept], self.times_ns[kept], self.digest)


def load_trace(path: Path, digest: str = "") -> Trace:
    """Read a trace.

    :param digest: what it must be; empty: whatever it is.
    :raises GuestError: naming the file, the line and what is wrong there.
    """
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if digest and found != digest:
        raise GuestError(f"trace {path}: it is another file than the one that the guest was started with")
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    pages = _header(lines[0] if lines else b"", path)
    if not 2 <= len(lines) <= MAX_LOOKS + 1:
        raise _wrong(path, len(lines), f"{len(lines) - 1} looks", f"1 to {MAX_LOOKS}")
    numbers: list[Indices] = []
    times: list[Times] = []
    before_us = total = 0
    for at, line in enumerate(lines[1:], 2):
        time_us, look = _look(line, pages, before_us, path, at)
        total += len(look)
        if total > MAX_WRITES:
            raise _wrong(path, at, f"more than {MAX_WRITES} writes", "a shorter trace")
        numbers.append(look)
        step = (time_us - before_us) * 1000
        times.append(before_us * 1000 + step * np.arange(1, len(look) + 1, dtype=np.int64) // max(1, len(look)))
        before_us = time_us
    return Trace(pages, len(lines) - 1, before_us * 1000, np.concatenate(numbers), np.concatenate(times), found)


def dump_trace(pages: int, looks: Iterable[tuple[int, Indices]], title: str = "") -> bytes:
    """The file of these looks: (time in ns since the beginning, the pages in ascending order)."""
    head = {"format": FORMAT, "page_bytes": PAGE_BYTES, "pages": pages, "title": title}
    lines = [json.dumps(head)]
    for time_ns, numbers in looks:
        lines.append(json.dumps({"t_us": time_ns // 1000, "runs": _runs(numbers)}, separators=(",", ":")))
    return ("\n".join(lines) + "\n").encode()


def _runs(numbers: Indices) -> list[list[int]]:
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(numbers, breaks)]


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise GuestError(f"trace {path}: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise GuestError(f"trace {path}: it is no regular file")
        data = b"" if size > MAX_FILE_BYTES else _all(fd, size)
    finally:
        os.close(fd)
    if size > MAX_FILE_BYTES:
        raise GuestError(f"trace {path}: more than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _all(fd: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _wrong(path: Path, line: int, what: str, allowed: str) -> GuestError:
    return GuestError(f"trace {path}: line {line}: {what}; {allowed} is allowed")


def _object(line: bytes, path: Path, at: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong(path, at, f"{line[:40].decode(errors='replace')!r}", "a JSON object")
    return found


def _whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _header(line: bytes, path: Path) -> int:
    head = _object(line, path, 1)
    if head.get("format") != FORMAT:
        raise _wrong(path, 1, f"format {str(head.get('format'))[:60]!r}", FORMAT)
    if head.get("page_bytes") != PAGE_BYTES:
        raise _wrong(path, 1, f"page_bytes {str(head.get('page_bytes'))[:20]}", str(PAGE_BYTES))
    pages = head.get("pages")
    if not _whole(pages, 1, MAX_PAGES):
        raise _wrong(path, 1, f"pages {str(pages)[:20]}", f"1 to {MAX_PAGES}")
    assert isinstance(pages, int)
    return pages


def _look(line: bytes, pages: int, before_us: int, path: Path, at: int) -> tuple[int, Indices]:
    look = _object(line, path, at)
    time_us, runs = look.get("t_us"), look.get("runs")
    if not _whole(time_us, before_us + 1, MAX_TIME_US):
        raise _wrong(path, at, f"t_us {str(time_us)[:20]}", f"{before_us + 1} to {MAX_TIME_US}")
    assert isinstance(time_us, int)
    if not isinstance(runs, list):
        raise _wrong(path, at, "runs that are no list", "a list of [first page, number of pages]")
    parts: list[Indices] = []
    end = 0
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and _whole(run[0], end, pages - 1)):
            raise _wrong(path, at, f"run {str(run)[:40]}", f"[first page, number of pages] with a page from {end} on")
        if not _whole(run[1], 1, pages - run[0]):
            raise _wrong(path, at, f"run {str(run)[:40]}", f"1 to {pages - run[0]} pages")
        end = run[0] + run[1]
        parts.append(np.arange(run[0], end, dtype=np.int64))
    return time_us, np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
