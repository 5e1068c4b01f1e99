"""What a vCPU writes: a deterministic sequence of page writes, independent of timing.

Write number *n* (0, 1, 2, …) of a workload is a function of the workload's parameters and *n* alone: its page, its
place in the page and its bytes. So the whole state is one counter, any stretch of the sequence can be computed at once
by numpy, and what memory must hold after *n* writes can be checked at any time.

One write changes ``write_bytes`` bytes at a place aligned to 8 in one page. Its words are ``stamp ^ key[i]``: the stamp
holds the vCPU's index and n + 1, the key is fixed by the seed and makes the bytes look random. Different vCPUs must be
given different pages (:func:`split`), or neither could know what memory must hold.

No clock, no process; numpy and the standard library only. Pure, but for reading a trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.errors import GuestError
from bench.memory.content import PAGE_BYTES, WORDS_PER_PAGE
from bench.memory.trace import Trace as PageTrace
from bench.memory.trace import load_trace

Words: TypeAlias = npt.NDArray[np.uint64]
Indices: TypeAlias = npt.NDArray[np.int64]

MAX_WRITES = 1 << 48  # the stamp's low 48 bits; at a million writes a second 8.9 years
_BATCH = 65536  # writes computed at once when a long stretch is replayed


@dataclass(frozen=True)
class Parameters:
    """The workload of one vCPU.

    :param first_page: the first page it may write, and ``pages`` how many from there.
    :param rate_bytes_per_s: of modified memory: every write counts :data:`PAGE_BYTES`. 0 is as fast as it goes.
    :param working_set_pages: for ``hotset``: the size of the hot set, at the start of the range.
    :param hot_share: for ``hotset``: the share of writes that go to the hot set; the rest go to all pages.
    :param trace: for ``trace``: the file (:mod:`bench.memory.trace`) that says which pages are written when, whatever
        the rate; *trace_digest*: its SHA-256. A program of the guest's, so to say, that each hypervisor can read.
    """

    pattern: str
    index: int
    first_page: int
    pages: int
    rate_bytes_per_s: int
    working_set_pages: int
    hot_share: float
    write_bytes: int
    seed: int
    trace: str = ""
    trace_digest: str = ""

    def __post_init__(self) -> None:
        """:raises GuestError: for the first value out of its range."""
        ranges = {
            "index": (0, 0xFFFF),
            "first_page": (0, 2**40),
            "pages": (1, 2**31),
            "rate_bytes_per_s": (0, 2**50),
            "working_set_pages": (1, self.pages),
            "hot_share": (0, 1),
            "write_bytes": (16, PAGE_BYTES),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise GuestError(f"workload {name} {getattr(self, name)}: allowed are {low} to {high}")
        if self.write_bytes % 8:
            raise GuestError(f"workload write_bytes {self.write_bytes}: a multiple of 8 is allowed")
        if self.pattern not in PATTERNS:
            raise GuestError(f"workload pattern {self.pattern!r}: known are {', '.join(PATTERNS)}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Parameters:
        """:raises GuestError: when *raw* is not what :meth:`to_json` gives."""
        for field in dataclasses.fields(cls):
            value = raw.get(field.name)
            allowed = {"str": str, "int": int, "float": int | float}[str(field.type)]
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise GuestError(f"workload {field.name} {value!r}: {field.type} is needed")
        if len(raw) != len(dataclasses.fields(cls)):
            raise GuestError(f"workload with unknown keys among {', '.join(sorted(raw))}")
        return cls(**raw)


def split(workload: Mapping[str, Any], memory_bytes: int, store_bytes: int, vcpus: int) -> list[Parameters]:
    """The guest's workload divided among its vCPUs: disjoint page ranges, each with its share of rate and working set.

    The hot set of each vCPU is at the start of its own range.

    :param workload: pattern, rate_bytes_per_s, working_set_bytes, hot_share, write_bytes, seed (as in ``configure``).
    :param store_bytes: at the end of memory; no vCPU writes there.
    :raises GuestError: when a value is missing or wrong, or memory is too small for so many vCPUs.
    """
    pages = (memory_bytes - store_bytes) // PAGE_BYTES
    if vcpus < 1 or pages < vcpus:
        raise GuestError(f"{vcpus} vCPUs cannot share {pages} pages of memory")
    try:
        hot_pages = -(-int(workload["working_set_bytes"]) // PAGE_BYTES)
        rate = int(workload["rate_bytes_per_s"])
        pattern = str(workload["pattern"])
        hot_share = float(workload["hot_share"])
        write_bytes = int(workload["write_bytes"])
        seed = int(workload["seed"])
        trace, trace_digest = str(workload.get("trace") or ""), str(workload.get("trace_digest") or "")
    except (KeyError, TypeError, ValueError) as error:
        raise GuestError(f"workload {dict(workload)}: {error} is missing or wrong") from error
    parts = []
    for index in range(vcpus):
        first, end = pages * index // vcpus, pages * (index + 1) // vcpus
        part_rate = rate * (index + 1) // vcpus - rate * index // vcpus
        parts.append(
            Parameters(
                pattern=pattern,
                index=index,
                first_page=first,
                pages=end - first,
                rate_bytes_per_s=max(part_rate, min(rate, 1)),  # 0 would mean unlimited
                working_set_pages=min(max(1, -(-hot_pages // vcpus)), end - first),
                hot_share=hot_share,
                write_bytes=write_bytes,
                seed=seed,
                trace=trace,
                trace_digest=trace_digest,
            )
        )
    return parts


# patterns


class Pattern(Protocol):
    """Which page write *n* goes to. Registered in :data:`PATTERNS`."""

    @property
    def writes(self) -> bool:
        """False: this pattern never writes."""
        ...

    def __init__(self, parameters: Parameters) -> None: ...

    def pages(self, numbers: Words, bits: Words) -> Indices:
        """Pages relative to the range's first, for these write numbers with 64 random bits each."""
        ...


