"""``bench variables``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bench.cli.app import app
from bench.cli.common import find_scenario, notices_raise
from bench.clock import NS_PER_S, now_ns
from bench.errors import BenchError, ScenarioError
from bench.output import OutputDirectory
from bench.plan import Plan
from bench.report.text import table
from bench.scenario import Scenario
from bench.series import load_scenarios
from bench.units import format_duration
from bench.variables.experiment import Measured, Swept, Task, gather, run_apart, tasks_of, write
from bench.variables.plot import draw
from bench.variables.points import QUICK, Variable, variables

DIGITS: Final = 3  # of a time in a table
Planned: TypeAlias = tuple[Scenario, Plan]

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
    from bench.host.sandbox import exit_status, require_root  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415

    require_root()
    path = find_scenario(scenario)
    given = list(settings or [])
    base, *more = load_scenarios(path, given)
    if more:
        modes = [one.migration.mode for one in (base, *more)]
        raise ScenarioError(str(path), "migration.mode", modes, "one mode: a list of them is for `bench run`")
    plan = make_plan(base, str(path))
    links = [f"{one}-{other}" for one, other in plan.links if plan.storage in (one, other)]
    chosen = _chosen(variables(base, links), only or [], quick=quick)
    common = [*given, f"run.repeat={1 if quick else repeat}", *(QUICK if quick else ())]
    planned: list[Planned] = []
    for variable in chosen:  # whatever cannot work is refused before the first run
        for point in variable.points:
            one = load_scenarios(path, [*common, *variable.also, *point.settings])[0]
            planned.append((one, make_plan(one, str(path))))
    console = Console()
    place = OutputDirectory.choose(output, path)
    tasks = tasks_of(chosen, place.path)
    bar = Bar(console, [task.title for task in tasks])
    try:
        with notices_raise():
            problems = (
                measure_on_racks(tasks, planned, bar) if quick else measure_apart(path, tasks, common, bar, place)
            )
    except KeyboardInterrupt as notice:
        kept = any(task.has_result for task in tasks)
        if not kept:
            place.take_back()
        said = f"the points that were measured are in {place.path}" if kept else "no point was measured"
        console.print(f"stopped; {said}", soft_wrap=True, highlight=False)
        raise typer.Exit(exit_status(notice)) from None
    swept = gather(tasks, problems)
    write(swept, place.path)
    for item in swept:
        (place.path / f"{item.variable.key}.svg").write_text(draw(item), encoding="utf-8")
        console.print(_table(item, console))
        for found in item.points:
            if found.problem:
                console.print(f"{found.value:g} {item.variable.unit}: {found.problem}", highlight=False, markup=False)
        for line in item.sentences():
            console.print(line, highlight=False)
        console.print()
    place.hand_to_user()
    console.print(f"tables, plots (*.svg) and every run: {place.path}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(point.problem for item in swept for point in item.points) else 0)


class Bar:
    """How far the experiment is, and what is left of it."""

    def __init__(self, console: Console, titles: list[str]) -> None:
        self._console = console
        self._titles = titles
        self._began_ns = now_ns()

    @contextlib.contextmanager
    def from_(self, number: int) -> Iterator[None]:
        """Show it while the body runs, which begins with that task."""
        text = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*text, console=self._console, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=len(self._titles), left="", completed=number)
            yield

    def at(self, number: int) -> None:
        """A task begins."""
        left = (now_ns() - self._began_ns) // number * (len(self._titles) - number) if number else 0
        said = f"{format_duration(left // NS_PER_S * NS_PER_S)} left" if left else ""
        self._progress.update(self._task, completed=number, description=self._titles[number], left=said)


def measure_apart(
    path: Path, tasks: Sequence[Task], settings: Sequence[str], bar: Bar, place: OutputDirectory
) -> list[str]:
    """Each in a process of its own; what is known is written after each. :returns: why each left no result."""
    problems: list[str] = []
    with bar.from_(0):
        for number, task in enumerate(tasks):
            bar.at(number)
            problems.append(run_apart(path, task, settings))
            write(gather(tasks, problems), place.path)
    return problems


def measure_on_racks(tasks: Sequence[Task], planned: Sequence[Planned], bar: Bar) -> list[str]:
    """All of them on one network; after one that failed on another. :returns: why each left no result."""
    problems: list[str] = []
    while len(problems) < len(tasks):
        problems += _on_one_rack(tasks, planned, bar, len(problems))
    return problems


def _on_one_rack(tasks: Sequence[Task], planned: Sequence[Planned], bar: Bar, first: int) -> list[str]:
    """From task *first* on, until one fails. :returns: as above, of those that were tried, at least one."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import call_in_sandbox  # noqa: PLC0415
    from bench.variables.rack import Rack  # noqa: PLC0415

    def inside() -> list[str]:
        found: list[str] = []
        with bar.from_(first), Rack(run_directory.path, run_directory.record_cgroup) as rack:
            for number in range(first, len(tasks)):
                bar.at(number)
                tasks[number].place.mkdir(parents=True)
                try:
                    rack.run(*planned[number], tasks[number].place)
                except BenchError as error:
                    return [*found, error.message]
                found.append("")
        return found

    with RunDirectory.create() as run_directory:
        return list(call_in_sandbox(inside))


def _chosen(known: tuple[Variable, ...], only: list[str], *, quick: bool) -> list[Variable]:
    names = [variable.key for variable in known]
    for name in only:
        if name not in names:
            raise ScenarioError("--only", "", name, f"one of {', '.join(names)}")
    if only:
        return [variable for variable in known if variable.key in only]
    return [variable for variable in known if variable.quick or not quick]


def _table(swept: Swept, console: Console) -> Table:
    """Medians of the point's migrations, each beside what the model expects: of the transfer, which is the total time
    without its set-up, of the downtime and of the rounds.
    """
    captions = ("total", "transfer", "model", "downtime", "model", "rounds", "model", "outage")
    shown = table(console, swept.variable.unit, *captions, left=0)
    shown.title, shown.title_justify = swept.variable.name, "left"
    for point in swept.points:
        if point.problem:
            shown.add_row(f"{point.value:g}")
            continue
        cells = [
            *(_time(point, name) for name in TIMES),
            *(_count(point, name) for name in ("rounds", "expected_rounds")),
            _time(point, "outage_ns"),
        ]
        shown.add_row(f"{point.value:g}", *cells)
    return shown


def _time(point: Measured, name: str) -> str:
    value = point.middle(name)
    if value is None:
        return ""
    ns = round(value)
    return format_duration(round(ns, DIGITS - len(str(ns))) if len(str(ns)) > DIGITS else ns)


def _count(point: Measured, name: str) -> str:
    value = point.middle(name)
    return "" if value is None else f"{value:g}"
