"""A vCPU: a process that maps guest memory and writes it as its workload says.

``python -m bench.guest.vcpu --channel-fd N``. Lives until its channel reaches end of file. Commands (args -> value)::

    init   {memory_bytes, workload: Parameters, registers: {…}|null, populate} + the memfd -> {pid, base}
                                        populate: "first", "idle" (while there is nothing else to do), "never"
    load   {registers} -> {}            go on from there; only while paused
    run    {} -> {}
    pause  {} -> {registers}            no write happens after this reply until the next run
    track  {enable, method} -> {pid, base}
    expect {enable} -> {pid, base} + a userfaultfd    touching a page that is not there waits for it from now on
    throttle {share_ppm, writes_per_s} -> {writes}   write during this share of every 10 ms only, and no more often (0:
                                        as often as wanted)
    stats  {} -> {index, running, writes, missed_writes}
    check  {limit} -> {pages, wrong, first_wrong, position}   memory against the last write of each page
    quit   {} -> {}

Single-threaded: between two batches of writes (below 1 ms) it looks at its channel, so every command finds the sequence
at a whole write. Writes that could not be done in time (this process got no CPU) are made up for as far as
:data:`bench.guest.pacing.MAX_BEHIND_NS` back; older ones are counted as missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import BenchError, GuestError
from bench.guest.pacing import Pacer, Rate, Schedule, Traced
from bench.guest.workload import Checked, Indices, Parameters, Words, Workload
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.kernel import set_parent_death_signal
from bench.memory.image import GuestMemory
from bench.memory.own import own_memory
from bench.memory.pager import ExpectedPages, expect_pages
from bench.memory.populate import populate_step
from bench.memory.uffd import WriteTracking, arm_write_tracking

THROTTLE_PERIOD_NS = 10 * NS_PER_MS
_THROTTLED_WRITES = 16  # at once while throttled: below 50 us
_FULL_PPM = 1_000_000
_PREPARED_BYTES = 256 << 10
TRACK_METHODS = ("pagemap-scan", "soft-dirty")


class Writer:
    """Does a workload's writes. Computes them some hundred ahead, so that a small step costs a few microseconds."""

    def __init__(self, workload: Workload, memory: GuestMemory) -> None:
        self.workload = workload
        self.window = workload.window(memory.words)
        self._chunk = max(64, min(1024, _PREPARED_BYTES // workload.parameters.write_bytes))
        self._places: Indices = np.empty(0, dtype=np.int64)
        self._bytes: Words = np.empty((0, workload.words_per_write), dtype=np.uint64)
        self._used = 0

    def step(self, count: int) -> None:
        """Do the next *count* writes."""
        while count:
            if self._used == len(self._places):
                writes = self.workload.sequence(self.workload.position, self._chunk)
                self._places, self._bytes = writes.places, self.workload.bytes_of(writes.stamps)
                self._used = 0
            end = min(self._used + count, len(self._places))
            self.window[self._places[self._used : end]] = self._bytes[self._used : end]
            done = end - self._used
            self.workload.position += done
            self._used = end
            count -= done


class WriteCap:
    """At most so many writes per second, and no more than :data:`THROTTLE_PERIOD_NS` is worth (at least one) at once.

    :param writes_per_s: 0 for no cap.
    """

    def __init__(self, writes_per_s: int) -> None:
        self.writes_per_s = writes_per_s
        self._free_ns = 0

    def take(self, wanted: int, at_ns: int) -> int:
        """How many of *wanted* writes may be done now; they count as done."""
        if not self.writes_per_s or not wanted:
            return wanted
        each_ns = NS_PER_S // self.writes_per_s
        self._free_ns = max(self._free_ns, at_ns - max(THROTTLE_PERIOD_NS, each_ns))
        count = min(wanted, (at_ns - self._free_ns) // max(1, each_ns))
        self._free_ns += count * each_ns
        return max(0, count)


class Vcpu:
    """The vCPU behind one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._memory: GuestMemory | None = None
        self._writer: Writer | None = None
        self._pacer = Pacer(None)
        self._tracking: WriteTracking | None = None
        self._expected: ExpectedPages | None = None
        self._unpopulated = 0  # so many first pages are still to be populated
        self._running = False
        self._check: tuple[int, Iterator[Checked]] | None = None
        self._next_ns = 0
        self._share_ppm = _FULL_PPM
        self._cap = WriteCap(0)

    def serve(self) -> None:
        """Until ``quit`` or end of file."""
        with contextlib.suppress(ChannelClosed):
            while True:
                if self._channel.pending() or select.select([self._channel], [], [], self._timeout_s())[0]:
                    message = self._channel.receive()
                    if not self._answer(message):
                        return
                elif self._check is not None:
                    self._advance_check(*self._check)
                elif self._running:
                    self._tick()
                elif self._unpopulated:
                    self._populate()

    def _timeout_s(self) -> float | None:
        if self._check is not None:
            return 0
        if not self._running:
            return 0 if self._unpopulated else None
        return max(0, self._next_ns - now_ns()) / NS_PER_S

    def _populate(self) -> None:
        """The next few MiB: a few ms in which no command is answered. From the end on: the engine comes from the other
        one, so that each allocates its half.
        """
        assert self._memory is not None
        self._unpopulated = populate_step(self._memory, self._unpopulated, down=True)

    def _tick(self) -> None:
        writer = self._ready()
        if self._share_ppm < _FULL_PPM or self._cap.writes_per_s:
            self._throttled_tick(writer)
            return
        due = self._pacer.due(now_ns())
        writer.step(due)
        self._pacer.did(due)
        self._next_ns = self._pacer.next_ns(now_ns())

    def _throttled_tick(self, writer: Writer) -> None:
        """What is due, as far as it fits into this period's share; then nothing until the next period."""
        begin_ns = now_ns() // THROTTLE_PERIOD_NS * THROTTLE_PERIOD_NS
        end_ns = begin_ns + THROTTLE_PERIOD_NS * self._share_ppm // _FULL_PPM
        wanted = self._pacer.due(now_ns())
        due = self._cap.take(wanted, now_ns())
        capped = due < wanted
        while due and now_ns() < end_ns:
            count = min(due, _THROTTLED_WRITES)
            writer.step(count)
            self._pacer.did(count)
            due -= count
        now = now_ns()
        self._next_ns = begin_ns + THROTTLE_PERIOD_NS if capped or now >= end_ns else self._pacer.next_ns(now)

    def _restart(self, at_ns: int) -> None:
        """Nothing is due yet; a trace goes on where it was, a rate has no past."""
        workload = self._ready().workload
        self._pacer.restart(at_ns, workload.position if workload.trace is not None else 0)

    def _ready(self) -> Writer:
        if self._writer is None:
            raise GuestError("vCPU: a command before init")
        return self._writer

    def _answer(self, message: Message) -> bool:
        """Carry out one command. :returns: False after ``quit``."""
        name, command_id, args = message.get("command"), message.get("id"), message.get("args", {})
        if not isinstance(command_id, int) or not isinstance(args, dict):
            raise GuestError(f"vCPU: not a command: {str(message)[:120]}")
        commands = {
            "init": self._do_init,
            "load": self._do_load,
            "run": self._do_run,
            "pause": self._do_pause,
            "track": self._do_track,
            "throttle": self._do_throttle,
            "stats": self._do_stats,
        }
        fds = self._channel.take_fds(int(message.get("fds", 0)))
        try:
            if name == "init":
                args = {**args, "fds": fds}
                fds = []
            if name == "check":
                self._start_check(command_id, args)
            elif name == "quit":
                self._channel.send_reply(command_id)
                return False
            elif name == "expect":
                value = self._do_expect(args)
                self._channel.send_reply(command_id, value, [self._expected.fd] if self._expected else [])
            elif name in commands:
                self._channel.send_reply(command_id, commands[name](args))
            else:
                raise GuestError(f"vCPU: unknown command {str(name)[:40]!r}")
        except ChannelClosed:
            raise
        except (BenchError, KeyError, TypeError, ValueError) as error:
            self._channel.send_error(command_id, error.message if isinstance(error, BenchError) else repr(error))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    # commands

    def _do_init(self, args: Mapping[str, Any]) -> dict[str, Any]:
        fds = args["fds"]
        if self._memory is not None or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise GuestError("vCPU: init is allowed once, with one descriptor")
        memory = GuestMemory.from_fd(fds[0], args["memory_bytes"])
        try:
            registers = args["registers"]
            workload = Workload.restore(registers) if registers else Workload(Parameters.from_json(args["workload"]))
            self._set_workload(workload, memory)
            if args["populate"] == "first":
                memory.populate()
            self._unpopulated = memory.page_count if args["populate"] == "idle" else 0
        except BaseException:
            memory.close()
            raise
        self._memory = memory
        own_memory()
        return {"pid": os.getpid(), "base": memory.base}

    def _set_workload(self, workload: Workload, memory: GuestMemory) -> None:
        parameters = workload.parameters
        if parameters.first_page + parameters.pages > memory.page_count:
            raise GuestError(f"vCPU {parameters.index}: its pages lie outside of the guest's memory")
        self._writer = Writer(workload, memory)
        schedule: Schedule | None = Rate(parameters.rate_bytes_per_s) if parameters.rate_bytes_per_s else None
        if workload.trace is not None:
            schedule = Traced(workload.trace) if workload.writes else None
        self._pacer = Pacer(schedule)

    def _do_load(self, args: Mapping[str, Any]) -> dict[str, Any]:
        if self._memory is None or self._running or self._check is not None:
            raise GuestError("vCPU: load is allowed after init, while paused and not checking")
        self._set_workload(Workload.restore(args["registers"]), self._memory)
        return {}

    def _do_run(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        writer = self._ready()
        if not self._running:
            self._running = writer.workload.writes  # an idle vCPU sleeps
            self._next_ns = now_ns()
            self._restart(self._next_ns)
        return {}

    def _do_pause(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        writer = self._ready()
        self._running = False
        return {"registers": writer.workload.export()}

    def _do_track(self, args: Mapping[str, Any]) -> dict[str, Any]:
        method = args["method"]
        if method not in TRACK_METHODS:
            raise GuestError(f"vCPU: tracking method {method!r}; known are {', '.join(TRACK_METHODS)}")
        if self._memory is None:
            raise GuestError("vCPU: a command before init")
        if self._tracking is not None:
            self._tracking.disarm()
            self._tracking = None
        if args["enable"] and method == "pagemap-scan":  # soft-dirty needs nothing here
            self._tracking = arm_write_tracking(self._memory.base, self._memory.size_bytes)
        return {"pid": os.getpid(), "base": self._memory.base}

    def _do_expect(self, args: Mapping[str, Any]) -> dict[str, Any]:
        if self._memory is None:
            raise GuestError("vCPU: a command before init")
        if self._expected is not None:
            self._expected.end()
            self._expected = None
        # While it waits for a page it cannot see that its guest is gone.
        set_parent_death_signal(signal.SIGKILL if args["enable"] else 0)
        if args["enable"]:
            self._unpopulated = 0
            self._expected = expect_pages(self._memory.base, self._memory.size_bytes)
        return {"pid": os.getpid(), "base": self._memory.base}

    def _do_throttle(self, args: Mapping[str, Any]) -> dict[str, Any]:
        share_ppm, writes_per_s = args["share_ppm"], args["writes_per_s"]
        if not isinstance(share_ppm, int) or not 0 < share_ppm <= _FULL_PPM:
            raise GuestError(f"vCPU: a share of {str(share_ppm)[:40]} ppm")
        if not isinstance(writes_per_s, int) or writes_per_s < 0:
            raise GuestError(f"vCPU: {str(writes_per_s)[:40]} writes per second")
        self._share_ppm = share_ppm
        if writes_per_s != self._cap.writes_per_s:
            self._cap = WriteCap(writes_per_s)
        self._next_ns = now_ns()
        return {"writes": self._ready().workload.position}

    def _do_stats(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        workload = self._ready().workload
        return {
            "index": workload.parameters.index,
            "running": self._running,
            "writes": workload.position,
            "missed_writes": self._pacer.missed,
        }

    def _start_check(self, command_id: int, args: Mapping[str, Any]) -> None:
        """The workload stands still while a check runs, and other commands are answered between its steps."""
        writer = self._ready()
        if self._check is not None:
            raise GuestError("vCPU: a check is running")
        self._check = (command_id, writer.workload.check(writer.window, int(args["limit"])))

    def _advance_check(self, command_id: int, check: Iterator[Checked]) -> None:
        result = next(check)
        if not result.finished:
            return
        self._check = None
        if self._running:
            self._restart(now_ns())  # the time of the check is not made up for
        value = {"pages": result.pages, "wrong": result.wrong, "first_wrong": result.first_wrong}
        self._channel.send_reply(command_id, {**value, "position": self._ready().workload.position})


def main(arguments: list[str] | None = None) -> int:
    """The process: serves the inherited channel until it ends."""
    parser = argparse.ArgumentParser(prog="bench.guest.vcpu")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what stops when
    Vcpu(Channel.from_fd(options.channel_fd, "guest")).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