def _scale(bits: Words, count: int) -> Indices:
    """Random 64 bits to 0 … count - 1 by their upper 32 (multiply-shift; exact to within count / 2**32)."""
    return ((bits >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


class Idle:
    """Writes nothing."""

    writes = False

    def __init__(self, parameters: Parameters) -> None:
        del parameters

    def pages(self, numbers: Words, bits: Words) -> Indices:
        del bits
        return np.zeros(len(numbers), dtype=np.int64)


class Sequential:
    """One page after the other, round and round."""

    writes = True

    def __init__(self, parameters: Parameters) -> None:
        self._pages = np.uint64(parameters.pages)

    def pages(self, numbers: Words, bits: Words) -> Indices:
        del bits
        return (numbers % self._pages).astype(np.int64)


class Uniform:
    """Any page, each as likely."""

    writes = True

    def __init__(self, parameters: Parameters) -> None:
        self._pages = parameters.pages

    def pages(self, numbers: Words, bits: Words) -> Indices:
        del numbers
        return _scale(bits, self._pages)


class HotSet:
    """A share of the writes goes to the first pages, uniformly; the rest to all pages, uniformly."""

    writes = True

    def __init__(self, parameters: Parameters) -> None:
        self._pages = parameters.pages
        self._hot_pages = parameters.working_set_pages
        self._hot_below = np.uint64(round(parameters.hot_share * 2**20))

    def pages(self, numbers: Words, bits: Words) -> Indices:
        del numbers
        hot = (bits & np.uint64(2**20 - 1)) < self._hot_below
        return np.where(hot, _scale(bits, self._hot_pages), _scale(bits, self._pages))


class Trace:
    """The pages of a recorded trace, one after the other and round and round, as far as they are in the range."""

    def __init__(self, parameters: Parameters) -> None:
        whole = load_trace(Path(parameters.trace), parameters.trace_digest)
        self.trace = whole.within(parameters.first_page, parameters.pages)
        self._pages = self.trace.numbers - parameters.first_page
        self.writes = bool(len(self._pages))

    def pages(self, numbers: Words, bits: Words) -> Indices:
        del bits
        if not self.writes:
            return np.zeros(len(numbers), dtype=np.int64)
        return self._pages[(numbers % np.uint64(len(self._pages))).astype(np.int64)]


PATTERNS: dict[str, type[Pattern]] = {
    "idle": Idle,
    "sequential": Sequential,
    "uniform": Uniform,
    "hotset": HotSet,
    "trace": Trace,
}


# the sequence


def _mix(values: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): counters to random bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = values ^ (values >> np.uint64(31))
    return mixed


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Writes:
    """A stretch of the sequence, in order; all arrays of one length.

    :ivar pages: page numbers within the guest's memory.
    :ivar offsets: of the write within its page, in 8-byte words.
    :ivar stamps: see the module.
    """

    pages: Indices
    offsets: Indices
    stamps: Words

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def places(self) -> Indices:
        """Where each write begins, in words from the start of memory."""
        return self.pages * WORDS_PER_PAGE + self.offsets


@dataclass(frozen=True)
class Checked:
    """What :meth:`Workload.check` found so far.

    :ivar pages: pages compared.
    :ivar wrong: those that do not hold their last write.
    :ivar first_wrong: one of them in words; empty when none.
    :ivar finished: True in the last one.
    """

    pages: int
    wrong: int
    first_wrong: str
    finished: bool


class Workload:
    """The sequence of one vCPU, and how to apply and check it.

    :ivar position: writes done so far; with :attr:`parameters` the whole state.
    """

    def __init__(self, parameters: Parameters, position: int = 0) -> None:
        self.parameters = parameters
        self.position = position
        self.words_per_write = parameters.write_bytes // 8
        self._pattern = PATTERNS[parameters.pattern](parameters)
        seed = np.full(1, parameters.seed, dtype=np.uint64)
        self._seed = _mix(seed * _GOLDEN + np.uint64(parameters.index))[0]
        self._key: Words = _mix(np.arange(1, self.words_per_write + 1, dtype=np.uint64) * _GOLDEN + self._seed)
        self._high = np.uint64(parameters.index << 48)

    @property
    def writes(self) -> bool:
        """False when the pattern never writes."""
        return self._pattern.writes

    @property
    def trace(self) -> PageTrace | None:
        """What says when to write; None: the rate does."""
        return self._pattern.trace if isinstance(self._pattern, Trace) else None

    def export(self) -> dict[str, Any]:
        """The registers: all state, JSON-able."""
        return {"position": self.position, "workload": self.parameters.to_json()}

    @classmethod
    def restore(cls, registers: Mapping[str, Any]) -> Workload:
        """Go on exactly where :meth:`export` was called. :raises GuestError: when *registers* is no such export."""
        position, raw = registers.get("position"), registers.get("workload")
        if not isinstance(position, int) or not 0 <= position < MAX_WRITES or not isinstance(raw, Mapping):
            raise GuestError(f"vCPU registers {str(registers)[:200]} cannot be restored")
        return cls(Parameters.from_json(raw), position)

    def sequence(self, first: int, count: int) -> Writes:
        """Writes *first* … *first* + *count* - 1."""
        numbers = np.arange(first, first + count, dtype=np.uint64)
        bits = _mix((numbers + np.uint64(1)) * _GOLDEN ^ self._seed)
        pages = self._pattern.pages(numbers, bits) + self.parameters.first_page
        offsets = _scale(_mix(bits), WORDS_PER_PAGE - self.words_per_write + 1)
        return Writes(pages, offsets, self._high | (numbers + np.uint64(1)))

    def window(self, words: Words) -> Words:
        """Memory as overlapping rows, one for each word that a write may begin at; shape (all words, words per write).

        :param words: all of guest memory, C-contiguous uint64 of any shape.
        """
        flat = words.reshape(-1)
        return np.lib.stride_tricks.as_strided(
            flat, shape=(flat.size - self.words_per_write + 1, self.words_per_write), strides=(8, 8)
        )

    def bytes_of(self, stamps: Words) -> Words:
        """What these writes put into memory; shape (writes, words per write)."""
        return stamps[:, np.newaxis] ^ self._key

    def apply(self, window: Words, writes: Writes) -> None:
        """Do these writes, in order, and advance :attr:`position`. *window*: see :meth:`window`."""
        window[writes.places] = self.bytes_of(writes.stamps)  # of equal places numpy keeps the last
        self.position += len(writes)

    def check(self, window: Words, limit: int = 1 << 24) -> Iterator[Checked]:
        """Compare memory with the last write of every page, replaying the newest *limit* writes from the end.

        A page whose last write is older than that is not checked. Yields running totals after each batch (about 10 ms),
        so that the caller can do other things between; memory must not be written meanwhile.
        """
        parameters = self.parameters
        seen = np.zeros(parameters.pages, dtype=np.bool_)
        checked = wrong = 0
        first_wrong = ""
        end = self.position if self.writes else 0
        begin = max(0, end - limit)
        while end > begin and checked < parameters.pages:
            start = max(begin, end - _BATCH)
            batch = self.sequence(start, end - start)
            # the last write of each page in this batch: reversed, np.unique keeps the first
            pages, at = np.unique(batch.pages[::-1], return_index=True)
            fresh = ~seen[pages - parameters.first_page]
            seen[pages[fresh] - parameters.first_page] = True
            last = len(batch) - 1 - at[fresh]
            good = (window[batch.places[last]] == self.bytes_of(batch.stamps[last])).all(axis=1)
            checked += len(last)
            if not good.all():
                bad = int(last[np.flatnonzero(~good)[0]])
                wrong += int(np.count_nonzero(~good))
                first_wrong = first_wrong or self._describe(window, batch, bad)
            end = start
            yield Checked(checked, wrong, first_wrong, False)
        yield Checked(checked, wrong, first_wrong, True)

    def _describe(self, window: Words, batch: Writes, at: int) -> str:
        stamp = int(window[batch.places[at], 0] ^ self._key[0])
        found = f"write {(stamp & (MAX_WRITES - 1)) - 1}" if stamp >> 48 == self.parameters.index else "other bytes"
        expected = (int(batch.stamps[at]) & (MAX_WRITES - 1)) - 1
        return f"page {int(batch.pages[at])} should hold write {expected} and holds {found}"
