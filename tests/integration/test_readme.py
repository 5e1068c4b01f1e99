"""The README's examples are run as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.scenario import load_scenario

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    """Every `bench ...` line of the console blocks, without its comment."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("bench ")]


def test_the_two_commands_come_first():
    assert blocks("console")[0].startswith("sudo make run")
    assert "sudo make test" in blocks("console")[0]


@pytest.mark.parametrize("text", blocks("toml"))
def test_its_scenario_is_valid(text, tmp_path):
    path = tmp_path / "readme.toml"
    path.write_text(text)
    load_scenario(path)


@pytest.mark.root
@pytest.mark.alone  # its runs refuse a busy machine, and `bench clean` looks at what all runs left
def test_its_commands_do_what_they_say(tmp_path):
    found = commands()
    assert len(found) >= 6
    program = Path(sys.executable).parent / "bench"
    for command in found:
        done = subprocess.run(
            [program, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
