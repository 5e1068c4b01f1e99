"""The client agent: all flows of one client host, in one process that disturbs little.

Run as ``python -m bench.probe.client --channel-fd N --directory DIR --events FILE`` in the client host's network
namespace. Commands on the channel (:mod:`bench.host.channel`):

``configure`` {guest_address, flows: [{name, kind, interval_ns, think_ns, size, rate_bps, timeout_ns, command,
address?, tcp?, retry?}]} -> {}
    once, before anything else; a flow may have a guest of its own.
``start`` {} -> {}
    begins every flow; does not wait for connections.
``stop`` {} -> {flows: [report], kernel, cpu_ns, wall_ns}
    asks nothing more, waits (bounded) for what is outstanding, writes ``DIR/<flow>.npy`` and, of a connection,
    ``DIR/<flow>.tcp.npy`` (what the kernel said of it), reports: name, kind,
    requests, lost, duplicated, reordered, corrupted, alive, error, retransmits, local_port, ended_ns (when it was
    stopped or died), and what the kind adds. A second ``stop`` gives the same reply.

While flows run, about five ``flow_status`` events a second go up the channel for each of them, as far as the channel
has room: a runner that does not read must not stop the probes. Other events of flows go to the events file and up.

The agent ends when its channel does, or on SIGTERM; it ignores SIGINT, because Ctrl-C is the runner's to handle.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, now_ns
from bench.errors import BenchError, ProbeError
from bench.flows.tcp_options import check_supported, kernel_retries, set_retries2
from bench.flows.tcp_samples import SAMPLE_NS
from bench.host.channel import Channel, ChannelClosed
from bench.host.timer import set_timer_slack_ns
from bench.probe.flows import Flow, FlowSpec, make_flow
from bench.probe.flows.library import LibraryFlow
from bench.probe.flows.tcp import TcpFlow
from bench.probe.loop import READABLE, Loop, Periodic
from bench.records import SAMPLES_SUFFIX
from bench.timeline import Event, EventWriter

STATUS_INTERVAL_NS: Final = NS_PER_S // 5
MAX_FLOWS: Final = 256
_NICE: Final = -10


class ClientAgent:
    """The commands of the module's docstring, on one loop with the flows."""

    def __init__(self, channel: Channel, directory: Path, events: Path) -> None:
        self._channel = channel
        self._directory = directory
        self._source = events.name.removesuffix(".jsonl")
        self._loop = Loop()
        self._events = EventWriter(events, self._source, self._send_up)
        self._flows: list[Flow] = []
        self._status: Periodic | None = None
        self._sampler: Periodic | None = None
        self._sampled: list[TcpFlow | LibraryFlow] = []
        self._configured = False
        self._started_ns = 0
        self._stop_ids: list[int] = []
        self._final: dict[str, Any] | None = None
        self._cpu_start_ns = 0

    def run(self) -> None:
        """Serve until the channel ends. Closes everything."""
        self._loop.watch(self._channel.fileno(), READABLE, self._readable, _raise)
        try:
            self._loop.run()
        except ChannelClosed:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Idempotent; one flow that fails to close does not keep the others from it."""
        for timer in (self._status, self._sampler):
            if timer is not None:
                timer.close()
        for flow in self._flows:
            with contextlib.suppress(OSError, BenchError):
                flow.close()
        self._events.close()

    def _send_up(self, event: Event) -> None:
        """Events go up only while the channel has room; the events file has them all."""
        if select.select([], [self._channel], [], 0)[1]:
            self._channel.send_event(event)

    def _readable(self, _events: int) -> None:
        for message in self._channel.receive_ready():
            self._command(message)

    def _command(self, message: Mapping[str, Any]) -> None:
        command, number, args = message.get("command"), message.get("id"), message.get("args", {})
        if not isinstance(number, int):
            return
        try:
            if command == "configure":
                self._configure(args)
                self._channel.send_reply(number)
            elif command == "start":
                self._start()
                self._channel.send_reply(number)
            elif command == "stop":
                self._stop(number)
            else:
                raise ProbeError(f"unknown command {str(command)[:80]!r}")
        except ChannelClosed:
            raise
        except BenchError as error:
            self._channel.send_error(number, str(error))

    def _configure(self, args: object) -> None:
        if self._configured:
            raise ProbeError("configure comes once")
        if not isinstance(args, Mapping):
            raise ProbeError("configure needs an object")
        address, raw_flows = args.get("guest_address"), args.get("flows")
        if not isinstance(address, str) or not isinstance(raw_flows, list) or len(raw_flows) > MAX_FLOWS:
            raise ProbeError(f"configure needs guest_address and a list of at most {MAX_FLOWS} flows")
        specs = [FlowSpec.from_json(raw) for raw in raw_flows]
        if len({spec.name for spec in specs}) != len(specs):
            raise ProbeError("two flows have the same name")
        self._flows = [
            make_flow(spec, spec.address or address, self._loop, self._directory, self._events) for spec in specs
        ]
        wanted = {spec.tcp.retries2 for spec in specs if spec.tcp.retries2}
        if len(wanted) > 1:
            raise ProbeError(f"flows of one host want tcp_retries2 {' and '.join(map(str, sorted(wanted)))}")
        for spec in specs:
            check_supported(spec.tcp, spec.name)
        if wanted:
            set_retries2(wanted.pop())
        self._configured = True

    def _start(self) -> None:
        if not self._configured or self._started_ns:
            raise ProbeError("start comes once, after configure")
        _settle_memory()
        self._started_ns = now_ns()
        self._cpu_start_ns = time.process_time_ns()
        for flow in self._flows:
            flow.start()
        self._sampled = [flow for flow in self._flows if isinstance(flow, TcpFlow | LibraryFlow)]
        if self._sampled:
            self._sampler = self._loop.every(SAMPLE_NS, self._sample, _raise)
        self._status = self._loop.every(STATUS_INTERVAL_NS, self._tell, _raise, now_ns() + STATUS_INTERVAL_NS)

    def _sample(self, _expirations: int) -> None:
        for flow in self._sampled:
            flow.look()

    def _tell(self, _expirations: int) -> None:
        now = now_ns()
        for flow in self._flows:
            flow.check(now)
            self._send_up(Event(now, self._source, "flow_status", flow.status()))
        if self._stop_ids:
            self._finish_stop()

    def _stop(self, number: int) -> None:
        if self._final is not None:
            self._channel.send_reply(number, self._final)
            return
        self._stop_ids.append(number)
        if len(self._stop_ids) > 1:
            return
        for flow in self._flows:
            flow.note_end()
            if self._started_ns:
                flow.stop()
            else:
                flow.close()
        self._await_flows()

    def _await_flows(self) -> None:
        """Every flow ends its stop by itself within its own time limit; look until all have."""
        if not self._finish_stop():
            self._loop.at(now_ns() + NS_PER_S // 100, self._await_flows, _raise)

    def _finish_stop(self) -> bool:
        if not all(flow.done for flow in self._flows):
            return False
        if self._final is None:
            try:
                for flow in self._flows:
                    self._write_records(flow)
            except ProbeError as error:
                while self._stop_ids:
                    self._channel.send_error(self._stop_ids.pop(0), str(error))
                return True
            self._final = {
                "flows": [flow.report() for flow in self._flows],
                "kernel": kernel_retries(),
                "cpu_ns": time.process_time_ns() - self._cpu_start_ns if self._started_ns else 0,
                "wall_ns": now_ns() - self._started_ns if self._started_ns else 0,
            }
            if self._status is not None:
                self._status.close()
        while self._stop_ids:
            self._channel.send_reply(self._stop_ids.pop(0), self._final)
        return True

    def _write_records(self, flow: Flow) -> None:
        try:
            flow.records.save(self._directory / f"{flow.spec.name}.npy")
            if isinstance(flow, TcpFlow | LibraryFlow):
                flow.samples.save(self._directory / f"{flow.spec.name}{SAMPLES_SUFFIX}")
        except OSError as error:
            raise ProbeError(f"flow {flow.spec.name}: its records could not be written: {error}") from error


def _raise(error: Exception) -> None:
    raise error


def _settle_memory() -> None:
    """No collection pauses while probes run: what exists is frozen, and flows make no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _settle_process() -> None:
    """Little work, but on time: exact timers and, where allowed, a better priority than what loads the machine."""
    set_timer_slack_ns(1)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """The agent process."""
    parser = argparse.ArgumentParser(prog="bench.probe.client", description="Client agent of a run.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    _settle_process()
    channel = Channel.from_fd(options.channel_fd, "runner")
    try:
        ClientAgent(channel, options.directory, options.events).run()
    finally:
        channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
