"""The licence agrees with the dependencies': no process loads GPL-2.0-only code beside Apache-2.0 code."""

from __future__ import annotations

import subprocess
import sys

import pytest

GPL = "scapy"
APACHE = ("pyarrow", "os_ken", "ryu")


def loaded(module: str) -> set[str]:
    """The top-level packages that importing *module* loads."""
    probe = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


@pytest.mark.parametrize("module", ["bench.migration.announce", "bench.export", "bench.cli.export", "bench.runner"])
def test_no_process_loads_both(module: str) -> None:
    found = loaded(module)
    assert GPL not in found or not found.intersection(APACHE)


def test_the_licence_is_there_and_named(project) -> None:
    assert "Version 2, June 1991" in (project / "LICENSE").read_text()
    assert "license = GPL-2.0-or-later" in (project / "setup.cfg").read_text()
    assert "license: GPL-2.0-or-later" in (project / "CITATION.cff").read_text()
