"""``bench dirty-rate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench.cli.app import app
from bench.cli.common import REFERENCE, find_scenario, notices_raise
from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import ScenarioError
from bench.series import load_scenarios
from bench.units import parse_duration_ns

LEAST_SAMPLE_NS: Final = 100 * NS_PER_MS
MOST_SAMPLE_NS: Final = 60 * NS_PER_S


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

        found = describe(measure(one, plan, run_directory.path, duration_ns, notify, run_directory.record_cgroup))
        if as_json:
            typer.echo(json.dumps(found))
        else:
            print_dirty_rate(found, Console())
        return 0

    with notices_raise(), RunDirectory.create() as run_directory:
        raise typer.Exit(run_in_sandbox(inside))
