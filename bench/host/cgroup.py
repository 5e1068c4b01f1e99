"""Control groups that limit a process's CPU time: version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``), as mounted.

A run's groups live below one that its ledger names (:meth:`bench.host.ledger.RunDirectory.record_cgroup`), so that
none of them survives it. Groups are handled by directory descriptors: the path of the hierarchy may be hidden in the
mount namespace of a Mininet host, which mounts a /sys of its own.

Sources: Documentation/admin-guide/cgroup-v2.rst "CPU", Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.errors import HostError

FULL_PPM: Final = 1_000_000
_LEAST_QUOTA_US: Final = 1_000  # the kernel's
_PERIODS_US: Final = (20_000, 1_000_000)  # short: a process that is held back waits no longer than that
_V1_QUOTA, _V1_PERIOD, _V2_MAX = "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"


def quota(share_ppm: int) -> tuple[int, int]:
    """A share of one processor (1 to :data:`FULL_PPM`) as the kernel's quota and period in us.

    The period is as short as the least quota lets it be, from 20 ms to 1 s.
    """
    low, high = _PERIODS_US
    period = min(high, max(low, -(-_LEAST_QUOTA_US * FULL_PPM // max(1, share_ppm))))
    return max(_LEAST_QUOTA_US, period * share_ppm // FULL_PPM), period


def cpu_hierarchy() -> tuple[Path, int] | None:
    """Where groups with a CPU controller can be made, and the version; None where there is none.

    Version 2 when it has the controller, else version 1.
    """
    found: dict[int, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        where = Path(fields.split()[4])
        if kind == "cgroup2" and "cpu" in _read(where / "cgroup.controllers").split():
            found[2] = where
        elif kind == "cgroup" and "cpu" in options.split()[-1].split(","):
            found[1] = where
    return next(((found[version], version) for version in (2, 1) if version in found), None)


def make_parent(name: str, record: Callable[[Path], Path]) -> Path | None:
    """A group that groups with a quota can be made in.

    :param record: told its path before it is made.
    :returns: its path; None when this machine has no CPU controller that we may use.
    """
    hierarchy = cpu_hierarchy()
    if hierarchy is None:
        return None
    root, version = hierarchy
    path = record(root / name)
    try:
        path.mkdir(exist_ok=True)
        if version == 2:
            for group in (root, path):
                (group / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
    except OSError:
        return None
    return path


class CpuGroup:
    """One group with a CPU quota, below a parent of :func:`make_parent`. Its members leave it by ending only.

    :ivar version: 1 or 2.
    """

    def __init__(self, parent: Path, name: str) -> None:
        """:raises HostError: when it cannot be made; nothing is left then."""
        self._name = name
        self._parent_fd = self._fd = -1
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._parent_fd = os.open(parent, flags)
            os.mkdir(name, dir_fd=self._parent_fd)
            self._fd = os.open(name, flags, dir_fd=self._parent_fd)
            files = os.listdir(self._fd)  # noqa: PTH208 - of a descriptor
            if _V2_MAX not in files and _V1_QUOTA not in files:
                raise HostError(f"control group {parent}/{name} has no CPU controller")
        except OSError as error:
            self.remove()
            raise HostError(f"control group {parent}/{name}: {error.strerror}") from error
        except HostError:
            self.remove()
            raise
        self.version = 2 if _V2_MAX in files else 1

    def add(self, pid: int) -> None:
        """Put a process into it. :raises HostError: when the kernel refuses."""
        self._write("cgroup.procs", str(pid))

    def set_share(self, share_ppm: int) -> None:
        """What its processes may use of one processor; :data:`FULL_PPM` and more is no limit.

        :raises HostError: when the kernel refuses.
        """
        limit_us, period_us = quota(share_ppm)
        if self.version == 2:
            self._write(_V2_MAX, f"max {period_us}" if share_ppm >= FULL_PPM else f"{limit_us} {period_us}")
        elif share_ppm >= FULL_PPM:
            self._write(_V1_QUOTA, "-1")
        else:
            self._write(_V1_PERIOD, str(period_us))
            self._write(_V1_QUOTA, str(limit_us))

    def share(self) -> float:
        """The limit as the kernel holds it, in processors; infinite for none. :raises HostError: it cannot be read."""
        if self.version == 2:
            limit, period = self._held(_V2_MAX).split()
        else:
            limit, period = self._held(_V1_QUOTA).strip(), self._held(_V1_PERIOD).strip()
        return math.inf if limit in ("max", "-1") else int(limit) / int(period)

    def remove(self) -> None:
        """Remove it if nothing is in it any more; what stays goes with the parent, by the ledger. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            with contextlib.suppress(OSError):
                os.rmdir(self._name, dir_fd=self._parent_fd)
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._fd = self._parent_fd = -1

    def _held(self, file: str) -> str:
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                return os.read(fd, 256).decode("ascii")
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"control group {self._name}: {file}: {error.strerror}") from error

    def _write(self, file: str, text: str) -> None:
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                os.write(fd, text.encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"control group {self._name}: {file} = {text}: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
