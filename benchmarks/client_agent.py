"""What client agents cost and how near to the system call their time stamps are: a hundred flows, a hundred requests a
second each, in one process, over the loopback interface of a network namespace of their own.

The reference is the kernel: its trace events of the agent's ``sendto`` and ``recvfrom`` (ftrace, a private instance),
stamped with the same CLOCK_MONOTONIC in the same run. A request's ``sent_ns`` is compared with the entry of the send
that follows it, its ``received_ns`` with the exit of the receive before it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _moving import report

from bench.clock import NS_PER_S, Deadline
from bench.host.channel import Channel
from bench.host.commands import Process, run, spawn_child
from bench.host.kernel import CLONE_NEWNET, set_interface_up, unshare
from bench.outside.servers import Servers
from bench.records import load_records

ADDRESS = "127.0.0.1"
RUN_S = 10
RATE = 100  # requests/s of each flow
EVENTS = ("sys_enter_sendto", "sys_exit_recvfrom")
_LINE = re.compile(r"\s(\d+)\.(\d{6}): (sys_\w+)[(\s]")


@contextlib.contextmanager
def traced(tracing: Path, pid: int) -> Iterator[dict[str, list[int]]]:
    """The agent's send and receive calls while the body runs, in ns (to the microsecond), by event."""
    instance = tracing / "instances" / f"bench-{os.getpid()}"
    instance.mkdir()
    found: dict[str, list[int]] = {name: [] for name in EVENTS}
    try:
        (instance / "trace_clock").write_text("mono")
        (instance / "buffer_size_kb").write_text("65536")
        (instance / "set_event_pid").write_text(str(pid))
        for name in EVENTS:
            (instance / "events/syscalls" / name / "enable").write_text("1")
        yield found
        (instance / "tracing_on").write_text("0")
        with (instance / "trace").open() as file:
            for line in file:
                seen = _LINE.search(line)
                if seen is None:
                    continue
                name = {"sys_sendto": EVENTS[0], "sys_recvfrom": EVENTS[1]}.get(seen[3], seen[3])
                if name in found:
                    found[name].append(int(seen[1]) * NS_PER_S + int(seen[2]) * 1000)
    finally:
        instance.rmdir()


@contextlib.contextmanager
def tracefs(directory: Path) -> Iterator[Path]:
    """The kernel's tracing, mounted for as long as it is needed."""
    directory.mkdir()
    run(["mount", "-t", "tracefs", "nodev", str(directory)], deadline=Deadline(5 * NS_PER_S))
    try:
        yield directory
    finally:
        run(["umount", str(directory)], deadline=Deadline(5 * NS_PER_S))


def measured(flows: int, directory: Path, tracing: Path | None) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The agent's report, and what was traced of it; records lie in *directory*."""
    process: Process
    channel: Channel
    process, channel = spawn_child(
        "bench.probe.client",
        peer="client",
        extra_args=["--directory", str(directory), "--events", str(directory / "client.jsonl")],
        log=directory / "client.log",
    )
    orders = [
        {"name": f"f{number}", "kind": "tcp-request", "think_ns": NS_PER_S // RATE, "size": 64}
        for number in range(flows)
    ]
    calls: dict[str, list[int]] = {}
    try:
        channel.call("configure", {"guest_address": ADDRESS, "flows": orders}, deadline=Deadline(15 * NS_PER_S))
        with traced(tracing, process.pid) if tracing is not None else contextlib.nullcontext(calls) as found:
            channel.call("start", {}, deadline=Deadline(10 * NS_PER_S))
            until = Deadline(RUN_S * NS_PER_S)
            while not until.expired:
                with contextlib.suppress(Exception):
                    channel.receive(until)  # its events; what it says is not needed
            told = channel.call("stop", {}, deadline=Deadline(20 * NS_PER_S))
        calls = found
    finally:
        channel.close()
        process.stop()
    return dict(told), calls


def distances(flows: int, directory: Path, calls: dict[str, list[int]]) -> tuple[Any, Any]:
    """From each stamp of a send to the call after it, and of a receive to the return before it, in us."""
    records = np.concatenate([load_records(directory / f"f{number}.npy") for number in range(flows)])
    records = records[records["received_ns"] > 0]
    enter, leave = (np.sort(np.array(calls[name], np.int64)) for name in EVENTS)
    after = np.searchsorted(enter, records["sent_ns"] - 1000)  # the trace is to the microsecond
    before = np.searchsorted(leave, records["received_ns"]) - 1
    known = (after < len(enter)) & (before >= 0)
    return (
        (enter[after[known]] - records["sent_ns"][known]) / 1000,
        (records["received_ns"][known] - leave[before[known]]) / 1000,
    )


def main() -> int:
    """Time stamps with the kernel's trace beside them, then the cost without."""
    unshare(CLONE_NEWNET)
    set_interface_up("lo")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        servers = Servers(directory, directory)
        stack.callback(servers.close)
        servers.start("server", None, ADDRESS)
        tracing = stack.enter_context(tracefs(directory / "tracing"))
        for flows in (1, 100):
            told, calls = measured(flows, directory, tracing)
            sent, received = distances(flows, directory, calls)
            for what, found in (("send", sent), ("receive", received)):
                label = f"{flows} flows: time stamp to the {what} call"
                report(f"{label}, median", float(np.median(np.abs(found))), "us", None, "value < 100")
                report(f"{label}, 99 %", float(np.percentile(np.abs(found), 99)), "us", None)
        told, _calls = measured(100, directory, None)
        requests = sum(flow["requests"] for flow in told["flows"])
        wall_s = told["wall_ns"] / NS_PER_S
        report("100 flows: requests answered", requests / wall_s, "1/s", 100 * RATE, "ratio >= 0.9")
        report("100 flows: of one core", told["cpu_ns"] / told["wall_ns"], "", None, "value < 0.5")
    return 0


if __name__ == "__main__":
    sys.exit(main())
