"""Run every benchmark and print one table: ``make benchmark``, or ``python benchmarks/run.py [NAME ...]``.

A benchmark is a file beside this one that prints JSON lines with name, value, unit, reference, ratio and goal;
``ratio`` is value / reference measured in the same run, ``goal`` a text such as ``"ratio >= 0.9"`` or ``"value < 10"``.
Everything is also written to ``benchmarks.json``. The exit code is 1 when a benchmark failed to run; a goal that was
missed is shown and is no failure: these machines are noisy.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
DEADLINE_S = 600
MAX_LINE_BYTES = 1 << 16
_OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def reached(row: dict[str, Any]) -> bool | None:
    """Whether the row's goal holds; None without a goal."""
    goal = str(row.get("goal") or "").split()
    if len(goal) != 3 or goal[0] not in ("value", "ratio") or goal[1] not in _OPERATORS:
        return None
    measured = row.get(goal[0])
    return None if measured is None else bool(_OPERATORS[goal[1]](float(measured), float(goal[2])))


def run_benchmark(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows that a benchmark printed, and its problem if it had one."""
    command = [sys.executable, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=HERE.parent)
    except subprocess.TimeoutExpired:
        return [], f"no end within {DEADLINE_S} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{") and len(line) <= MAX_LINE_BYTES]
    rows = [{"benchmark": path.stem, **json.loads(line)} for line in lines]
    problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
    return rows, problem


def _number(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(wanted: list[str]) -> int:
    """Run the *wanted* benchmarks, all when none is named; returns the exit code."""
    paths = [path for path in sorted(HERE.glob("*.py")) if path.stem != "run" and not path.stem.startswith("_")]
    if unknown := set(wanted) - {path.stem for path in paths}:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in paths)}")
        return 2
    console = Console()
    table = Table(title="benchmarks", title_justify="left")
    for heading in ("benchmark", "name", "value", "unit", "reference", "ratio", "goal", ""):
        table.add_column(heading, overflow="fold")
    rows: list[dict[str, Any]] = []
    failed = False
    for path in paths:
        if wanted and path.stem not in wanted:
            continue
        console.print(f"running {path.stem} ...", highlight=False)
        found, problem = run_benchmark(path)
        rows += found
        for row in found:
            verdict = {True: "reached", False: "missed", None: ""}[reached(row)]
            cells = [_number(row.get(key)) for key in ("value", "unit", "reference", "ratio", "goal")]
            table.add_row(path.stem, str(row.get("name")), *cells, verdict)
        if problem:
            failed = True
            table.add_row(path.stem, problem, "", "", "", "", "", "FAILED")
    console.print(table)
    (HERE.parent / "benchmarks.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
