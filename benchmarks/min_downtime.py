"""Downtime with the limit ``min`` and three TCP connections: the reference guest (1 GiB, hot set of 64 MiB written at
40 MiB/s) over 1 Gbit/s by `bench run`, as a user would call it. The median of some migrations, there and back.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_MS = 20.0
REPEATS = 3
CONNECTIONS = 3
SCENARIO = """
title = "limit min, three TCP connections"
[links.default]
bandwidth = "1Gbit"
[calibration]
enabled = false
[guest]
memory = "1024MiB"
[guest.workload]
pattern = "hotset"
rate = "40MiB/s"
working_set = "64MiB"
[migration]
downtime_limit = "min"
[[clients]]
kind = "tcp-request"
host = "c1"
[[clients]]
kind = "tcp-download"
rate = "20Mbit"
host = "c1"
[[clients]]
kind = "tcp-upload"
rate = "20Mbit"
host = "c1"
"""


def main() -> int:
    """Print the rows."""
    program = Path(sys.executable).parent / "bench"
    with tempfile.TemporaryDirectory() as directory:
        scenario, output = Path(directory) / "min.toml", Path(directory) / "run"
        scenario.write_text(SCENARIO, encoding="utf-8")
        argv = [program, "run", str(scenario), "--repeat", str(REPEATS), "-o", str(output)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=400)
        if done.returncode:
            print((done.stderr or done.stdout)[-2000:], file=sys.stderr)
            return 1
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    if any(item["connections"] != CONNECTIONS for item in result["migrations"]):
        print(f"not {CONNECTIONS} connections moved: {result['migrations']}"[:2000], file=sys.stderr)
        return 1
    value = statistics.median(item["downtime_ns"] for item in result["migrations"]) / 1e6
    row = {"name": "limit min, hot set, 3 TCP connections: downtime", "value": value, "unit": "ms"}
    print(json.dumps({**row, "reference": LIMIT_MS, "ratio": value / LIMIT_MS, "goal": "ratio < 1"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
