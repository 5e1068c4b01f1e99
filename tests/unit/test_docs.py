"""The pages say what there is: commands, options, files and scenarios that they show exist."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from bench.cli.app import COMMANDS, app
from bench.cli.common import find_scenario
from bench.scenario import parse_scenario
from bench.scenario.loading import tomllib
from bench.series import load_scenarios

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    for name in COMMANDS:
        importlib.import_module(f"bench.cli.{name}")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in (line for block in blocks(page, "console") for line in block.splitlines()):
        words = shlex.split(line.partition(" #")[0].partition(";")[0])
        if not words or words[0] != "bench":
            continue
        command = commands.get(words[1]) if not words[1].startswith("-") else None
        assert command is not None or words[1] in ("--help", "--version", "--install-completion"), line
        if command is None:
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        if words[1] == "remote":  # what is run there follows
            known |= {option for parameter in commands["run"].params for option in parameter.opts}
        used = [word.partition("=")[0] for word in words[2:] if word.startswith("-")]
        assert set(used) <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_run_that_a_page_shows_is_a_valid_scenario(page: Path) -> None:
    for line in (line for block in blocks(page, "console") for line in block.splitlines()):
        words = shlex.split(line.partition(" #")[0].partition(";")[0])
        if words[:2] != ["bench", "run"] or len(words) == 2 or words[2].startswith("-"):
            continue
        if words[2].endswith(".toml") and not (ROOT / words[2]).exists():
            continue  # the reader's own
        settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
        assert load_scenarios(find_scenario(words[2]), settings), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["results.md", "tutorial.md"])
def test_every_scenario_that_a_page_shows_is_valid(name: str) -> None:
    for block in blocks(ROOT / "docs" / name, "toml"):
        raw = tomllib.loads(block)
        if "grid" not in raw:
            parse_scenario(raw, name)
