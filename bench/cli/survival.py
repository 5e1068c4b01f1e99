"""``bench survival``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.cli.app import app
from bench.cli.common import STOPPED, conclude, find_scenario, notices_raise
from bench.errors import ScenarioError
from bench.output import OutputDirectory
from bench.series import load_scenarios


class By(str, Enum):
    """How outages are made."""

    BLACKOUT = "blackout"
    MIGRATION = "migration"


@app.command()
def survival(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a shipped one such as `survival`.")
    ] = "survival",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help='Override a key, such as survival.outages=["1s", "3s"].'),
    ] = None,
    by: Annotated[
        By, typer.Option("--by", help="Programmed blackouts, or real migrations whose stop is stretched.")
    ] = By.BLACKOUT,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the map goes; default runs/<time>.")
    ] = None,
) -> None:
    """Map which outages which TCP connections survive, how long they stall, and what theory says of it."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.report.progress import Progress  # noqa: PLC0415
    from bench.report.survival import print_survival  # noqa: PLC0415
    from bench.survival.cells import cells  # noqa: PLC0415
    from bench.survival.lab import Lab  # noqa: PLC0415
    from bench.survival.moves import MoveLab  # noqa: PLC0415

    require_root()
    path = find_scenario(scenario)
    one = load_scenarios(path, list(settings or []))[0]  # how a guest would move does not matter
    plan = make_plan(one, str(path))
    if not plan.clients:
        raise ScenarioError(str(path), "network.topology", one.network.topology, "a topology with a client host")
    cells(one.survival, str(path))
    console = Console()
    directory = OutputDirectory.choose(output, path)

    def inside() -> int:
        places = run_directory.path, directory.path, progress.on_event
        lab = (
            Lab(one, plan, *places)
            if by is By.BLACKOUT
            else MoveLab(one, lambda scenario: make_plan(scenario, str(path)), *places)
        )
        with progress:
            result = lab.run()
        print_survival(result, console)
        return 0

    try:
        with notices_raise(), RunDirectory.create() as run_directory:
            progress = Progress(console)
            code = run_in_sandbox(inside)
    finally:
        conclude(directory, console)
    if code > STOPPED:
        print("bench: the laboratory was stopped", file=sys.stderr)  # noqa: T201
    raise typer.Exit(code)
