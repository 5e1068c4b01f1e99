from __future__ import annotations

import io

from made_up import MS, migration, result
from rich.console import Console

from bench.analysis.comparison import compare_runs
from bench.report.comparison import print_comparison


def printed(width: int) -> str:
    a = result(migrations=[migration(downtime_ns=(20 + number) * MS) for number in range(6)])
    b = result(migrations=[migration(downtime_ns=(60 + number) * MS) for number in range(6)])
    console = Console(file=io.StringIO(), width=width)
    print_comparison(compare_runs([a], [b]), ("a", "b"), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_of_any_width_says_what_is_slower() -> None:
    for width in (60, 80, 200):
        text = printed(width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "slower" in text
        assert "the same in all: total" in text
    assert "+38 ms to +42 ms" in printed(200).replace("  ", " ") or "+3" in printed(200)
