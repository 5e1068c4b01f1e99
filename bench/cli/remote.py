"""``bench remote``."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from bench.cli.app import app
from bench.errors import ScenarioError
from bench.output import OutputDirectory


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def remote(
    target: Annotated[
        str, typer.Argument(metavar="USER@HOST[:PORT]", help="The machine; its bench runs as that user.")
    ],
    arguments: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Such as: run smallest -o result")],
    known_hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Host keys to trust; default ~/.ssh/known_hosts.")
    ] = None,
    host_key: Annotated[str, typer.Option(metavar="SHA256:...", help="The host key's fingerprint, pinned.")] = "",
    identity: Annotated[Path | None, typer.Option("-i", metavar="FILE", help="A private key.")] = None,
    program: Annotated[str, typer.Option(metavar="PATH", help="The bench there.")] = "bench",
) -> None:
    """Run `bench` on another machine by SSH, and fetch its result directory back."""
    from bench.remote import Remote, Target  # noqa: PLC0415 - takes a while to load

    try:
        where = Target.parse(target, known_hosts=known_hosts, fingerprint=host_key, identity=identity)
    except ValueError as error:
        raise ScenarioError("remote", "", target, str(error)) from None
    words, wanted = _without_output(arguments)
    output = OutputDirectory.choose(wanted, Path(f"{where.host}.toml")) if words[0] == "run" else None
    try:
        with Remote(where) as machine, machine.directory() as place:
            if len(words) > 1 and words[0] == "run" and Path(words[1]).is_file():
                machine.put(Path(words[1]), place / Path(words[1]).name)
                words[1] = str(place / Path(words[1]).name)
            result = place / "result"
            code = machine.run([program, *words, *(["-o", str(result)] if output else [])], _tell)
            if output is not None and _exists(machine, result):
                machine.get_tree(result, output.path)
    finally:
        if output is not None and output.path.exists() and output.empty:
            output.take_back()
    if output is not None and output.path.exists():
        typer.echo(f"result: {output.path}")
    raise typer.Exit(code)


def _tell(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _exists(machine: object, place: PurePosixPath) -> bool:
    from bench.remote import Remote  # noqa: PLC0415

    return isinstance(machine, Remote) and machine.run(["test", "-d", str(place)], lambda _data: None) == 0


def _without_output(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The words without ``-o DIR``, which is on this machine, and that directory."""
    words: list[str] = []
    wanted = None
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("-o", "--output"):
            wanted = Path(value if equals else next(rest, ""))
        else:
            words.append(word)
    return words, wanted
