"""The delay line against the same link without a delay: what it adds to a round trip, and how fast it is (as root).

Two namespaces and one unshaped link, built twice side by side: a veth pair (no delay), and the delay line at 1 ms each
way. Round trips by our own UDP echo, the two links in turn; throughput by iperf3, in turn too, medians of all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.host.channel import Channel
from bench.host.commands import run, spawn, spawn_child
from bench.host.sandbox import call_in_sandbox
from bench.link.links import End, LinkFactory
from bench.scenario import LinkSpec

DELAY_NS = NS_PER_MS
ROUNDS = 5
ECHOES = 300
ECHO_INTERVAL_NS = 2 * NS_PER_MS
SPECS = {"plain": {"bandwidth": "unlimited"}, "delay": {"bandwidth": "unlimited", "delay": "1ms"}}


class Pair:
    """Two namespaces joined by a link of *spec*, with an echo and an iperf3 server in the second."""

    def __init__(self, stack: ExitStack, name: str, spec: LinkSpec, directory: Path) -> None:
        self.factory = LinkFactory(lambda _first, _second: spec, log=directory / f"{name}.line.log")
        stack.callback(self.factory.stop)
        self.pids = [_namespace(stack, directory / f"{name}.{end}.log") for end in "ab"]
        ends = [End(end, f"{end}-eth0", pid) for end, pid in zip("ab", self.pids, strict=True)]
        self.factory.create(*ends)
        for number, end in enumerate(ends, 1):
            for argv in (
                ["ip", "address", "add", f"10.78.0.{number}/24", "dev", end.interface],
                ["ip", "link", "set", end.interface, "up"],
            ):
                run(argv, deadline=Deadline(5 * NS_PER_S), netns_pid=end.pid)
        self.factory.apply_all()
        self._client = self._child(stack, self.pids[0], directory / f"{name}.echo.log")
        server = self._child(stack, self.pids[1], directory / f"{name}.echoed.log")
        self._port = server.call("listen", {"address": "10.78.0.2"}, deadline=Deadline(5 * NS_PER_S))["port"]
        iperf = spawn(["iperf3", "-s"], netns_pid=self.pids[1], log=directory / f"{name}.iperf3.log")
        stack.callback(iperf.stop)
        listening = ["ss", "-Hltn", "sport", "=", ":5201"]
        wait_until(
            lambda: bool(run(listening, deadline=Deadline(5 * NS_PER_S), netns_pid=self.pids[1]).stdout.strip()),
            Deadline(10 * NS_PER_S),
            "iperf3 listens",
            interval_ns=20 * NS_PER_MS,
        )

    @staticmethod
    def _child(stack: ExitStack, pid: int, log: Path) -> Channel:
        process, channel = spawn_child("bench.link.burst", peer="echo", netns_pid=pid, log=log)
        stack.callback(process.stop)
        stack.callback(channel.close)
        return channel

    def round_trips_ns(self) -> list[int]:
        args = {
            "address": "10.78.0.2",
            "port": self._port,
            "count": ECHOES,
            "interval_ns": ECHO_INTERVAL_NS,
            "timeout_ns": NS_PER_S,
        }
        times: list[int] = self._client.call("echo", args, deadline=Deadline(30 * NS_PER_S))["round_trips_ns"]
        return times

    def throughput_bps(self) -> float:
        argv = ["iperf3", "-J", "-c", "10.78.0.2", "-t", "2", "-O", "1"]
        text = run(argv, deadline=Deadline(30 * NS_PER_S), netns_pid=self.pids[0]).stdout
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"])


def _namespace(stack: ExitStack, log: Path) -> int:
    process = spawn(["unshare", "--net", "sleep", "infinity"], log=log)
    stack.callback(process.stop)
    home = Path("/proc/self/ns/net").readlink()
    namespace = Path(f"/proc/{process.pid}/ns/net")
    wait_until(lambda: namespace.readlink() != home, Deadline(5 * NS_PER_S), "a namespace")
    return process.pid


def measure() -> dict[str, Any]:
    """Both links in turn. Runs in a sandbox."""
    trips: dict[str, list[int]] = {name: [] for name in SPECS}
    rates: dict[str, list[float]] = {name: [] for name in SPECS}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-delay-")))
        pairs = {name: Pair(stack, name, LinkSpec.model_validate(spec), directory) for name, spec in SPECS.items()}
        for _ in range(ROUNDS):
            for name, pair in pairs.items():
                trips[name] += pair.round_trips_ns()
                rates[name].append(pair.throughput_bps())
        line = pairs["delay"].factory.line_stats()
    return {"trips": trips, "rates": rates, "line": line}


def main() -> int:
    """Print the rows."""
    try:
        got = call_in_sandbox(measure)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    plain, delayed = (median(got["trips"][name]) / 1e6 for name in SPECS)
    asked = 2 * DELAY_NS / 1e6
    fast, slow = (median(got["rates"][name]) / 1e9 for name in SPECS)
    dropped = sum(item[key]["dropped_overflow"] for item in got["line"] for key in ("forward", "backward"))
    rows: list[dict[str, Any]] = [
        {
            "name": "delay line: round trip beyond the asked delay, median",
            "value": round(delayed - asked, 4),
            "unit": "ms",
            "reference": round(plain, 4),  # the same echo over a veth pair
            "ratio": round((delayed - asked) / plain, 3),
            "goal": "value < 0.3",
        },
        {
            "name": "delay line: throughput of one link at 1 ms",
            "value": round(slow, 2),
            "unit": "Gbit/s",
            "reference": round(fast, 2),  # a veth pair
            "ratio": round(slow / fast, 3),
            "goal": "value >= 5",
        },
        {
            "name": "delay line: frames dropped by itself",
            "value": dropped,
            "unit": "frames",
            "reference": None,
            "ratio": None,
            "goal": "value <= 0",
        },
    ]
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
