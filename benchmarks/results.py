"""What people wait for when they work with results: reports, comparisons, a sweep's own cost. Needs no root.

The runs are made up (tests/unit/report), but as large as named. The page is opened in Chromium where there is one.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "unit" / "report"), str(ROOT / "tests" / "integration"), str(ROOT)]

from browser import CHROMIUM, browser  # noqa: E402
from made_up import MS, migration  # noqa: E402
from made_up_run import write_run  # noqa: E402

from bench.sweep.work import command  # noqa: E402

BENCH = Path(sys.executable).with_name("bench")


def timed(*arguments: object) -> float:
    """Seconds from command to prompt."""
    began = time.monotonic()
    subprocess.run([BENCH, *map(str, arguments)], check=False, capture_output=True, timeout=300)
    return time.monotonic() - began


def row(name: str, value: float, limit: float) -> None:
    """Print a row."""
    shown = {"name": name, "value": value, "unit": "s", "reference": limit, "ratio": value / limit}
    print(json.dumps({**shown, "goal": "ratio < 1"}), flush=True)


async def opened(page: Path, directory: Path) -> float:
    """Seconds until the page is there and the figures in its first window are drawn, by the browser's own clock."""
    async with browser(directory) as found:
        await found.call("Page.enable")
        await found.call("Runtime.enable")
        await found.call(
            "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
        )
        await found.call("Page.navigate", url=page.as_uri())
        drawn = (
            "new Promise(done => { const look = () => document.querySelector('#plot-timeline .main-svg .trace')"
            " ? done(performance.now() / 1000) : requestAnimationFrame(look); look(); })"
        )
        return float(await found.evaluate(drawn))


def main() -> int:
    """Print the rows."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        run = write_run(here / "normal")
        timed("report", run, "-o", here / "warm.html")
        row("report of a normal run", timed("report", run, "-o", here / "normal.html"), 2)
        for side in ("a", "b"):
            for number in range(100):
                directory = here / side / f"p.r{number}"
                write_run(directory, span_ms=100, migrations=[migration(downtime_ns=(20 * MS) + number * 10_000)])
        row("compare 2 x 100 runs", timed("compare", here / "a", here / "b"), 2)
        large = write_run(here / "large", span_ms=600_000, every_us=2_000)
        page = here / "large.html"
        row("report of a million requests", timed("report", large, "-o", page), 10)
        if CHROMIUM is not None:
            row("a million requests open", asyncio.run(opened(page, here)), 3)
        # A sweep's own cost: the process that it starts for a run, up to where the run itself would begin.
        words = command(here / "nothing.toml", [], here / "none")
        began = time.monotonic()
        subprocess.run(words, check=False, capture_output=True)
        row("a sweep's own cost of a run", time.monotonic() - began, 1)
        shutil.rmtree(here / "large")
    return 0


if __name__ == "__main__":
    sys.exit(main())
