"""``bench doctor``."""

from __future__ import annotations

import typer
from rich.console import Console

from bench.cli.app import app


@app.command()
def doctor() -> None:
    """Say what this machine can do, what will be used instead, and what to install."""
    from bench import doctor as examination  # noqa: PLC0415

    findings = examination.doctor()
    examination.render(findings, Console())
    raise typer.Exit(0 if examination.usable(findings) else 1)
