"""Relearning on one switch under the learning app: Ryu beside os-ken, and what the measuring itself adds (as root).

An address announces itself (RARP) at one port and the other in turn; measured is from the frame's leaving its sender to
the barrier's answer. With the probes (frames at the ports, flow monitor) and without, in blocks that take turns, so
that a machine that slows down slows both.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import topologies
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.host.controller import ControllerProcess
from bench.host.kernel import entered_netns
from bench.host.ovs import OpenVSwitch
from bench.host.sandbox import call_in_sandbox
from bench.migration.announce import frames
from bench.probe.frames import FrameWatcher
from bench.probe.switches import SwitchWatch
from bench.timeline import Timeline

MAC = "52:54:00:00:00:01"
ADDRESS = "10.0.1.1"
BLOCKS, MOVES = 4, 24  # an even number: a block ends at the port that it did not begin at
APART_NS = 80 * NS_PER_MS  # more than the app's guard against late announcements


def port_of(host: Any) -> socket.socket:
    """A socket that sends frames from a host."""
    with entered_netns(host.pid):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        sock.bind((str(host.defaultIntf()), 0))
    return sock


def block(ports: list[socket.socket], events: Path, count: int) -> list[int]:
    """The times of *count* moves in ns. Nothing is read meanwhile: that would cost the controller its processor."""
    frame = bytes.fromhex(frames(["rarp"], MAC, ADDRESS)[0]["hex"])
    sent: list[int] = []
    for number in range(count):
        sent.append(now_ns())
        ports[number % 2].send(frame)
        time.sleep(APART_NS / NS_PER_S)  # the moves' schedule
    answers = [event.t_ns for event in Timeline.read(events).select("barrier_answered") if event.data["mac"] == MAC]
    first = (next((at_ns for at_ns in answers if at_ns >= begin_ns), None) for begin_ns in sent)
    return [at_ns - begin_ns for at_ns, begin_ns in zip(first, sent, strict=True) if at_ns is not None]


@contextlib.contextmanager
def probes(ovs: OpenVSwitch, directory: Path, net: Any, wanted: bool) -> Any:
    """Frames at the ports and the flow monitor, if they are wanted, while the body runs."""
    if not wanted:
        yield
        return
    with contextlib.ExitStack() as stack:
        watcher = FrameWatcher(directory / f"{now_ns()}.pcap", [ADDRESS], [MAC])
        stack.callback(watcher.close)
        watcher.start()
        switches = SwitchWatch(directory / "switches.jsonl", directory / "switches.log")
        stack.callback(switches.stop)
        ports = {str(number): intf.name for intf, number in net["s1"].ports.items()}
        told = [{"switch": "s1", "env": ovs.env, "ports": ports}]
        switches.start([{"mac": MAC, "address": ADDRESS}], flows=told)
        yield


def measure(framework: str) -> dict[str, list[int]]:
    """The times with and without the probes."""
    from mininet.log import setLogLevel  # noqa: PLC0415
    from mininet.net import Mininet  # noqa: PLC0415

    setLogLevel("error")
    found: dict[str, list[int]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory(prefix="rb-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        controller = stack.enter_context(ControllerProcess(framework, "learning", directory / "run", 0))
        ovs = stack.enter_context(OpenVSwitch(directory / "ovs", "auto"))
        stack.enter_context(ovs.environment())
        switch = ovs.switch_class(controller.port)
        net = Mininet(topologies.load("single"), switch=switch, controller=None, autoSetMacs=True, build=False)
        stack.callback(net.stop)
        net.build()
        net.start()
        controller.wait_connected(1, Deadline(30 * NS_PER_S))
        ports = [port_of(net["h1"]), port_of(net["h2"])]
        for sock in ports:
            stack.callback(sock.close)
        block(ports, controller.events, 4)
        for _ in range(BLOCKS):
            for key in ("with", "without"):
                with probes(ovs, directory, net, key == "with"):
                    found[key] += block(ports, controller.events, MOVES)
    return found


def row(name: str, value: float, reference: float | None = None, goal: str | None = None) -> None:
    """Print one JSON line."""
    ratio = None if not reference else round(value / reference, 3)
    told = {"name": name, "value": round(value, 4), "unit": "ms", "reference": reference, "ratio": ratio, "goal": goal}
    print(json.dumps(told), flush=True)


def main() -> int:
    """Both frameworks."""
    medians = {}
    for framework in ("ryu", "os-ken"):
        found = call_in_sandbox(lambda framework=framework: measure(framework))
        alone, watched = (median(found[key]) / NS_PER_MS for key in ("without", "with"))
        medians[framework] = alone
        row(f"announcement to barrier, {framework}", alone, round(medians["ryu"], 4))
        row(f"what the probes add, {framework}", watched - alone, round(alone, 4), "value < 0.2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
