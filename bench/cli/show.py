"""``bench show``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bench.cli.app import app
from bench.cli.common import exit_code
from bench.output import RESULT, SURVIVAL
from bench.series import read_series

if TYPE_CHECKING:
    from bench.result import RunResult


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A directory that a run, a sweep or a survival map wrote.")],
) -> None:
    """Print the summary of an earlier run, series or sweep, or a survival map."""
    from bench.report.terminal import render  # noqa: PLC0415
    from bench.result import RunResult  # noqa: PLC0415

    if (directory / "sweep.json").exists():
        raise typer.Exit(show_sweep(directory))
    if (directory / SURVIVAL).exists():
        from bench.report.survival import print_survival  # noqa: PLC0415
        from bench.survival.result import SurvivalResult  # noqa: PLC0415

        print_survival(SurvivalResult.read(directory), Console())
        raise typer.Exit
    runs = [] if (directory / RESULT).exists() else read_series(directory)
    if runs:
        show_series(runs, Console())
        raise typer.Exit(max(1 if result is None else exit_code(result) for _, result in runs))
    result = RunResult.read(directory)
    render(result, Console())
    raise typer.Exit(exit_code(result))


def show_sweep(directory: Path) -> int:
    """Print a sweep's points; returns the exit code."""
    from bench.recording import read_points  # noqa: PLC0415
    from bench.report.points import print_points  # noqa: PLC0415

    failed = sum(1 for _ in directory.glob("*/failed.json"))
    points = read_points(directory)
    print_points(points, failed, Console())
    return max([min(failed, 1), *(exit_code(run) for runs in points.values() for run in runs)])


def show_series(runs: Sequence[tuple[str, RunResult | None]], console: Console) -> None:
    """Print the results of a series side by side; nothing when there are none."""
    from bench.report.side_by_side import print_side_by_side  # noqa: PLC0415

    if runs:
        print_side_by_side(runs, console)
