"""``bench topo list`` and ``bench topo show``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.app import app
from bench.errors import MachineError, ScenarioError

if TYPE_CHECKING:
    from types import ModuleType

topo_app = typer.Typer(name="topo", help="Topologies: which there are, what they look like.", no_args_is_help=True)
app.add_typer(topo_app)


def _topologies() -> ModuleType:
    try:
        import topologies.drawing  # noqa: PLC0415 - Mininet is imported only when a network is looked at
    except ImportError as error:
        raise MachineError(f"Mininet cannot be imported: {error}", "run `make setup` as root") from None
    return topologies


def _load(name: str) -> Any:
    topologies = _topologies()
    try:
        return topologies.load(name)
    except ValueError as error:
        why = str(error).removeprefix(f"{name}: ")
        raise ScenarioError("bench topo show", "NAME", name, f"a topology that can be loaded ({why})") from None


@topo_app.command("list")
def list_topologies() -> None:
    """The built-in topologies with their parameters and defaults."""
    topologies = _topologies()
    for name, module in topologies.BUILTIN.items():
        topo = topologies.load(name)
        parameters = [
            f"{parameter.name}={parameter.default}"
            for parameter in inspect.signature(type(topo).build).parameters.values()
            if parameter.name != "self"
        ]
        what = (inspect.getdoc(inspect.getmodule(type(topo))) or module).split(". ")[0].rstrip(".")
        typer.echo(f"{name:<11} {what}\n{'':<11} {', '.join(parameters)}")


@topo_app.command("show")
def show_topology(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.py:NAME[,ARGS]", help="As for `bench run --topo`.")],
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the drawing there as SVG as well.")] = None,
) -> None:
    """Draw a topology in the terminal, and as SVG where that is asked for."""
    from topologies import drawing  # noqa: PLC0415 - as above

    topo = _load(name)
    typer.echo(drawing.text(topo), nl=False)
    if svg is not None:
        try:
            svg.write_text(drawing.svg(topo, name), encoding="utf-8")
        except OSError as error:
            reason = f"a file that can be written ({error.strerror})"
            raise ScenarioError("bench topo show", "--svg", str(svg), reason) from None
        typer.echo(f"drawing: {svg}")
