"""Real flows through a real bridge whose guest port goes dark for 300 ms: every kind measures it, and can explain it.

Everything happens in a sandbox of namespaces; what was seen there is written to a file and judged outside. How long the
blackout really was is taken from the clock around it, so a busy machine makes it longer and not the test wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import PcapNgReader

from bench.analysis.budget import cut_points, outage_budget
from bench.analysis.flows import Window, analyse_flow
from bench.analysis.through import find_through, flow_path, guest_port
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns, wait_until
from bench.host.commands import in_netns, python_environment, run
from bench.host.sandbox import run_in_sandbox
from bench.probe.capture import CapturePort, Captures
from bench.probe.clients import ClientAgents, FlowReport
from bench.probe.frames import FrameWatcher
from bench.probe.records import load_records
from bench.timeline import Event, Timeline

pytestmark = [pytest.mark.root, pytest.mark.alone]

CLIENT, GUEST = "10.0.0.9", "10.0.1.1"
MAC = "52:54:00:00:00:01"
BLACKOUT_NS = 300 * NS_PER_MS
RATE = 20_000_000
FLOWS: list[dict[str, Any]] = [
    {"name": "udp-echo", "kind": "udp-echo", "interval_ns": NS_PER_MS},
    {"name": "tcp-request", "kind": "tcp-request"},
    {"name": "tcp-large", "kind": "tcp-request", "size": 65536},
    {"name": "tcp-download", "kind": "tcp-download", "rate_bps": RATE},
    {"name": "tcp-chargen", "kind": "tcp-download"},
    {"name": "tcp-upload", "kind": "tcp-upload", "rate_bps": RATE},
]


def ip(*words: str) -> None:
    run(["ip", *words], deadline=Deadline(10 * NS_PER_S))


@contextmanager
def process(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(argv, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def add_host(stack: ExitStack, name: str, address: str, mac: str) -> int:
    """A network namespace behind port ``p-<name>`` of the bridge; returns the pid that holds it."""
    holder = stack.enter_context(process(["unshare", "--net", "sleep", "600"]))
    mine, its = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
    wait_until(lambda: its.readlink() != mine.readlink(), Deadline(10 * NS_PER_S), what=f"namespace of {name}")
    ip("link", "add", f"p-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid), "address", mac)
    ip("link", "set", f"p-{name}", "master", "sw0", "up")
    for words in (["addr", "add", f"{address}/16", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        run(["ip", *words], deadline=Deadline(10 * NS_PER_S), netns_pid=holder.pid)
    return holder.pid


def add_server(stack: ExitStack, guest_pid: int) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("probe_server.py")
    server = stack.enter_context(
        process(
            in_netns([sys.executable, str(script), GUEST], guest_pid),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **python_environment()},
        )
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return server


def poll_for(agents: ClientAgents, duration_ns: int) -> None:
    """Let the flows run; what the test needs is their running for a while, so here time itself is the condition."""
    deadline = Deadline(duration_ns)
    while not deadline.expired:
        agents.poll(lambda _event: None, deadline.remaining_ns)


def set_port(state: str) -> tuple[int, int]:
    """Block (``disabled``) or open (``forwarding``) the guest's port; returns the times before and after."""
    before = now_ns()
    run(["bridge", "link", "set", "dev", "p-g", "state", state], deadline=Deadline(10 * NS_PER_S))
    return before, now_ns()


def as_migration(cut: tuple[int, int], healed: tuple[int, int]) -> Timeline:
    """The blackout told as a migration: all stages but the network's happen at its two ends."""
    source = [
        (cut[0], "guest.h1", "pause_begin"),
        (cut[1], "guest.h1", "vcpus_stopped"),
        (cut[1], "guest.h1", "net_cut"),
    ]
    engine = [(cut[1], "engine.destination", name) for name in ("final_pages_received", "device_state_loaded")]
    last = [(healed[0], "engine.destination", "storage_acquired"), (healed[0], "guest.h2", "resumed")]
    wired = [(healed[1], "guest.h2", "port_wired"), (healed[1], "guest.h2", "announce_sent")]
    return Timeline(Event(*event) for event in (*source, *engine, *last, *wired))


def judge(report: FlowReport, frames: Any, timeline: Timeline, window: Window, relearned_ns: int) -> dict[str, Any]:
    """What the analysis makes of one flow."""
    spec = next(flow for flow in FLOWS if flow["name"] == report.name)
    analysis = analyse_flow(report.kind, load_records(report.records), window, report.report["ended_ns"])
    path = flow_path(
        frames.interfaces,
        client=(CLIENT, report.report["local_port"]),
        guest=(GUEST, guest_port(report.kind, spec.get("rate_bps", 0)) or 0),
        client_interface="p-c",
        new_interface="p-g",
        old_interface="none",
    )
    cuts = cut_points(timeline, window, relearned_ns)
    through = find_through(report.kind, frames.records, path, cuts.port_wired_ns, analysis.outage)
    budget = outage_budget(analysis.outage, cuts, through)
    return {
        "report": dict(report.report),
        "counts": asdict(analysis.counts),
        "outage": analysis.outage and asdict(analysis.outage),
        "typical_gap_ns": analysis.typical_gap_ns,
        "longest_gap_ns": analysis.longest_gap_ns,
        "through": asdict(through),
        "budget": {"parts": dict(budget.parts), "sum_ns": budget.sum_ns, "ok": budget.ok, "note": budget.note},
    }


