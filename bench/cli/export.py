"""``bench export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.errors import ScenarioError


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="A directory that `bench run` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the tables go; default DIRECTORY/export."),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="csv|parquet", help="What kind of tables.")] = "csv",
) -> None:
    """Write a run's events, requests and rounds as CSV or Parquet, whole."""
    from bench.export import FORMATS  # noqa: PLC0415 - takes a while to load
    from bench.export import export as write  # noqa: PLC0415
    from bench.recording import find_recordings  # noqa: PLC0415

    if form not in FORMATS:
        raise ScenarioError("--format", "", form, " or ".join(FORMATS))
    recordings = find_recordings([directory])
    for recording in recordings:
        target = output or directory / "export"
        if len(recordings) > 1:
            target = target / recording.label
        for path, rows in write(recording, target, form):
            typer.echo(f"{path}: {rows:,} rows")
