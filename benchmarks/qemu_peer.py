"""The engine against real QEMU: the same random 1 GiB, the same two namespaces, the same link, in turn.

QEMU's machine is paused, nothing has run in it (:mod:`_qemu`), its RAM holds the bytes of our guest, its destination
waits with ``-incoming defer`` and allocated memory; return-path and events are on, max-bandwidth is lifted. Our guest
is idle and runs. Memory is an odd size: QEMU 7.2 under TCG corrupts migrations of multiples of 256 KiB, and is compared
byte by byte after every migration.

The *transfer* is what both call the migration proper, to a destination that is ready: QEMU's ``total-time``, our time
from the end of the set-up to the confirmed handover. *From nothing* counts the making of the destination as well: from
the start of its process(es). Goodput is the memory's bytes by the time of the transfer, QEMU's set-up time left out.
The CPU time of the transfer is that of the process at each side, and of the switch between them, the kernel's work for
them included.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from _moving import GUEST, MIGRATION, Moving, cpu_s, report, switch_cpu_s, with_moving_guest
from _qemu import Qemu, require

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import BenchError
from bench.guest.client import GuestControl
from bench.memory.image import GuestMemory
from bench.migration.driver import Migration
from bench.timeline import Event

MEMORY = "1048584KiB"  # 1 GiB and 8 KiB: see above
PORT = 4444
SHAPED_REPEATS = 3
UNSHAPED_REPEATS = 4
OURS: Mapping[str, Mapping[str, object]] = {  # what is told the engine
    "one stream": {"streams": 1},
    "2 streams": {"streams": 2},
    "4 streams": {"streams": 4},
    "one stream, no proof": {"streams": 1, "verify": "off"},
    "4 streams, no proof": {"streams": 4, "verify": "off"},
}
QEMU_CHANNELS = (0, 2, 4)  # of multifd; 0 is its single stream
COMPARED_PAGES = 4096  # at once


@dataclass(frozen=True, slots=True)
class Took:
    """One migration: see this module."""

    transfer_ns: int
    from_nothing_ns: int
    copy_ns: int  # the transfer without what QEMU calls setup-time
    cpu_s: Mapping[str, float]  # of the transfer: source, destination, switch


class Meter:
    """The CPU time of a transfer; :meth:`look` at its begin and at its end.

    :ivar used: then, in s, of ``source``, ``destination`` and ``switch``.
    """

    def __init__(self) -> None:
        self.used: dict[str, float] = {}

    def look(self, pids: Mapping[str, int]) -> None:
        """:param pids: those of ``source`` and ``destination``."""
        now = {"switch": switch_cpu_s(), **{side: cpu_s(pids[side]) for side in ("source", "destination")}}
        self.used = {name: used - self.used.get(name, 0) for name, used in now.items()}


def ours(moving: Moving, settings: Mapping[str, object]) -> Took:
    """Our guest, to the other hypervisor."""
    begin_ns, meter = now_ns(), Meter()

    def look(event: Event, migration: Migration) -> None:
        if event.name in ("setup_end", "handover_confirmed"):
            meter.look(migration.pids())

    _outcome, timeline = moving.move(look, {**MIGRATION, **settings})
    (ready,), (end,) = timeline.select("setup_end"), timeline.select("handover_confirmed")
    return Took(end.t_ns - ready.t_ns, end.t_ns - begin_ns, end.t_ns - ready.t_ns, meter.used)


def theirs(moving: Moving, memory: GuestMemory, channels: int) -> Took:
    """A QEMU on our guest's hypervisor, to a new one on the other. :param channels: of multifd; 0 for none."""
    here, there = moving.ends()
    capabilities = ["events", "return-path", *(("multifd",) if channels else ())]
    meter = Meter()
    parameters = {"max-bandwidth": 0, **({"multifd-channels": channels} if channels else {})}
    with GuestMemory.create(memory.size_bytes, "destination") as arriving:
        source = Qemu("source", here.pid, memory, moving.directory, incoming=False)
        try:
            begin_ns = now_ns()
            destination = Qemu("destination", there.pid, arriving, moving.directory, incoming=True)
            try:
                for qemu in (source, destination):
                    qemu.set_up(capabilities, parameters)
                destination.execute("migrate-incoming", {"uri": f"tcp:{there.address}:{PORT}"})
                meter.look(pids := {"source": source.process.pid, "destination": destination.process.pid})
                source.execute("migrate", {"uri": f"tcp:{there.address}:{PORT}"})
                destination.wait_migrated()
                source.wait_migrated()
                end_ns = now_ns()
                meter.look(pids)
                told = source.execute("query-migrate")
            finally:
                destination.close()
        finally:
            source.close()
        require_equal(memory, arriving)
    copy_ms = told["total-time"] - told.get("setup-time", 0)
    return Took(told["total-time"] * NS_PER_MS, end_ns - begin_ns, copy_ms * NS_PER_MS, meter.used)


