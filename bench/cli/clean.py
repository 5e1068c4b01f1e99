"""``bench clean``."""

from __future__ import annotations

import typer

from bench.cli.app import app


@app.command()
def clean() -> None:
    """Remove what dead runs left behind, by their ledgers, and nothing else."""
    from bench.clean import clean as remove  # noqa: PLC0415

    report = remove()
    typer.echo(report.text())
    raise typer.Exit(0 if report.ok else 1)
