"""What surrounded the migrations, as applied and read back, for the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.clock import NS_PER_S
from bench.report.text import clean, heading
from bench.units import format_bit_rate, format_bytes


def print_surroundings(environment: Mapping[str, Any], console: Console) -> None:
    """Limits, load, cross traffic, changes of links, and what guests were given; nothing when there was nothing."""
    rows = [*_hosts(environment), *_guests(environment), *_network(environment)]
    if not rows:
        return
    heading(console, "Surroundings", "as applied and read back; measured while guests moved")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for whose, text in rows:
        grid.add_row(Text(clean(whose)), Text(clean(text)))
    console.print(grid)


def _hosts(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told = environment.get("surroundings") or {}
    for host, held in (told.get("limits") or {}).items():
        versions = held.get("versions") or {}
        parts = []
        if "cpu" in held:
            parts.append(f"{held['cpu']:g} processors' worth (cgroup v{versions.get('cpu', '?')})")
        if "memory" in held:
            peak = f", at most {format_bytes(held['memory_peak'])} used" if "memory_peak" in held else ""
            parts.append(f"{format_bytes(held['memory'])} of memory (cgroup v{versions.get('memory', '?')}{peak})")
        if "cores" in held:
            cores = ", ".join(map(str, held["cores"]))
            parts.append(f"processors {cores} (cgroup v{versions.get('cpuset', '?')})")
        if parts:
            yield host, "limit: " + ", ".join(parts)
    for host, asked in (told.get("load") or {}).items():
        level = (told.get("load_measured") or {}).get(host, {})
        parts = []
        if asked.get("cpu"):
            parts.append(f"{asked['cpu']:g} processors' worth asked, {level.get('cpu_processors', 0):g} measured")
        if asked.get("memory"):
            rate = level.get("memory_bytes_per_s")
            seen = f"{level.get('memory_processors', 0):g} processors" + (f", {format_bytes(rate)}/s" if rate else "")
            parts.append(f"{asked['memory']:g} streaming through memory ({seen})")
        if asked.get("io"):
            written = f"{format_bytes(level.get('written_bytes_per_s', 0))}/s to disk"
            parts.append(f"{asked['io']} writing and syncing ({level.get('io_processors', 0):g} processors, {written})")
        yield host, "load: " + "; ".join(parts)


def _guests(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    guests = environment.get("guests") or {"guest": environment.get("guest") or {}}
    for name, stats in guests.items():
        applied = stats.get("applied") or {}
        for number, vcpu in enumerate(applied.get("vcpus") or ()):
            parts = [f"{vcpu['cpu']:g} of a processor (cgroup v{vcpu.get('version', '?')})"] if "cpu" in vcpu else []
            parts += [f"processor {', '.join(map(str, vcpu['cores']))}"] if "cores" in vcpu else []
            if parts:
                yield name, f"vCPU {number}: {', '.join(parts)}"
        if "huge_bytes" in applied:
            mapped = max([applied["huge_bytes"], *applied.get("vcpus_huge_bytes", ())])
            yield name, f"{format_bytes(mapped)} mapped by huge pages at the run's end"


def _network(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told = environment.get("surroundings") or {}
    for flow in told.get("cross_traffic") or ():
        asked = format_bit_rate(flow["asked_bps"]) if flow["asked_bps"] else "as much as it gets"
        reached = format_bit_rate(flow["reached_bps"])
        yield (
            flow["source"],
            f"cross traffic ({flow['protocol']}) to {flow['destination']}: {asked} asked, {reached} reached",
        )
    for change in told.get("script") or ():
        shown = " / ".join(_direction(change["applied"][way]) for way in ("forward", "backward"))
        when = f"{change['at_ns'] / NS_PER_S:.2f} s after the first migration began"
        yield change["link"], f"{when}: {shown} (took {change['took_ns'] / 1e6:.1f} ms)"


def _direction(applied: Mapping[str, Any]) -> str:
    rate = applied.get("rate_bps")
    parts = [format_bit_rate(rate) if rate else "unlimited"]
    parts += [f"delay {applied['delay_ns'] / 1e6:g} ms"] if applied.get("delay_ns") else []
    parts += [f"loss {100 * applied['loss']:g} %"] if applied.get("loss") else []
    return ", ".join(parts)
