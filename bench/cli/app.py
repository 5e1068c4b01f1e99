"""The application that the commands register with, and the entry point."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Final

import typer

import bench
from bench.errors import BenchError, of_full_disk

# In the order of `bench --help`.
COMMANDS: Final = (
    "run",
    "show",
    "report",
    "export",
    "compare",
    "sweep",
    "remote",
    "dirty_rate",
    "record_trace",
    "survival",
    "topo",
    "shell",
    "variables",
    "doctor",
    "clean",
)

app = typer.Typer(
    name="bench",
    help="Where does every millisecond of an outage go when a virtual machine moves?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bench {bench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where does every millisecond of an outage go when a virtual machine moves?"""


def main() -> None:
    """Entry point of the console script."""
    for name in COMMANDS:
        importlib.import_module(f"bench.cli.{name}")
    try:
        app(standalone_mode=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:
        full = of_full_disk(error)
        if full is None:
            raise
        print(f"bench: {full}", file=sys.stderr)  # noqa: T201
        sys.exit(full.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
