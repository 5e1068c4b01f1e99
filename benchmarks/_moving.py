"""A testbed with one guest that is moved, idle unless told otherwise: what the engine benchmarks share."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.guests import BRIDGE
from bench.host.commands import python_environment, run, spawn
from bench.host.sandbox import run_in_sandbox
from bench.migration.driver import Migration, Plan
from bench.plan import make_plan
from bench.scenario import parse_scenario
from bench.testbed import Hypervisor, Testbed, raised
from bench.timeline import Event, Timeline

MIGRATION = {
    "downtime_limit_ns": 300 * NS_PER_MS,
    "max_rounds": 30,
    "max_time_ns": 600 * NS_PER_S,
    "max_bandwidth_bps": 0,
    "on_no_convergence": "force",
    "verify": "background",
    "mode": "precopy",
}
TICKS: Final = os.sysconf("SC_CLK_TCK")
GUEST = "g1"
RANDOM = {"zero": 0.0, "text": 0.0, "random": 1.0}
IDLE = {"pattern": "idle"}


def report(name: str, value: float, unit: str, reference: float | None, goal: str | None = None) -> None:
    """One JSON line; see run.py."""
    ratio = None if reference is None else value / reference
    row = {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "goal": goal}
    print(json.dumps(row), flush=True)


def cpu_s(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def switch_cpu_s() -> float:
    """What the Open vSwitch daemons of this sandbox have used so far."""
    used = 0.0
    for name in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            if name.read_text(encoding="ascii", errors="replace").strip() == "ovs-vswitchd":
                used += cpu_s(int(name.parent.name))
    return used


class Moving:
    """A guest that starts on h1, its memory all random, and what is done with it."""

    def __init__(self, testbed: Testbed, directory: Path) -> None:
        self.testbed = testbed
        self.directory = directory
        self._moves = 0

    def iperf3_bps(self, seconds: int) -> float:
        """Received by iperf3 on the path of the migration, from where the guest is to the other hypervisor."""
        here, there = self.ends()
        server = spawn(
            ["iperf3", "--server", "--one-off", "--forceflush"],
            netns_pid=there.pid,
            log=self.directory / "iperf3.log",
            env=python_environment(),
        )
        try:
            client = [
                "iperf3",
                "--client",
                there.address,
                "--time",
                str(seconds),
                "--json",
                "--connect-timeout",
                "5000",
            ]
            give_up = Deadline(10 * NS_PER_S)
            while True:
                done = run(client, netns_pid=here.pid, deadline=Deadline((seconds + 20) * NS_PER_S), check=False)
                received = json.loads(done.stdout or "{}").get("end", {}).get("sum_received")  # absent after an error
                if received:
                    return float(received["bits_per_second"])
                if give_up.expired:
                    raise RuntimeError(f"iperf3: {done.stdout[-300:]}")
                time.sleep(0.1)  # nothing says when the server listens
        finally:
            server.stop()

    def move(
        self,
        on_event: Callable[[Event, Migration], None] | None = None,
        settings: Mapping[str, Any] = MIGRATION,
    ) -> tuple[dict[str, Any], Timeline]:
        """Migrate to the other hypervisor. :returns: the outcome, and the source engine's events."""
        here, there = self.ends()
        guests = self.testbed.guests
        guest = guests[GUEST]
        self._moves += 1
        new_socket, new_events, new_log = guests.paths(GUEST, there.name)
        plan = Plan(
            source_pid=here.pid,
            destination_pid=there.pid,
            source_host=here.name,
            destination_host=there.name,
            guest=guests.configuration(GUEST, here.name),
            guest_socket=guest.socket_path,
            new_guest_socket=new_socket,
            new_guest_events=new_events,
            new_guest_log=new_log,
            bridge=BRIDGE,
            lease_path=guests.lease_path(GUEST),
            address=there.address,
            port=0,
            migration=settings,
            announce=guests.announcement(GUEST),
            events_directory=self.directory / "events",
            log_directory=self.directory / "logs",
            tag=str(self._moves),
        )
        with Migration(plan) as migration:
            migration.start()
            outcome = migration.wait(
                None if on_event is None else lambda event: on_event(event, migration), Deadline(300 * NS_PER_S)
            )
        compared = settings.get("verify", "background") != "off"
        if outcome["outcome"] != "completed" or (compared and not outcome["identical"]):
            raise RuntimeError(f"the migration did not succeed: {outcome}")
        guests.follow(GUEST, there.name, new_socket)
        return outcome, Timeline.read(self.directory / "events" / f"engine.source-{self._moves}.jsonl")

    def goodput_bps(self, settings: Mapping[str, Any] = MIGRATION) -> float:
        """Delivered bytes of a migration's first round, which sends all memory, by its time."""
        _outcome, timeline = self.move(settings=settings)
        first = timeline.select("round_end")[0].data
        delivered = first["bytes_sent"] - first["queued_bytes"]
        return delivered * 8 * NS_PER_S / (first["end_ns"] - first["start_ns"])

    def downtime_ns(self) -> int:
        """Of the last migration: from the vCPUs' stop at the source to their resume."""
        files = sorted((self.directory / "events").glob("guest.*.jsonl"))
        events = Timeline([event for file in files for event in Timeline.read(file)])
        return events.select("resumed")[-1].t_ns - events.select("vcpus_stopped")[-1].t_ns

    def ends(self) -> tuple[Hypervisor, Hypervisor]:
        """Where the guest is, and the other one."""
        here = self.testbed.guests[GUEST].host
        (there,) = (name for name in self.testbed.hypervisors if name != here)
        return self.testbed.hypervisors[here], self.testbed.hypervisors[there]


def with_moving_guest(
    bandwidth: str,
    memory: str,
    body: Callable[[Moving], None],
    *,
    content: Mapping[str, float] = RANDOM,
    workload: Mapping[str, Any] = IDLE,
    delay: str = "0ms",
    guest: Mapping[str, Any] | None = None,
    place: str = "/tmp",  # noqa: S108
) -> int:
    """Run *body* in a sandbox on a testbed whose links have *bandwidth* and *delay*; returns the exit code.

    :param content, workload: of the guest, as in a scenario; *guest*: what else it has there, such as disks.
    :param place: where files of the run lie, disk images among them.
    """
    scenario = parse_scenario(
        {
            "links": {"default": {"bandwidth": bandwidth, "delay": delay}},
            "calibration": {"enabled": False},
            "controller": {"app": "standalone"},
            "guest": {
                "memory": memory,
                "content": dict(content),
                "workload": dict(workload),
                **(guest or {}),
            },
            "clients": [],
        },
        "benchmark",
    )
    plan = make_plan(scenario, "benchmark")

    def inside() -> int:
        with tempfile.TemporaryDirectory(prefix="mb-", dir=place) as name:
            directory = Path(name)
            with raised(scenario, plan, directory) as testbed:
                settle = now_ns() + NS_PER_S  # the guest's announcements go out meanwhile
                while now_ns() < settle:
                    time.sleep(0.1)
                body(Moving(testbed, directory))
        return 0

    return run_in_sandbox(inside)
