"""Shell completion, as the shells ask for it (Typer's protocol)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

ASK = {
    "bash": {"COMP_WORDS": "bench re", "COMP_CWORD": "1"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "bench re"},
    "fish": {"_TYPER_COMPLETE_ARGS": "bench re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def bench(instruction: str, **environment: str) -> str:
    entry = "import sys; sys.argv[0] = 'bench'; from bench.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", entry],
        env={**os.environ, "_BENCH_COMPLETE": instruction, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout


@pytest.mark.parametrize("shell", sorted(ASK))
def test_a_shell_is_told_the_commands(shell: str) -> None:
    shown = bench(f"complete_{shell}", **ASK[shell])
    assert "report" in shown
    assert "remote" in shown
    assert "doctor" not in shown


@pytest.mark.parametrize("shell", sorted(ASK))
def test_the_script_is_one_that_the_shell_reads(shell: str) -> None:
    script = bench(f"source_{shell}")
    assert "bench" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
