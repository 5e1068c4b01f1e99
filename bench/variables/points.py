"""Which variables are swept, and over which points around a base scenario. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.scenario import Scenario

DISKS: Final = 'guest.disks=[{kind="shared", format="raw", size="32MiB"}]'
QUICK: Final = (
    "calibration.enabled=false",
    "run.warmup=500ms",
    "run.settle=100ms",
    "run.pause_between=100ms",
    "run.watch_switches=false",
    'controller.app="bridge"',
    'announce={schedule="custom", rounds=3, initial="50ms", step="50ms"}',
    'clients=[{kind="udp-echo", interval="1ms"}]',
)
"""What makes a run short: nothing is calibrated, one client, switches that learn by themselves, short waits."""


@dataclass(frozen=True, slots=True)
class Point:
    """:param value: of the variable, in its unit; *settings* are the ``--set``s that make it so."""

    value: float
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """One of the five.

    :param key: short, for file names; *name* is what a sentence calls it, and *unit* what its values are counted in.
    :param also: settings at every one of its points.
    :param quick: swept by ``--quick`` as well, without being asked for by name.
    """

    key: str
    name: str
    unit: str
    points: tuple[Point, ...]
    also: tuple[str, ...] = ()
    quick: bool = True


def variables(base: Scenario, storage_links: Sequence[str] = ()) -> tuple[Variable, ...]:
    """All five, with five points each around *base*; the bandwidth to the storage twice, by server and by links.

    :param storage_links: those that the storage host is plugged into; none: it has none.
    """
    links = (_storage_links(base, storage_links),) if storage_links else ()
    return (_modified_pages(base), _bandwidth(base), _hardware(), _load(), _storage(base), *links)


def _modified_pages(base: Scenario) -> Variable:
    rate = base.guests[0].workload.rate or 40 << 20
    points = []
    for factor in (0.25, 0.5, 1, 2, 4):
        value = max(1 << 16, round(rate * factor))
        points.append(Point(value / (1 << 20), (f"guest.workload.rate={value}B/s",)))
    return Variable("modified-pages", "the rate of modified pages", "MiB/s", tuple(points))


def _bandwidth(base: Scenario) -> Variable:
    """Of every link that the scenario gives a bandwidth to."""
    bps = base.link("", "").bandwidth or 10**9
    names = [name for name in base.links if name != "default"]
    points = []
    for factor in (0.125, 0.25, 0.5, 1, 2):
        value = round(bps * factor)
        settings = [f"links.default.bandwidth={value}bit"]
        settings += [f'links."{name}".bandwidth={value}bit' for name in names]
        points.append(Point(value / 1e6, tuple(settings)))
    return Variable("bandwidth", "bandwidth", "Mbit/s", tuple(points))


def _hardware() -> Variable:
    points = tuple(Point(cpu, (f"hosts.default.cpu={cpu}",)) for cpu in (0.2, 0.35, 0.5, 0.75, 1.0))
    return Variable("hardware", "the processors of each hypervisor", "CPUs", points)


def _load() -> Variable:
    """Within a hypervisor that has one processor: else a large machine would not feel it."""
    points = tuple(Point(load, (f"hosts.default.load.cpu={load}",)) for load in (0.0, 0.25, 0.5, 1.0, 2.0))
    return Variable("load", "load on the hypervisors", "CPUs", points, ("hosts.default.cpu=1.0",))


def _with_disk(base: Scenario) -> tuple[str, ...]:
    """A disk that is worked on, unless the guest has one."""
    return () if base.guests[0].disks else (DISKS, 'guest.disk_workload={rate="8MiB/s", block="64KiB"}')


def _storage(base: Scenario) -> Variable:
    points = tuple(Point(mib, (f"storage.rate={mib}MiB/s",)) for mib in (1, 2, 4, 8, 16))
    return Variable("storage", "the storage server's rate", "MiB/s", points, _with_disk(base))


def _storage_links(base: Scenario, links: Sequence[str]) -> Variable:
    points = tuple(
        Point(mbit, tuple(f'links."{link}".bandwidth={mbit}Mbit' for link in links)) for mbit in (10, 20, 40, 80, 160)
    )
    return Variable(
        "storage-links", "the bandwidth of the storage host's links", "Mbit/s", points, _with_disk(base), quick=False
    )
