"""The command line: ``bench run``, ``doctor``, ``clean``, ``show``. The one place where errors become exit codes.

========  =============================================================================
0         the guest moved (or the command did what it says)
1         the migration failed or was cancelled, or something broke during the run
2         bad input, or this machine lacks something: nothing was built
130, 143  stopped by Ctrl-C or SIGTERM, after tearing everything down
========  =============================================================================
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import bench
from bench.errors import BenchError, ScenarioError
from bench.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from bench.result import RunResult

REFERENCE = "scenarios/reference.toml"
MAX_REPEAT = 1000

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


def find_scenario(name: str) -> Path:
    """A scenario by path, or one of the shipped ones by name (``smallest``)."""
    path = Path(name)
    if path.exists() or path.suffix or os.sep in name:
        return path
    shipped = Path(bench.__file__).resolve().parents[1] / "scenarios" / f"{name}.toml"
    return shipped if shipped.exists() else path


def output_directory(wanted: Path | None, scenario: Path) -> Path:
    """The directory of a run's result: *wanted*, or runs/<time>-<scenario>. Made, and empty.

    :raises ScenarioError: it cannot be made, or holds something already.
    """
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = wanted if wanted is not None else Path("runs") / f"{stamp}-{scenario.stem}"
    for number in range(2, 100):
        if wanted is not None or not path.exists():
            break
        path = Path("runs") / f"{stamp}-{scenario.stem}-{number}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise ScenarioError("-o", "", f"{path} ({error.strerror})", "a directory that can be made") from None
    if occupied:
        raise ScenarioError("-o", "", str(path), "a new or an empty directory, so that no result is overwritten")
    return path


def _hand_to_user(directory: Path) -> None:
    """Under sudo the result belongs to the user who called it."""
    uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if not (uid and gid and uid.isdecimal() and gid.isdecimal()):
        return
    ours = [directory, *directory.rglob("*")]
    if directory.parent.name == "runs":
        ours.append(directory.parent)
    for path in ours:
        os.chown(path, int(uid), int(gid), follow_symlinks=False)


def exit_code(result: RunResult) -> int:
    """0 when every migration of the run completed with identical memory."""
    migrations = result.migrations or [result]
    good = all(item.outcome == "completed" and item.memory.identical is not False for item in migrations)
    return 0 if good else 1


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a shipped one such as `smallest`.")
    ] = REFERENCE,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario, such as guest.memory=256MiB."),
    ] = None,
    topo: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.py:NAME[,ARGS]", help="The topology, in Mininet's --custom convention."),
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, max=MAX_REPEAT, help="Migrate this many times, back and forth, in one run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes; default runs/<time>.")
    ] = None,
) -> None:
    """Migrate a guest and say where every millisecond of its clients' outage went."""
    path = find_scenario(scenario if scenario != REFERENCE or Path(scenario).exists() else "reference")
    overrides = list(settings or [])
    if topo is not None:
        overrides.append(f'network.topology="{topo}"' if '"' not in topo else f"network.topology={topo}")
    if repeat is not None:
        overrides.append(f"run.repeat={repeat}")
    raise typer.Exit(run_scenario(load_scenario(path, overrides), path, output))


def run_scenario(scenario: Scenario, path: Path, output: Path | None) -> int:
    """Plan, then run in a sandbox; returns the exit code."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.report.progress import Progress  # noqa: PLC0415
    from bench.report.terminal import render  # noqa: PLC0415
    from bench.runner import Runner  # noqa: PLC0415

    require_root()
    plan = make_plan(scenario, str(path))
    directory = output_directory(output, path)
    console = Console()
    with RunDirectory.create() as run_directory:

        def inside() -> int:
            with Progress(console) as progress:
                result = Runner(scenario, plan, run_directory.path, directory, progress.on_event).run()
            render(result, console)
            return exit_code(result)

        try:
            code = run_in_sandbox(inside)
        finally:
            _hand_to_user(directory)
    if any(directory.iterdir()):
        console.print(f"result: {directory}", soft_wrap=True, highlight=False)
    else:
        directory.rmdir()
    return code


@app.command()
def show(directory: Annotated[Path, typer.Argument(help="A directory that `bench run` wrote.")]) -> None:
    """Print the summary of an earlier run."""
    from bench.report.terminal import render  # noqa: PLC0415
    from bench.result import RunResult  # noqa: PLC0415

    result = RunResult.read(directory)
    render(result, Console())
    raise typer.Exit(exit_code(result))


@app.command()
def doctor() -> None:
    """Say what this machine can do, what will be used instead, and what to install."""
    from bench import doctor as examination  # noqa: PLC0415

    findings = examination.doctor()
    examination.render(findings, Console())
    raise typer.Exit(0 if examination.usable(findings) else 1)


@app.command()
def clean() -> None:
    """Remove what dead runs left behind, by their ledgers, and nothing else."""
    from bench.clean import clean as remove  # noqa: PLC0415

    report = remove()
    typer.echo(report.text())
    raise typer.Exit(0 if report.ok else 1)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(standalone_mode=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
