"""What machine a run was made on: for the result, so that two results can be told apart."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import CommandError
from bench.host.ovs import ovs_version

MAX_FILE_BYTES = 1 << 20
_KIB = 1024


def read_text(path: str) -> str:
    """A small file below /proc, /sys or /etc; "" when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _field(text: str, name: str, separator: str) -> str:
    """The value of the first line ``name separator value``; "" without one."""
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip().strip('"')
    return ""


def distribution() -> str:
    """Such as ``Debian GNU/Linux 12 (bookworm)`` (os-release(5))."""
    return _field(read_text("/etc/os-release"), "PRETTY_NAME", "=") or "unknown"


def cpu_model() -> str:
    """Such as ``AMD EPYC``; the name of the architecture where /proc/cpuinfo has no model name (arm64)."""
    return _field(read_text("/proc/cpuinfo"), "model name", ":") or platform.machine()


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes(member: str = "MemTotal") -> int:
    """A member of /proc/meminfo in bytes; 0 when it is not there."""
    number = _field(read_text("/proc/meminfo"), member, ":").split(" ")[0]
    return int(number) * _KIB if number.isdecimal() else 0


def cgroup_version() -> str:
    """``v2``, ``v1``, ``v1+v2`` (both hierarchies are mounted) or ``none``."""
    kinds = {line.split()[2] for line in read_text("/proc/mounts").splitlines() if len(line.split()) > 2}
    versions = [version for version, kind in (("v1", "cgroup"), ("v2", "cgroup2")) if kind in kinds]
    return "+".join(versions) or "none"


def package_version(name: str) -> str | None:
    """The version of an installed Python package; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _or_none(value: Callable[[], str]) -> str | None:
    try:
        return value()
    except CommandError:
        return None


def environment() -> dict[str, Any]:
    """Kernel, distribution, CPU, memory and versions. ``None``: not there."""
    return {
        "kernel": platform.release(),
        "distribution": distribution(),
        "architecture": platform.machine(),
        "cpu_model": cpu_model(),
        "cpu_count": cpu_count(),
        "memory_bytes": memory_bytes(),
        "clock_source": read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "tcp_congestion_control": read_text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "cgroup": cgroup_version(),
        "versions": {
            "bench": package_version("migration-bench"),
            "python": platform.python_version(),
            "mininet": package_version("mininet"),
            "openvswitch": _or_none(ovs_version),
            "ryu": package_version("ryu"),
            "os-ken": package_version("os-ken"),
        },
    }
