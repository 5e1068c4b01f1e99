"""What every test gets: root tests skip by naming what is missing, and never in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _missing() -> str:
    """What a root test lacks on this machine; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("mnexec", "ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "tc", "ip", "tcpdump"):
        if shutil.which(program) is None:
            return f"the program {program} (run `make setup` as root)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    if not missing:
        return
    if os.environ.get("CI"):
        pytest.exit(f"CI must run every test, but this machine lacks {missing}", returncode=1)
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=f"needs {missing}"))


@pytest.fixture
def project() -> Path:
    """The checkout's top directory."""
    return ROOT
