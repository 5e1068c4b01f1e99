"""The command line: ``bench run``, ``dirty-rate``, ``show``, ``doctor``, ``clean``. Only here errors become exit codes.

========  =============================================================================
0         the guest moved (or the command did what it says)
1         the migration failed or was cancelled, or something broke during the run
2         bad input, or this machine lacks something: nothing was built
130, 143  stopped by Ctrl-C or SIGTERM, after tearing everything down; the result says what happened until then
========  =============================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import bench
from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import BenchError, ScenarioError
from bench.output import RESULT, OutputDirectory
from bench.scenario import Scenario
from bench.series import labels, load_scenarios, read_labels, read_series
from bench.units import parse_duration_ns

if TYPE_CHECKING:
    from bench.result import RunResult

REFERENCE = "scenarios/reference.toml"
MAX_REPEAT = 1000
BAD_INPUT = 2
STOPPED = 128  # exit codes above it: by a signal
LEAST_SAMPLE_NS = 100 * NS_PER_MS
MOST_SAMPLE_NS = 60 * NS_PER_S

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
    raise typer.Exit(run_scenarios(load_scenarios(path, overrides), path, output))


def run_scenarios(scenarios: Sequence[Scenario], path: Path, wanted: Path | None) -> int:
    """One run after the other, each in a sandbox and a directory of its own; returns the worst exit code."""
    if len(scenarios) == 1:
        return run_scenario(scenarios[0], path, wanted)
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
        _show_series(read_series(output.path), console)
    finally:
        _conclude(output, console)
    return worst


def _show_series(runs: Sequence[tuple[str, RunResult | None]], console: Console) -> None:
    from bench.report.side_by_side import print_side_by_side  # noqa: PLC0415

    if runs:
        print_side_by_side(runs, console)


def run_scenario(scenario: Scenario, path: Path, wanted: Path | None) -> int:
    """Plan, then run in a sandbox; returns the exit code."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import exit_status, require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
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
        with _notices_raise(), RunDirectory.create() as run_directory:
            progress = Progress(console)
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
        _conclude(output, console)
    return code


def _conclude(output: OutputDirectory, console: Console) -> None:
    """Whatever ended the run: say where its result or at least its logs are; leave nothing when there is nothing."""
    if output.path.exists() and output.empty:
        output.take_back()
    if output.path.exists():
        output.hand_to_user()
    with contextlib.suppress(OSError, SystemExit):  # nobody reads any more
        if console.is_terminal:
            console.show_cursor(True)  # a killed progress display could not
        if output.path.exists():
            what = "result" if output.has_result else "results" if read_labels(output.path) else "no result; logs"
            console.print(f"{what}: {output.path}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _notices_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, like Ctrl-C, around the sandbox, which has handlers of its own."""
    from bench.host.sandbox import Terminated  # noqa: PLC0415

    def notice(signum: int, _frame: FrameType | None) -> None:
        raise Terminated(signum)

    former = {signum: signal.signal(signum, notice) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


@app.command()
def show(directory: Annotated[Path, typer.Argument(help="A directory that `bench run` wrote.")]) -> None:
    """Print the summary of an earlier run."""
    from bench.report.terminal import render  # noqa: PLC0415
    from bench.result import RunResult  # noqa: PLC0415

    runs = [] if (directory / RESULT).exists() else read_series(directory)
    if runs:
        _show_series(runs, Console())
        raise typer.Exit(max(1 if result is None else exit_code(result) for _, result in runs))
    result = RunResult.read(directory)
    render(result, Console())
    raise typer.Exit(exit_code(result))


@app.command("dirty-rate")
def dirty_rate(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a shipped one such as `smallest`.")
    ] = REFERENCE,
    sample: Annotated[str, typer.Option(metavar="DURATION", help="How long to look, from 100ms to 60s.")] = "1s",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure how fast the guest dirties its memory, and how large its working set is, without migrating it."""
    from bench.forecasting import describe, measure  # noqa: PLC0415
    from bench.host.ledger import RunDirectory  # noqa: PLC0415
    from bench.host.sandbox import require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.report.dirty_rate import print_dirty_rate  # noqa: PLC0415

    require_root()
    path = find_scenario(scenario if scenario != REFERENCE or Path(scenario).exists() else "reference")
    one = load_scenarios(path, list(settings or []))[0]  # how the guest would move does not matter
    plan = make_plan(one, str(path))
    try:
        duration_ns = parse_duration_ns(sample)
    except ValueError as error:
        raise ScenarioError("--sample", "", sample, str(error)) from None
    if not LEAST_SAMPLE_NS <= duration_ns <= MOST_SAMPLE_NS:
        raise ScenarioError("--sample", "", sample, "a duration from '100ms' to '60s'")

    def inside() -> int:
        def notify(text: str) -> None:
            print(f"{text} ...", file=sys.stderr, flush=True)  # noqa: T201

        found = describe(measure(one, plan, run_directory.path, duration_ns, notify))
        if as_json:
            typer.echo(json.dumps(found))
        else:
            print_dirty_rate(found, Console())
        return 0

    with _notices_raise(), RunDirectory.create() as run_directory:
        raise typer.Exit(run_in_sandbox(inside))


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
