from __future__ import annotations

import io

from made_up import MS, migration, result
from rich.console import Console

from bench.report.points import print_points


def printed(width: int) -> str:
    runs = [result(migrations=[migration(downtime_ns=ms * MS)]) for ms in (10, 30, 20)]
    cancelled = result(outcome="cancelled", migrations=[migration(outcome="cancelled", downtime_ns=None)])
    console = Console(file=io.StringIO(), width=width)
    print_points({"memory=16MiB": runs, "memory=\x1b[31m": [cancelled]}, 2, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_point_is_a_row_of_medians() -> None:
    text = printed(100)
    row = next(line for line in text.splitlines() if line.startswith("memory=16MiB"))
    assert row.split()[1:5] == ["3", "3", "20", "ms"]
    assert "2 runs left no result" in text
    assert "\x1b" not in text
    assert "20 ms (10 ms to 30 ms)" in printed(200)
    assert max(len(line) for line in printed(60).splitlines()) <= 60
