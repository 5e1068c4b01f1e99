"""``bench variables``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bench.cli.app import app
from bench.cli.common import find_scenario
from bench.errors import ScenarioError
from bench.output import OutputDirectory
from bench.series import load_scenarios
from bench.units import format_duration
from bench.variables.experiment import Measured, Swept, sweep
from bench.variables.plot import draw
from bench.variables.points import QUICK, Variable, variables

TIMES: Final = ("total_ns", "transfer_ns", "expected_transfer_ns", "downtime_ns", "expected_downtime_ns")


@app.command("variables")
def run_variables(
    scenario: Annotated[
        str, typer.Argument(help="The base: a scenario file, or the name of a shipped one.")
    ] = "variables",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Sweep this one only; may be given several times.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Migrations at each point.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One migration at each point, short waits.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where it goes; default runs/<time>.")
    ] = None,
) -> None:
    """Sweep each of the five variables that decide a migration's speed, and say what each of them does."""
    from bench.host.sandbox import require_root  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415

    require_root()
    path = find_scenario(scenario)
    given = list(settings or [])
    base = load_scenarios(path, given)[0]
    chosen = _chosen(variables(base), only or [])
    common = [*given, f"run.repeat={1 if quick else repeat}", *(QUICK if quick else ())]
    for variable in chosen:  # whatever cannot work is refused before the first run
        for point in variable.points:
            for one in load_scenarios(path, [*common, *variable.also, *point.settings]):
                make_plan(one, str(path))
    console = Console()
    place = OutputDirectory.choose(output, path)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(len(variable.points) for variable in chosen), left="")

        def tell(number: int, _total: int, what: str, left_s: float | None) -> None:
            left = "" if left_s is None else f"{format_duration(round(left_s) * 10**9)} left"
            progress.update(task, completed=number - 1, description=what, left=left)

        swept = sweep(path, chosen, common, place.path, tell)
    for item in swept:
        (place.path / f"{item.variable.key}.svg").write_text(draw(item), encoding="utf-8")
        console.print(_table(item))
        for found in item.points:
            if found.problem:
                console.print(f"{found.value:g} {item.variable.unit}: {found.problem}", highlight=False, markup=False)
        for line in item.sentences():
            console.print(line, highlight=False)
        console.print()
    place.hand_to_user()
    console.print(f"tables, plots (*.svg) and every run: {place.path}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(point.problem for item in swept for point in item.points) else 0)


def _chosen(known: tuple[Variable, ...], only: list[str]) -> list[Variable]:
    names = [variable.key for variable in known]
    for name in only:
        if name not in names:
            raise ScenarioError("--only", "", name, f"one of {', '.join(names)}")
    return [variable for variable in known if not only or variable.key in only]


def _table(swept: Swept) -> Table:
    """Medians of the point's migrations, each beside what the model expects: of the transfer, which is the total time
    without its set-up, of the downtime and of the rounds.
    """
    table = Table(title=swept.variable.name, title_justify="left")
    captions = ("total", "transfer", "expected", "downtime", "expected", "rounds", "expected", "outage")
    for caption in (swept.variable.unit, *captions):
        table.add_column(caption, justify="right")
    for point in swept.points:
        if point.problem:
            table.add_row(f"{point.value:g}")
            continue
        cells = [
            *(_time(point, name) for name in TIMES),
            *(_count(point, name) for name in ("rounds", "expected_rounds")),
            _time(point, "outage_ns"),
        ]
        table.add_row(f"{point.value:g}", *cells)
    return table


def _time(point: Measured, name: str) -> str:
    value = point.middle(name)
    return "" if value is None else format_duration(round(value))


def _count(point: Measured, name: str) -> str:
    value = point.middle(name)
    return "" if value is None else f"{value:g}"
