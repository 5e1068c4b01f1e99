"""What of a host's hardware this machine can be made to look like, found by doing it (see :mod:`bench.host.probes`)."""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import MachineError
from bench.host.limits import cores_here, here
from bench.host.probes import Probe
from bench.memory.huge import HUGE_BYTES
from bench.memory.image import GuestMemory


def huge_pages(_directory: Path) -> str:
    """Guest memory of two huge pages. :raises BenchError: the kernel gives none."""
    with GuestMemory.create(2 * HUGE_BYTES, huge=True) as memory:
        memory.populate()
        memory.require_huge()
    return f"pages of {HUGE_BYTES >> 20} MiB, mapped by 4 KiB while writes are tracked"


def limits(controller: str) -> Probe:
    """A probe that makes a control group with this controller and removes it."""

    def probe(_directory: Path) -> str:
        known = here()
        if controller not in known:
            raise MachineError(f"no control group has the controller {controller}")
        root, version = known[controller]
        path = root / f"migration-bench-doctor-{os.getpid()}"
        path.mkdir()
        try:
            if version == 2:
                (root / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
        finally:
            path.rmdir()
        what = f", processors {', '.join(map(str, cores_here()))}" if controller == "cpuset" else ""
        return f"control groups version {version}{what}"

    return probe