def require_equal(first: GuestMemory, second: GuestMemory) -> None:
    """:raises RuntimeError: naming a page that differs."""
    for begin in range(0, first.page_count, COMPARED_PAGES):
        part = slice(begin, begin + COMPARED_PAGES)
        differs = np.flatnonzero((first.words[part] != second.words[part]).any(axis=1))
        if len(differs):
            raise RuntimeError(f"QEMU's memories differ after the migration, first in page {begin + differs[0]}")


def copied(moving: Moving) -> GuestMemory:
    """New memory with what our guest's holds now."""
    guest = moving.testbed.guests[GUEST]
    with GuestControl.connect(guest.socket_path) as control:
        shared = control.memory()
    with GuestMemory.from_fd(shared.fd, writable=False) as original:
        copy = GuestMemory.create(original.size_bytes, "source")
        copy.words[:] = original.words
    return copy


def alternate(
    moving: Moving, repeats: int, ways: Sequence[str], channels: tuple[int, ...]
) -> tuple[dict[str, list[Took]], dict[int, list[Took]]]:
    """Migrate in turn. :returns: ours by their names in :data:`OURS`, and QEMU's by the number of multifd channels."""
    mine: dict[str, list[Took]] = {name: [] for name in ways}
    peers: dict[int, list[Took]] = {count: [] for count in channels}
    with copied(moving) as memory:
        for _ in range(repeats):
            for name, took in mine.items():
                took.append(ours(moving, OURS[name]))
            for count, took in peers.items():
                took.append(theirs(moving, memory, count))
    return mine, peers


def shaped(moving: Moving) -> None:
    """Total times."""
    mine, peers = alternate(moving, SHAPED_REPEATS, ("one stream",), (0,))
    for name, attribute in (("to a ready destination", "transfer_ns"), ("from nothing", "from_nothing_ns")):
        value, reference = (
            statistics.median(getattr(took, attribute) for took in side) / NS_PER_S
            for side in (mine["one stream"], peers[0])
        )
        report(f"total time at 1 Gbit/s {name} against QEMU", value, "s", reference, "ratio <= 1")


def unshaped(moving: Moving) -> None:
    """Goodputs: the best of one stream and several against QEMU's best, and each of them.

    QEMU does not prove that what arrived is what left, so it is compared with ours without its proof as well.
    """
    mine, peers = alternate(moving, UNSHAPED_REPEATS, tuple(OURS), QEMU_CHANNELS)
    bits = moving.testbed.guests[GUEST].spec.memory * 8

    def gbps(side: list[Took]) -> float:
        return bits / statistics.median(took.copy_ns for took in side)

    names = {0: "single", 2: "multifd of 2", 4: "multifd of 4"}
    for count, side in peers.items():
        report(
            f"goodput unshaped of one stream against QEMU {names[count]}",
            gbps(mine["one stream"]),
            "Gbit/s",
            gbps(side),
        )
    best = max(map(gbps, peers.values()))
    for name, side in mine.items():
        report(f"goodput unshaped of {name} against QEMU's best", gbps(side), "Gbit/s", best)
    for what, proved in (("goodput unshaped with our proof", True), ("goodput unshaped without our proof", False)):
        value = max(gbps(side) for name, side in mine.items() if ("verify" not in OURS[name]) is proved)
        report(f"{what}, best against QEMU's best", value, "Gbit/s", best, "ratio >= 1")
    for name in ("source", "destination", "switch"):
        used, reference = (
            statistics.median(took.cpu_s[name] for took in side) for side in (mine["one stream"], peers[0])
        )
        report(f"CPU of the transfer unshaped, one stream, {name}, against QEMU single", used, "s", reference)


def main() -> int:
    """Print the rows."""
    try:
        require()
        for bandwidth, body in (("1Gbit", shaped), ("unlimited", unshaped)):
            if with_moving_guest(bandwidth, MEMORY, body):
                return 1
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
