"""How long a network takes to come up and go down, against the number of its switches (as root).

A fat-tree with k = 4 (20 switches, 16 hosts) under the proactive app, all paths known; rows of 1 to 80 switches that
learn by themselves. Without calibration, which takes its own time, and without a guest. Last, with calibration: what a
switch of that fat-tree adds to a round trip, the delay line's share of links of 0.1 ms included.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.host.sandbox import call_in_sandbox
from bench.plan import make_plan
from bench.scenario import parse_scenario
from bench.testbed import Testbed

ROWS = (1, 5, 10, 20, 40, 80)
SMALL = {"memory": "16MiB", "store_memory": "2MiB"}


def times_s(topology: str, app: str) -> tuple[float, float]:
    """(up, down) of one network, in seconds."""
    raw = {"network": {"topology": topology}, "controller": {"app": app}, "guest": SMALL, "clients": []}
    scenario = parse_scenario({**raw, "calibration": {"enabled": False}}, "benchmark")
    plan = make_plan(scenario, "benchmark")

    def measure() -> Any:
        with tempfile.TemporaryDirectory(prefix="nb-") as directory:
            testbed = Testbed(scenario, plan, Path(directory), lambda _text: None)
            begin_ns = now_ns()
            try:
                testbed.raise_network()
                up_ns = now_ns()
            finally:
                testbed.close()
            return [up_ns - begin_ns, now_ns() - up_ns]

    up_ns, down_ns = call_in_sandbox(measure)
    return up_ns / NS_PER_S, down_ns / NS_PER_S


def added_ms(topology: str, app: str) -> list[float]:
    """By how much each path's median round trip is over what was asked for, for each switch on it."""
    link = {"delay": "100us", "bandwidth": "100Mbit"}
    raw = {"network": {"topology": topology}, "controller": {"app": app}, "guest": SMALL, "clients": []}
    scenario = parse_scenario({**raw, "links": {"default": link}}, "benchmark")
    plan = make_plan(scenario, "benchmark")

    def measure() -> Any:
        with tempfile.TemporaryDirectory(prefix="nb-") as directory:
            testbed = Testbed(scenario, plan, Path(directory), lambda _text: None)
            try:
                testbed.raise_network()
                return [link.measured["round_trip"] for link in testbed.links if "round_trip" in link.measured]
            finally:
                testbed.close()

    paths = {found["path"]: found for found in call_in_sandbox(measure)}
    return [
        (found["median_ns"] - found["asked_ns"]) / NS_PER_MS / (path.count("-") - 1) for path, found in paths.items()
    ]


def row(name: str, value: float, goal: str = "", unit: str = "s") -> None:
    """Print one JSON line."""
    found = {"name": name, "value": round(value, 3), "unit": unit, "reference": None, "ratio": None}
    print(json.dumps({**found, "goal": goal or None}), flush=True)


def main() -> int:
    """All of them."""
    up_s, down_s = times_s("fat-tree,k=4", "proactive")
    row("fat-tree k=4, up", up_s, "value < 15")
    row("fat-tree k=4, down", down_s, "value < 5")
    for switches in ROWS:
        up_s, down_s = times_s(f"linear,switches={switches}", "standalone")
        row(f"{switches} switches in a row, up", up_s)
        row(f"{switches} switches in a row, down", down_s)
    added = added_ms("fat-tree,k=4", "proactive")
    row("fat-tree k=4, a switch adds to a round trip, median of paths", median(added), "value < 1", "ms")
    row("fat-tree k=4, a switch adds to a round trip, worst path", max(added), "value < 1", "ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
