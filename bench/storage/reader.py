"""An independent reader of an image: what a disk really holds, by qemu-img alone, against what was acknowledged.

Nothing of the guest, the block layer or the fence is asked: the image is converted to raw and looked at.
"""

from __future__ import annotations

import itertools
import mmap
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.clock import NS_PER_S, Deadline
from bench.errors import CommandError
from bench.host.commands import run
from bench.storage import records
from bench.storage.images import FORMATS

COMMAND_NS = 120 * NS_PER_S


@dataclass
class Findings:
    """What was found on one disk.

    :param problems: everything that is wrong, in words; empty for a disk as it must be.
    :param records: of its log, and *blocks* of its workload that hold a write.
    :param payloads: of the log, in order.
    """

    problems: list[str] = field(default_factory=list)
    records: int = 0
    blocks: int = 0
    generations: tuple[int, ...] = ()
    payloads: list[bytes] = field(default_factory=list)


def read_disk(path: Path, form: str, expected: Mapping[str, Any]) -> Findings:
    """Look at one image, which nobody may have open for writing.

    :param expected: a guest's ``stats()["disks"]["disks"][NAME]``: ``journal`` {sequence} and ``workload`` {writes,
        failed, blocks: the members of :class:`bench.storage.records.Blocks`}, each or none.
    """
    found = Findings()
    if form in ("qcow2", "vhdx"):
        try:
            run(["qemu-img", "check", "-q", "-f", FORMATS[form], str(path)], deadline=Deadline(COMMAND_NS))
        except CommandError as error:
            found.problems.append(f"qemu-img check: {error.message}")
    with tempfile.TemporaryDirectory(prefix="bench-reader-", dir=path.parent) as directory:
        raw = Path(directory) / "raw"
        convert = ["qemu-img", "convert", "-f", FORMATS[form], "-O", "raw", str(path), str(raw)]
        run(convert, deadline=Deadline(COMMAND_NS))
        with raw.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
            journal, workload = expected.get("journal"), expected.get("workload")
            if journal:
                _read_log(image, int(journal["sequence"]), found)
            if workload:
                _read_blocks(image, workload, found)
    return found


def _read_log(image: mmap.mmap, acknowledged: int, found: Findings) -> None:
    area_bytes = records.log_area_bytes(image[: records.BLOCK_BYTES])
    if not area_bytes:
        found.problems.append("there is no log")
        return
    last = generation = 0
    generations = set()
    for record, _end in records.decode_records(image[records.BLOCK_BYTES : area_bytes]):
        if record.sequence != last + 1:
            found.problems.append(f"log: record {record.sequence} follows {last}")
        if record.generation < generation:
            found.problems.append(
                f"log: record {record.sequence} of generation {record.generation} follows one of {generation}"
            )
        last, generation = record.sequence, record.generation
        generations.add(generation)
        found.payloads.append(record.payload)
    found.records = len(found.payloads)
    found.generations = tuple(sorted(generations))
    if last < acknowledged:
        found.problems.append(f"log: it ends at record {last}, and {acknowledged} were acknowledged")


def _read_blocks(image: mmap.mmap, workload: Mapping[str, Any], found: Findings) -> None:
    blocks = records.Blocks(**workload["blocks"])
    writes, failed = int(workload["writes"]), int(workload.get("failed", 0))
    newest: list[tuple[int, int]] = []
    for block in range(blocks.count):
        offset = blocks.offset_of(block)
        data = image[offset : offset + blocks.block_bytes]
        expected = blocks.last_write_of(block, writes)
        if expected is None:
            if data.count(0) != len(data):
                found.problems.append(f"block {block}: never written, and not empty")
            continue
        stamped = records.read_stamp(data)
        if stamped is None:
            found.problems.append(f"block {block}: no whole write, but parts of several or nothing")
        elif stamped.number != expected and not failed:
            found.problems.append(f"block {block}: holds write {stamped.number}, not {expected}")
        if stamped is not None:
            found.blocks += 1
            newest.append(stamped)
    newest.sort()
    for (earlier, first), (later, second) in itertools.pairwise(newest):
        if second < first:
            found.problems.append(f"write {later} is of generation {second}, {earlier} before it of {first}")
            break
