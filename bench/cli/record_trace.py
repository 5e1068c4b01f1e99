"""``bench record-trace``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.common import REFERENCE, find_scenario, notices_raise
from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import HostError, ScenarioError
from bench.series import load_scenarios
from bench.units import format_bytes, parse_duration_ns


@app.command("record-trace")
def record_trace(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a shipped one such as `smallest`.")
    ] = REFERENCE,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The trace to write.")] = Path(
        "trace.jsonl"
    ),
    duration: Annotated[str, typer.Option(metavar="DURATION", help="For how long, up to 3600s.")] = "5s",
    interval: Annotated[str, typer.Option(metavar="DURATION", help="How often to look, from 1ms.")] = "20ms",
    guest: Annotated[str | None, typer.Option(metavar="NAME", help="Which guest; the first one by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario.")
    ] = None,
) -> None:
    """Record which pages a guest writes when, for `guest.workload.pattern = "trace"` to replay."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415
    from bench.host.sandbox import require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.tracing import record  # noqa: PLC0415

    require_root()
    duration_ns, interval_ns = (
        _duration(option, text) for option, text in (("--duration", duration), ("--interval", interval))
    )
    if not NS_PER_MS <= interval_ns <= duration_ns <= 3600 * NS_PER_S:
        allowed = f"from '1ms' to the duration of {duration}, which is up to '3600s'"
        raise ScenarioError("--interval", "", interval, allowed)
    path = find_scenario(scenario if scenario != REFERENCE or Path(scenario).exists() else "reference")
    one = load_scenarios(path, list(settings or []))[0]  # how the guest would move does not matter
    names = [item.name for item in one.guests]
    if guest is not None and guest not in names:
        raise ScenarioError("--guest", "", guest, f"one of {', '.join(names)}")
    plan = make_plan(one, str(path))
    target = output.resolve()  # the sandbox may begin elsewhere
    if not target.parent.is_dir():
        raise ScenarioError("--output", "", str(output), "a file in a directory that is there")

    def inside() -> int:
        def notify(text: str) -> None:
            print(f"{text} ...", file=sys.stderr, flush=True)  # noqa: T201

        found = record(
            one,
            plan,
            run_directory.path,
            guest or names[0],
            duration_ns,
            interval_ns,
            notify,
            run_directory.record_cgroup,
        )
        try:
            target.write_bytes(found.data)
        except OSError as error:
            raise HostError(f"{output}: {error.strerror}") from error
        typer.echo(
            f"{output}: {found.looks} looks in {found.duration_ns / NS_PER_S:.2f} s, {found.writes} page writes to "
            f"{found.distinct} of {found.pages} pages, {format_bytes(len(found.data))}"
        )
        return 0

    with notices_raise(), RunDirectory.create() as run_directory:
        raise typer.Exit(run_in_sandbox(inside))


def _duration(option: str, text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise ScenarioError(option, "", text, str(error)) from None