def scenario(directory: Path) -> int:
    for name in ("events", "logs", "captures"):
        (directory / name).mkdir()
    with ExitStack() as stack:
        ip("link", "add", "sw0", "type", "bridge")
        ip("link", "set", "sw0", "up")
        client_pid = add_host(stack, "c", CLIENT, "52:54:00:00:00:09")
        guest_pid = add_host(stack, "g", GUEST, MAC)
        server = add_server(stack, guest_pid)
        watcher = FrameWatcher(directory / "frames.pcap", [GUEST], [MAC])
        stack.callback(watcher.close)
        watcher.start()
        captures = Captures(directory / "captures")
        stack.callback(captures.stop)
        captures.start(CapturePort("g1@h1", "eth0", guest_pid))
        agents = stack.enter_context(ClientAgents(directory / "records", directory / "events", directory / "logs"))
        agents.spawn("c1", client_pid)
        agents.configure("c1", GUEST, FLOWS)
        started_ns = now_ns()
        agents.start()
        poll_for(agents, NS_PER_S)
        cut = set_port("0")
        time.sleep(BLACKOUT_NS / NS_PER_S)  # the blackout itself
        healed = set_port("3")
        poll_for(agents, 2 * NS_PER_S)
        reports = agents.stop()
        frames = watcher.stop()
        window = Window(started_ns, now_ns(), cut[0])
        timeline = as_migration(cut, healed)
        result = {
            "cut": cut,
            "healed": healed,
            "flows": {report.name: judge(report, frames, timeline, window, healed[1]) for report in reports},
            "frames": len(frames.records),
            "interfaces": frames.interfaces,
            "reasons": [*frames.reasons, *captures.reasons],
            "cpu_ns": agents.cpu_ns,
            "captured": [path.name for path in captures.stop()],
            "server_running": server.poll() is None,
        }
        (directory / "result.json").write_text(json.dumps(result))
    return 0


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("probe")
    assert run_in_sandbox(lambda: scenario(directory)) == 0
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    result["directory"] = directory
    print(json.dumps({key: value for key, value in result.items() if key != "directory"}, indent=1))
    return result


@pytest.mark.parametrize("name", [flow["name"] for flow in FLOWS])
def test_every_kind_measures_the_blackout(seen: dict[str, Any], name: str) -> None:
    flow = seen["flows"][name]
    (down_ns, dark_ns), (light_ns, up_ns) = seen["cut"], seen["healed"]
    outage = flow["outage"]
    assert outage["recovered"]
    assert outage["end_ns"] >= light_ns, "nothing passes while the port is dark"
    assert flow["longest_gap_ns"] >= light_ns - dark_ns
    # the outage begins with what was asked, or seen, last: at most a few of the flow's own intervals away
    slack_ns = 100 * NS_PER_MS
    assert down_ns - slack_ns <= outage["start_ns"] <= dark_ns + slack_ns
    if name == "udp-echo":
        assert outage["end_ns"] <= up_ns + slack_ns, "the next probe is at most an interval away"


@pytest.mark.parametrize("name", [flow["name"] for flow in FLOWS])
def test_every_outage_is_explained(seen: dict[str, Any], name: str) -> None:
    flow = seen["flows"][name]
    outage, budget, through = flow["outage"], flow["budget"], flow["through"]
    assert budget["ok"], budget["note"]
    assert sum(budget["parts"].values()) == budget["sum_ns"] == outage["end_ns"] - outage["start_ns"]
    assert through["left_ns"] <= through["passed_ns"] <= outage["end_ns"]
    assert through["passed_ns"] >= seen["healed"][0], "what got through passed the port after it was opened"
    assert budget["parts"]["storage"] > 0, "the blackout itself"


@pytest.mark.parametrize("name", [flow["name"] for flow in FLOWS])
def test_nothing_was_broken(seen: dict[str, Any], name: str) -> None:
    flow = seen["flows"][name]
    report = flow["report"]
    assert (report["alive"], report["error"]) == (True, None)
    assert report["corrupted"] == report["duplicated"] == 0
    assert {key: report[key] for key in flow["counts"]} == flow["counts"]
    assert report["requests"] > 10
    if name == "udp-echo":
        assert report["lost"] > 10
        assert report["stray"] == 0
    else:
        assert report["lost"] == 0, "TCP loses nothing"
    if name == "tcp-upload":
        assert report["retransmits"] > 0


def test_frames_and_captures(seen: dict[str, Any]) -> None:
    assert seen["reasons"] == []
    assert {"p-c", "p-g"} <= set(seen["interfaces"])
    assert seen["frames"] > 1000
    assert seen["captured"] == ["g1@h1.pcapng"]
    assert seen["server_running"]
    with PcapNgReader(str(seen["directory"] / "captures/g1@h1.pcapng")) as reader:
        packets = [packet for packet, _number in zip(reader, range(100), strict=False)]
    assert len(packets) == 100
    assert {packet.sniffed_on for packet in packets} == {"g1@h1"}
