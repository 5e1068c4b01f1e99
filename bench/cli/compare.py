"""``bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.cli.app import app
from bench.errors import ResultError, ScenarioError


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run, a series or a sweep.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    figures: Annotated[
        list[str] | None,
        typer.Option("--figure", metavar="FIGURE", help="Only this figure, such as downtime or flows.udp-echo.outage."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.html", help="Write an HTML page as well.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of intervals and verdicts.")] = 0.95,
) -> None:
    """Say of each figure whether B is slower or faster than A, or that these repeats cannot tell.

    Exit code 1 when a figure of B is worse than that of A.
    """
    from bench.analysis.comparison import compare_runs, matching  # noqa: PLC0415
    from bench.recording import read_points  # noqa: PLC0415
    from bench.report.comparison import print_comparison  # noqa: PLC0415

    first, second = read_points(a), read_points(b)
    labels = matching(first, second)
    if not labels:
        raise ResultError(
            f"{a} and {b}: they have no point in common", "compare sweeps of the same points, or two runs"
        )
    try:
        comparisons = [
            compare_runs(first[label], second[label], figures or (), label=label, confidence=confidence)
            for label in labels
        ]
    except ValueError as error:
        raise ScenarioError("--figure", "", figures, str(error)) from None
    console = Console()
    for comparison in comparisons:
        print_comparison(comparison, (str(a), str(b)), console)
    if output is not None:
        from bench.cli.report import write_page  # noqa: PLC0415
        from bench.report.html.comparison import comparison_page  # noqa: PLC0415

        write_page(output, comparison_page(comparisons, (str(a), str(b))))
        console.print(f"page: {output}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(comparison.worse for comparison in comparisons) else 0)
