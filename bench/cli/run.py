"""``bench run``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench.cli.app import app
from bench.cli.common import (
    BAD_INPUT,
    REFERENCE,
    STOPPED,
    conclude,
    control_plane,
    exit_code,
    find_scenario,
    notices_raise,
)
from bench.cli.show import show_series
from bench.errors import BenchError
from bench.output import OutputDirectory
from bench.report.junit import write_junit
from bench.result import RunResult
from bench.scenario import Scenario, with_commands
from bench.series import labels, load_scenarios, read_series

MAX_REPEAT: Final = 1000


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
    controller: Annotated[
        str | None,
        typer.Option(metavar="WORD|FILE.py|tcp:HOST:PORT", help="The control plane; tcp: any OpenFlow controller."),
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, max=MAX_REPEAT, help="Migrate this many times, back and forth, in one run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes; default runs/<time>.")
    ] = None,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="[HOST:]COMMAND",
            help="Run this program on a client host meanwhile; its output and exit status are kept.",
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what completed and which expectations held as JUnit XML.")
    ] = None,
) -> None:
    """Migrate a guest and say where every millisecond of its clients' outage went."""
    path = find_scenario(scenario if scenario != REFERENCE or Path(scenario).exists() else "reference")
    overrides = list(settings or [])
    if topo is not None:
        overrides.append(f'network.topology="{topo}"' if '"' not in topo else f"network.topology={topo}")
    overrides += control_plane(controller)
    if repeat is not None:
        overrides.append(f"run.repeat={repeat}")
    scenarios = [with_commands(one, clients or []) for one in load_scenarios(path, overrides)]
    raise typer.Exit(run_scenarios(scenarios, path, output, junit))


def run_scenarios(scenarios: Sequence[Scenario], path: Path, wanted: Path | None, junit: Path | None = None) -> int:
    """One run after the other, each in a sandbox and a directory of its own; returns the worst exit code."""
    if len(scenarios) == 1:
        return run_scenario(scenarios[0], path, wanted, junit)
    from bench.host.sandbox import require_root  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415

    require_root()
    for scenario in scenarios:  # whatever cannot work is refused before the first of them runs
        make_plan(scenario, str(path))
    console = Console()
    output = OutputDirectory.choose(wanted, path)
    worst = 0
    try:
        for label, scenario in zip(labels(scenarios), scenarios, strict=True):
            console.rule(label)
            try:
                code = run_scenario(scenario, path, output.path / label)
            except BenchError as error:
                print(f"bench: {label}: {error}", file=sys.stderr)  # noqa: T201
                code = error.exit_code
            worst = max(worst, code)
            if code > STOPPED:
                break
        runs = read_series(output.path)
        show_series(runs, console)
        if junit is not None:
            write_junit(junit, [(f"{path.stem}/{label}", result, "") for label, result in runs])
    finally:
        conclude(output, console)
    return worst


def run_scenario(scenario: Scenario, path: Path, wanted: Path | None, junit: Path | None = None) -> int:
    """Plan, then run in a sandbox; returns the exit code."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import exit_status, require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.relaying import relayed  # noqa: PLC0415
    from bench.report.progress import Progress  # noqa: PLC0415
    from bench.report.terminal import render  # noqa: PLC0415
    from bench.runner import Runner  # noqa: PLC0415

    require_root()
    plan = make_plan(scenario, str(path))
    console = Console()
    output = OutputDirectory.choose(wanted, path)

    def inside() -> int:
        runner = Runner(
            scenario,
            plan,
            run_directory.path,
            output.path,
            progress.on_event,
            record_cgroup=run_directory.record_cgroup,
        )
        with progress:
            result = runner.run()
        with contextlib.suppress(OSError, SystemExit):  # nobody reads any more
            render(result, console)
        return runner.notice or exit_code(result)

    try:
        with notices_raise(), RunDirectory.create() as run_directory, relayed(scenario, run_directory.path):
            progress = Progress(console, several=len(scenario.guests) > 1)
            code = run_in_sandbox(inside)
        if code == 128 + signal.SIGKILL:
            print("bench: the run was killed", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt as notice:  # outside of the sandbox: before there is one, or after
        code = exit_status(notice)
    except BenchError as error:
        if error.exit_code == BAD_INPUT:
            output.take_back()
        raise
    finally:
        if junit is not None and output.path.exists():
            result = RunResult.read(output.path) if output.has_result else None
            write_junit(junit, [(path.stem, result, "the run left no result")])
        conclude(output, console)
    return code
