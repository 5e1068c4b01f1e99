"""``bench sweep``."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import bench
from bench.cli.app import app
from bench.cli.common import find_scenario, notices_raise
from bench.output import RUNS
from bench.report.junit import write_junit


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="A sweep's file, or the name of a shipped one such as `five`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Where the runs go; the same again resumes. Default runs/<time>."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario at every point."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="A Dask scheduler whose workers do the runs.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run those again that left no result.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every point and list the runs.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every run as JUnit XML.")] = None,
) -> None:
    """Run a scenario at many points, each several times, in random order; resumes where it stopped."""
    from bench.host.sandbox import exit_status  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.sweep.plan import load_sweep  # noqa: PLC0415 - what a sweep needs is loaded for a sweep only
    from bench.sweep.run import Here, describe_plan, run_sweep  # noqa: PLC0415
    from bench.sweep.store import SweepStore  # noqa: PLC0415

    console = Console()
    # What cannot work is refused before the first run; topologies and images of workers' machines are not here.
    checks = () if scheduler else (make_plan,)
    plan = load_sweep(_find(file), find_scenario, tuple(settings or ()), *checks)
    if dry_run:
        for line in describe_plan(plan):
            console.print(Text(line), soft_wrap=True)
        return
    if scheduler is None:
        from bench.host.sandbox import require_root  # noqa: PLC0415

        require_root()
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    directory = output or RUNS / f"{stamp}-{plan.title}"
    store = SweepStore(directory, plan)
    try:
        with notices_raise(), contextlib.ExitStack() as stack:
            if scheduler is None:
                executor: Here | object = Here()
            else:
                from bench.sweep.cluster import Cluster  # noqa: PLC0415

                executor = stack.enter_context(Cluster(scheduler))
            wrong = run_sweep(store, executor, lambda line: console.print(Text(line), soft_wrap=True), retry=retry)  # type: ignore[arg-type]
    except KeyboardInterrupt as notice:
        console.print(f"stopped; `bench sweep {file} -o {directory}` goes on", soft_wrap=True, highlight=False)
        raise typer.Exit(exit_status(notice)) from None
    finally:
        if junit is not None:
            write_junit(junit, [(row.job.label, row.result, row.error) for row in store.rows()])
    console.print(f"sweep: {directory}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if wrong else 0)


def _find(name: str) -> Path:
    """A sweep by path, or one of the shipped ones by name."""
    path = Path(name)
    shipped = Path(bench.__file__).resolve().parents[1] / "scenarios" / "sweeps" / f"{name}.toml"
    return shipped if not path.exists() and shipped.exists() else path
