"""A run under the conditions of a privileged container; and what ships for containers and CI is what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bench_runs import BENCH, LONG_NS, QUICK, settings
from contained import contained

from bench.clock import NS_PER_S
from bench.result import RunResult

pytestmark = pytest.mark.root


def test_a_run_works_as_in_a_container(tmp_path: Path) -> None:
    output = tmp_path / "result"
    run = [str(BENCH), "run", "smallest", *settings(*QUICK), "-o", str(output)]
    found = subprocess.run(
        contained(*run),
        capture_output=True,
        text=True,
        timeout=LONG_NS / NS_PER_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert RunResult.read(output).outcome == "completed"


def test_the_conditions_are_those_of_a_container() -> None:
    look = (
        "import os, pathlib as p;"
        "print(p.Path('/run/systemd').exists(), os.listdir('/lib/modules') if p.Path('/lib/modules').is_dir() else [],"
        "p.Path('/sys/fs/cgroup/cgroup.controllers').exists());"
        "open('/proc/sys/net/ipv4/ip_forward', 'w')"
    )
    found = subprocess.run(
        contained(sys.executable, "-c", look), capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stdout.split() == ["False", "[]", "True"], found.stderr
    assert "Read-only file system" in found.stderr


def test_an_example_of_one_s_own_topology_passes(project: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    found = subprocess.run(
        [*command, "-o", "markers=root", str(project / "docs" / "examples" / "test_mine.py")],
        capture_output=True,
        text=True,
        timeout=LONG_NS / NS_PER_S,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 passed" in found.stdout


def test_the_ci_files_call_what_there_is(project: Path) -> None:
    github = yaml.safe_load((project / "docs" / "ci" / "github-actions.yml").read_text())
    gitlab = yaml.safe_load((project / "docs" / "ci" / "gitlab-ci.yml").read_text())
    commands = [step["run"] for step in github["jobs"]["bench"]["steps"] if "run" in step]
    commands += gitlab["migration"]["script"] + gitlab["migration"]["after_script"]
    for command in commands:
        words = re.split(r"\s+", command)
        at = next((number for number, word in enumerate(words) if word.endswith("bench") and "make" not in words), None)
        if at is None:
            continue
        shown = subprocess.run([BENCH, words[at + 1], "--help"], capture_output=True, text=True, check=True).stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, command
