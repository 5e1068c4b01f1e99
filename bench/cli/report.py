"""``bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench.cli.app import app
from bench.errors import ResultError, ScenarioError

FORMATS: Final = ("html", "pdf", "svg", "png")


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, series or sweeps.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default report.html; of single figures a directory."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="html|pdf|svg|png", help="A page, or each figure as a file for a paper.")
    ] = "html",
) -> None:
    """Write one self-contained HTML page: timeline, outage budgets, relearning, rounds, throughput, environment."""
    from bench.recording import find_recordings  # noqa: PLC0415 - what a report needs takes a while to load

    if form not in FORMATS:
        raise ScenarioError("--format", "", form, ", ".join(FORMATS))
    recordings = find_recordings(directories)
    console = Console()
    if form == "html":
        from bench.report.html.report import report_page  # noqa: PLC0415

        target = output or Path("report.html")
        write_page(target, report_page(recordings, target.parent))
        console.print(f"report: {target}", soft_wrap=True, highlight=False)
        return
    from bench.report.paper import write_figures  # noqa: PLC0415

    for recording in recordings:
        target = output or Path("figures")
        place = target / recording.label if len(recordings) > 1 else target
        for path in write_figures(recording, place, form):
            console.print(f"figure: {path}", soft_wrap=True, highlight=False)


def write_page(target: Path, page: str) -> None:
    """Write an HTML page. :raises ResultError: it can not be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"{target}: {error.strerror or error}", "name another file with -o") from None
