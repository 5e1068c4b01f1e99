"""The guest's disk workload: reads and writes at a rate, each write known by its number (:mod:`bench.storage.records`).

Reads check what they get. All of it is one counter, so it goes on at another hypervisor where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import GuestError
from bench.guest.disk import Disk, DiskDriver
from bench.guest.disk_latency import LatencyLog
from bench.guest.loop import Loop, Timer
from bench.storage import records, ring
from bench.storage.records import Blocks

TICK_NS: Final = 2 * NS_PER_MS
MAX_BEHIND_NS: Final = 100 * NS_PER_MS
DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class DiskWorkloadConfig:
    """:param disk: its number; *rate_bytes_per_s* 0 is as fast as it goes; *sync*: a write is done when it is on the
    disk.

    :param reads: the share of operations that read.
    """

    disk: int
    pattern: str
    block_bytes: int
    rate_bytes_per_s: int
    reads: float
    sync: bool

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DiskWorkloadConfig:
        """:raises ValueError, KeyError: for what is missing or wrong."""
        config = cls(
            int(raw["disk"]),
            str(raw["pattern"]),
            int(raw["block_bytes"]),
            int(raw["rate_bytes_per_s"]),
            float(raw["reads"]),
            bool(raw["sync"]),
        )
        if config.pattern not in ("sequential", "random") or not 0 <= config.reads <= 1:
            raise ValueError(f"disk workload: pattern {config.pattern!r}, reads {config.reads}")
        if not records.BLOCK_BYTES <= config.block_bytes <= ring.SLOT_BYTES or config.block_bytes % 512:
            raise ValueError(f"disk workload: blocks of {config.block_bytes} bytes")
        return config


class DiskWorkload:
    """:param first_byte: where its part of the disk begins.

    :param log: is told how long each request took.

    :ivar writes: how many writes were begun; all of them are done while nothing is under way.
    """

    def __init__(
        self,
        driver: DiskDriver,
        loop: Loop,
        disk: Disk,
        config: DiskWorkloadConfig,
        first_byte: int,
        log: LatencyLog | None = None,
    ) -> None:
        self._driver = driver
        self._loop = loop
        self._disk = disk
        self._config = config
        self._log = log
        count = (disk.size_bytes - first_byte) // config.block_bytes
        if count < 2 * DEPTH:
            raise GuestError(f"disk {disk.name}: too small for a workload of {config.block_bytes}-byte blocks")
        stride = 1 if config.pattern == "sequential" else records.scattered(count)
        self.blocks = Blocks(first_byte, config.block_bytes, count, stride)
        self.generation = 0
        self.writes = 0
        self.reads = 0
        self.wrong_reads = 0
        self.failed = 0
        self._debt = 0.0  # of reads, by the share
        self._writing: set[int] = set()
        self._under_way = 0
        self._running = False
        self._due_ns = 0  # when the next operation is due
        self._timer: Timer | None = None
        self._begun: dict[int, int] = {}  # slot -> when its request was begun

    def run(self) -> None:
        """Begin, or go on. Idempotent."""
        if not self._running:
            self._running = True
            self._due_ns = now_ns()
            self._step()

    def stop(self) -> None:
        """Begin nothing more."""
        self._running = False
        if self._log is not None:
            self._log.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        """Begin what is due, as far as there is room."""
        self._timer = None
        rate = self._config.rate_bytes_per_s
        now = now_ns()
        self._due_ns = max(self._due_ns, now - MAX_BEHIND_NS)
        while self._running and self._under_way < DEPTH and (not rate or self._due_ns <= now):
            slot = self._driver.slot()
            if slot is None:
                self._driver.when_free(self._again)
                return
            self._begin(slot)
            if rate:
                self._due_ns += self._config.block_bytes * NS_PER_S // rate
        if self._running and rate and self._under_way < DEPTH:
            self._timer = self._loop.at(max(self._due_ns, now + TICK_NS), self._step)

    def _again(self) -> None:
        if self._running and self._timer is None:
            self._step()

    def _begin(self, slot: int) -> None:
        self._under_way += 1
        self._begun[slot] = now_ns()
        self._debt += self._config.reads
        if self._debt >= 1 and self.writes > 2 * DEPTH:
            self._debt -= 1
            self._read(slot)
        else:
            self._write(slot)

    def _write(self, slot: int) -> None:
        number, size = self.writes, self.blocks.block_bytes
        self.writes += 1
        block = self.blocks.block_of(number)
        self._writing.add(block)
        self._driver.data(slot)[: size // records.STAMP_BYTES * records.STAMP_BYTES] = records.stamp(
            number, self.generation, size
        )

        def done(error: int) -> None:
            self._writing.discard(block)
            self.failed += error != 0
            self._done(slot, error)

        self._driver.write(self._disk.number, slot, self.blocks.offset_of(block), size, done, fua=self._config.sync)

    def _read(self, slot: int) -> None:
        self.reads += 1
        # An older write, so that it is not under way: those that are, are the newest.
        number = self.writes - 2 * DEPTH - (self.reads * 7919) % max(1, min(self.writes, self.blocks.count) - 2 * DEPTH)
        block = self.blocks.block_of(max(0, number))
        before = self.writes

        def done(error: int) -> None:
            expected = {self.blocks.last_write_of(block, count) for count in (before, self.writes)}
            if error:
                self.failed += 1
            elif block not in self._writing and not self.failed:
                found = records.read_stamp(self._driver.data(slot)[: self.blocks.block_bytes])
                self.wrong_reads += found is None or found.number not in expected
            self._done(slot, error)

        self._driver.read(self._disk.number, slot, self.blocks.offset_of(block), self.blocks.block_bytes, done)

    def _done(self, slot: int, error: int) -> None:
        begun_ns = self._begun.pop(slot)
        if self._log is not None and not error:
            self._log.done(begun_ns, now_ns(), self._config.block_bytes)
        self._under_way -= 1
        self._driver.give_back(slot)
        self._again()

    # moving

    def export(self) -> dict[str, Any]:
        return {"writes": self.writes, "reads": self.reads, "wrong_reads": self.wrong_reads, "failed": self.failed}

    def load(self, state: Mapping[str, Any]) -> None:
        """:raises KeyError, ValueError: when *state* is none of :meth:`export`."""
        self.writes, self.reads = int(state["writes"]), int(state["reads"])
        self.wrong_reads, self.failed = int(state["wrong_reads"]), int(state["failed"])
        if self.writes < 0:
            raise ValueError("a negative count of writes")

    def stats(self) -> dict[str, Any]:
        """What an independent reader needs, and the counts."""
        return {**self.export(), "block_bytes": self.blocks.block_bytes, "blocks": asdict(self.blocks)}
