"""The durable store's log: every command that changed the store is on the disk before its reply leaves the guest.

Records are appended (:mod:`bench.storage.records`) and written by one commit at a time, with FUA; whatever is appended
during a commit goes with the next. A commit that fails, or a log that is full, ends the accepting of writes: from then
on they are refused, and what was not acknowledged never will be. The log is never rewritten to make it shorter: an
independent reader is to find all that ever happened.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from typing import Any

from bench.clock import NS_PER_S, Deadline
from bench.errors import GuestError
from bench.guest.disk import Disk, DiskDriver
from bench.storage import records, ring

OPEN_NS = 20 * NS_PER_S
_MOVED = b"#generation"


class StoreLog:
    """On the first *area_bytes* of a disk.

    :ivar appended: the sequence number of the newest record; ``durable`` that of the newest one on the disk.
    :ivar generation: what records are marked with.
    :ivar refused: commands that found it full, at this hypervisor.
    """

    def __init__(self, driver: DiskDriver, disk: Disk, area_bytes: int) -> None:
        self._driver = driver
        self._disk = disk
        self.area_bytes = area_bytes
        self.appended = 0
        self.durable = 0
        self.generation = 0
        self.error = ""
        self.refused = 0
        self._tail = records.BLOCK_BYTES  # where the next commit writes: the start of the last block in use
        self._partial = b""  # what that block holds
        self._waiting = bytearray()
        self._committing = 0  # bytes on their way
        self._watchers: dict[Callable[[], None], None] = {}

    # boot

    def open(self) -> list[bytes]:
        """Make the log, or read the one that is there. :returns: the payloads of its records, in order.

        :raises GuestError: when the disk cannot be read or written.
        """
        if records.log_area_bytes(self._read(0, records.BLOCK_BYTES)) != self.area_bytes:
            self._write_now(records.log_header(self.area_bytes) + bytes(records.BLOCK_BYTES))
            return []
        area = bytearray()
        found: list[bytes] = []
        while records.BLOCK_BYTES + len(area) < self.area_bytes:
            step = min(ring.SLOT_BYTES, self.area_bytes - records.BLOCK_BYTES - len(area))
            area += self._read(records.BLOCK_BYTES + len(area), step)
            if not any(area[-records.BLOCK_BYTES :]):
                break
        end = 0
        for record, ends in records.decode_records(memoryview(area)):
            found.append(record.payload)
            self.appended = self.durable = record.sequence
            end = ends
        begin = end // records.BLOCK_BYTES * records.BLOCK_BYTES
        self._tail, self._partial = records.BLOCK_BYTES + begin, bytes(area[begin:end])
        return [payload for payload in found if payload != _MOVED]

    def _read(self, offset: int, length: int) -> bytes:
        slot = self._driver.slot()
        assert slot is not None, "nothing else runs at boot"
        errors: list[int] = []
        self._driver.read(self._disk.number, slot, offset, length, errors.append)
        self._driver.drain(Deadline(OPEN_NS))
        data = bytes(self._driver.data(slot)[:length])
        self._driver.give_back(slot)
        self._check(errors)
        return data

    def _write_now(self, data: bytes) -> None:
        slot = self._driver.slot()
        assert slot is not None, "nothing else runs at boot"
        errors: list[int] = []
        self._driver.data(slot)[: len(data)] = data
        self._driver.write(self._disk.number, slot, 0, len(data), errors.append, fua=True)
        self._driver.drain(Deadline(OPEN_NS))
        self._driver.give_back(slot)
        self._check(errors)

    def _check(self, errors: list[int]) -> None:
        if errors != [0]:
            why = os.strerror(errors[0]) if errors else "no answer"
            raise GuestError(f"the log on disk {self._disk.name} cannot be opened: {why}")

    # running

    @property
    def settled(self) -> bool:
        return self.durable == self.appended

    def accepts(self, payload_bytes: int) -> str:
        """Why a record of that size cannot be appended; empty when it can."""
        waiting = len(self._partial) + self._committing + len(self._waiting)
        used = self._tail + waiting + records.RECORD_BYTES + payload_bytes
        if self.error:
            return self.error
        if payload_bytes > ring.SLOT_BYTES // 2:
            return "the command is larger than the log takes"
        if used + 2 * records.BLOCK_BYTES <= self.area_bytes:
            return ""
        return f"its log of {self.area_bytes >> 10} KiB is full: a larger guest.log_size takes more"

    def append(self, payload: bytes) -> int:
        """:returns: its sequence number; :attr:`durable` reaches it when it is on the disk."""
        self.appended += 1
        self._waiting += records.encode_record(self.appended, self.generation, payload)
        self._commit()
        return self.appended

    def mark_generation(self) -> None:
        """The first record of a new generation says only that it has begun."""
        if not self.accepts(len(_MOVED)):
            self.append(_MOVED)

    def watch(self, call: Callable[[], None]) -> None:
        """Call it once, when more is on the disk, or when that failed."""
        self._watchers[call] = None

    def forget(self, call: Callable[[], None]) -> None:
        self._watchers.pop(call, None)

    def _commit(self) -> None:
        if self._committing or not self._waiting or self.error:
            return
        slot = self._driver.slot()
        if slot is None:
            self._driver.when_free(self._commit)
            return
        room = ring.SLOT_BYTES - records.BLOCK_BYTES
        taken = bytes(self._waiting[: room - len(self._partial)])
        del self._waiting[: len(taken)]
        self._committing = len(taken)
        data = self._partial + taken
        padded = data.ljust(-(-len(data) // records.BLOCK_BYTES) * records.BLOCK_BYTES, b"\0")
        self._driver.data(slot)[: len(padded)] = padded
        sequence = self.appended if not self._waiting else self.durable  # a record cut in two comes with the next

        def done(error: int) -> None:
            self._driver.give_back(slot)
            self._committing = 0
            if error:
                self.error = f"the log cannot be written: {os.strerror(error)}"
            else:
                whole = len(data) // records.BLOCK_BYTES * records.BLOCK_BYTES
                self._tail += whole
                self._partial = data[whole:]
                self.durable = max(self.durable, sequence)
            watchers, self._watchers = self._watchers, {}
            for call in watchers:
                call()
            self._commit()

        self._driver.write(self._disk.number, slot, self._tail, len(padded), done, fua=True)

    # moving

    def export(self) -> dict[str, Any]:
        """Of a settled log."""
        if not self.settled:
            raise GuestError("the log is not on the disk yet")
        return {
            "sequence": self.appended,
            "tail": self._tail,
            "partial": base64.b64encode(self._partial).decode("ascii"),
            "error": self.error,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """:raises ValueError, KeyError: when *state* is none of :meth:`export`."""
        self.appended = self.durable = int(state["sequence"])
        self._tail = int(state["tail"])
        self._partial = base64.b64decode(str(state["partial"]), validate=True)
        self.error = str(state["error"])[:200]
        if not records.BLOCK_BYTES <= self._tail <= self.area_bytes or len(self._partial) >= records.BLOCK_BYTES:
            raise ValueError("a log's tail lies outside of it")
