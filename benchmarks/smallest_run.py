"""From command to prompt: `bench run smallest` as a user would call it, against the limit of 10 s."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 10.0
RUNS = 3


def main() -> int:
    """Print one row: the median of some runs."""
    program = Path(sys.executable).parent / "bench"
    times = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as directory:
            begin = time.monotonic()
            subprocess.run([program, "run", "smallest", "-o", directory], check=True, capture_output=True, timeout=120)
            times.append(time.monotonic() - begin)
    value = statistics.median(times)
    row = {"name": "bench run smallest", "value": value, "unit": "s", "reference": LIMIT_S, "ratio": value / LIMIT_S}
    print(json.dumps({**row, "goal": "ratio < 1"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
