"""The cells of a survival map: which connections are put through which outages. Pure.

The first value of each list of ``[survival]`` is the base. A map holds every outage with every variant, and a variant
is the base with one thing changed, so that what the change did can be read off; crossing everything with everything
would be thousands of cells that nobody reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.clock import NS_PER_S
from bench.errors import ScenarioError
from bench.scenario import SurvivalSpec
from bench.scenario.values import parse_keepalive
from bench.units import format_duration

Pattern = Literal["stream", "request", "idle", "connect"]
End = Literal["client", "guest"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is set for a whole network namespace; each different one is a pair of stations of its own."""

    retries2: int
    rto_min_ns: int
    probes: bool


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP_KEEPIDLE, TCP_KEEPINTVL (whole seconds in the kernel) and TCP_KEEPCNT."""

    idle_ns: int
    interval_ns: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Keepalive:
        """``"1s/1s/5"``; checked by :class:`bench.scenario.SurvivalSpec`."""
        idle_s, interval_s, count = parse_keepalive(text)
        return cls(idle_s * NS_PER_S, interval_s * NS_PER_S, count)


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of connection.

    :param sends_first: whose data is lost: the end that streams, asks, or connects.
    :param keepalive: None: off.
    """

    pattern: Pattern
    sends_first: End
    kernel: Kernel
    congestion: str
    user_timeout_ns: int = 0
    keepalive: Keepalive | None = None

    def label(self, base: Variant) -> str:
        """What differs from the *base*, in words; its pattern always."""
        parts: list[str] = [self.pattern]
        if self.kernel.retries2 != base.kernel.retries2:
            parts.append(f"tcp_retries2 {self.kernel.retries2}")
        if self.user_timeout_ns != base.user_timeout_ns:
            parts.append(f"user timeout {format_duration(self.user_timeout_ns)}")
        if self.kernel.rto_min_ns != base.kernel.rto_min_ns:
            parts.append(f"rto_min {format_duration(self.kernel.rto_min_ns)}")
        if self.congestion != base.congestion:
            parts.append(self.congestion)
        if self.kernel.probes != base.kernel.probes:
            parts.append("with tail-loss probes" if self.kernel.probes else "no tail-loss probes")
        if self.keepalive is not None:
            keep = self.keepalive
            times = f"{keep.idle_ns // NS_PER_S} s + {keep.count} x {keep.interval_ns // NS_PER_S} s"
            parts.append(f"keepalive {times}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Cell:
    """One connection and its outage. *number* is unique in the map and gives the client's port."""

    number: int
    variant: Variant
    outage_ns: int
    repeat: int


def base_of(spec: SurvivalSpec, sends_first: End) -> Variant:
    """What all other variants differ from."""
    return Variant(
        pattern=spec.patterns[0],
        sends_first=sends_first,
        kernel=Kernel(spec.retries2[0], spec.rto_min[0], spec.probes[0]),
        congestion=spec.congestion[0],
        user_timeout_ns=spec.user_timeout[0],
    )


def variants(spec: SurvivalSpec) -> list[Variant]:
    """The base and everything that differs from it in one thing, for each end that may send first; each once."""
    found: list[Variant] = []
    for end in spec.sends_first:
        base = base_of(spec, end)
        found += [base, *(_with_kernel(base, retries2=value) for value in spec.retries2[1:])]
        found += [dataclasses.replace(base, user_timeout_ns=value) for value in spec.user_timeout[1:]]
        found += [_with_kernel(base, rto_min_ns=value) for value in spec.rto_min[1:]]
        found += [_with_kernel(base, probes=value) for value in spec.probes[1:]]
        found += [dataclasses.replace(base, congestion=value) for value in spec.congestion[1:]]
        found += [
            dataclasses.replace(base, pattern=value)
            for value in spec.patterns[1:]
            if value != "connect" or end == "client"
        ]
        if end == "client":
            found += [
                dataclasses.replace(base, pattern="idle", keepalive=Keepalive.parse(text)) for text in spec.keepalive
            ]
    return list(dict.fromkeys(found))


def _with_kernel(base: Variant, **changes: Any) -> Variant:
    return dataclasses.replace(base, kernel=dataclasses.replace(base.kernel, **changes))


def cells(spec: SurvivalSpec, where: str) -> list[Cell]:
    """The whole map. :raises ScenarioError: when it has more cells than ``max_cells``."""
    found = list(_numbered(variants(spec), spec))
    if len(found) > spec.max_cells:
        raise ScenarioError(where, "survival", f"a map of {len(found)} cells", f"up to max_cells, {spec.max_cells}")
    return found


def _numbered(kinds: Sequence[Variant], spec: SurvivalSpec) -> Iterator[Cell]:
    number = 0
    for variant in kinds:
        for outage_ns in spec.outages:
            for repeat in range(spec.repeats):
                yield Cell(number, variant, outage_ns, repeat)
                number += 1
