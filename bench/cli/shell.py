"""``bench shell``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.common import control_plane, find_scenario, notices_raise
from bench.scenario import parse_scenario, read_raw


@app.command()
def shell(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped one such as `smallest`.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario.")
    ] = None,
    topo: Annotated[str | None, typer.Option(metavar="NAME|FILE.py:NAME[,ARGS]", help="The topology.")] = None,
    controller: Annotated[
        str | None,
        typer.Option(metavar="WORD|FILE.py|tcp:HOST:PORT", help="The control plane; tcp: any OpenFlow controller."),
    ] = None,
) -> None:
    """Raise a testbed and give it Mininet's command line, with migrate, announce, watch and link."""
    from bench.host.ledger import RunDirectory  # noqa: PLC0415 - what a run needs is loaded for a run only
    from bench.host.sandbox import require_root, run_in_sandbox  # noqa: PLC0415
    from bench.plan import make_plan  # noqa: PLC0415
    from bench.relaying import relayed  # noqa: PLC0415

    require_root()
    path = find_scenario(scenario)
    overrides = [*(settings or []), *([f'network.topology="{topo}"'] if topo is not None else [])]
    overrides += control_plane(controller)
    raw, where = read_raw(path, overrides)
    parsed = parse_scenario(raw, where)
    plan = make_plan(parsed, where)

    def inside() -> int:
        from bench.shell import run_shell  # noqa: PLC0415 - Mininet is imported only where a network is raised

        return run_shell(parsed, plan, run_directory.path, raw, str(path), run_directory.record_cgroup)

    with notices_raise(), RunDirectory.create() as run_directory, relayed(parsed, run_directory.path):
        code = run_in_sandbox(inside)
    raise typer.Exit(code)
