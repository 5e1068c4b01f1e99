from __future__ import annotations

from pathlib import Path

import pytest
from made_up import flow, migration
from made_up_run import write_run

from bench.recording import Recording
from bench.report.paper import FIGURES, write_figures

MAGIC = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.parametrize("form", sorted(MAGIC))
def test_each_figure_is_a_file(tmp_path: Path, form: str) -> None:
    files = write_figures(Recording(write_run(tmp_path / "run")), tmp_path / "out", form)
    assert [file.stem for file in files] == list(FIGURES)
    for file in files:
        assert file.read_bytes().startswith(MAGIC[form])


def test_a_name_is_no_mathematics(tmp_path: Path) -> None:
    one = migration(flows=[flow("$\\frac{1}{0}$")], phases=[{"name": "$x", "start_ns": 1, "end_ns": 2}])
    run = write_run(tmp_path / "run", **{**one, "migrations": [one]})
    for file in write_figures(Recording(run), tmp_path / "out", "svg"):
        assert b"<svg" in file.read_bytes()


def test_a_run_without_anything_has_no_figures(tmp_path: Path) -> None:
    bare = migration(outcome="cancelled", pause_ns=None, rounds=[], flows=[], relearn={"announce_ns": None})
    run = write_run(tmp_path / "run", **{**bare, "migrations": [bare]})
    assert write_figures(Recording(run), tmp_path / "out", "png") == []
