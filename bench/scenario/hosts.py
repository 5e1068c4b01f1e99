"""What surrounds the migration: limits of hypervisors, load on them, cross traffic, and links that change meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench.scenario.values import FROM_LIST, Bandwidth, BitRate, Bytes, DurationNs, NodeName, Share, Spec


class LoadSpec(Spec):
    """Work beside the guests on a hypervisor, by stress-ng, within the hypervisor's limits.

    ``cpu``: so many processors' worth, such as 0.5. ``memory``: so many processors' worth of streaming through
    memory: whole ones, or a share of one such as 0.5. ``io``: processes that write to the disk of the machine and sync.
    """

    cpu: Annotated[float, Field(ge=0, le=64, strict=False)] = 0.0
    memory: Annotated[float, Field(ge=0, le=64, strict=False)] = 0.0
    io: Annotated[int, Field(ge=0, le=64)] = 0

    @field_validator("memory")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and value != round(value):
            raise ValueError("a share from 0.01 to 1, or a whole number up to 64")
        if 0 < value < 0.01:
            raise ValueError("0, or a share from 0.01 on")
        return value


class HostSpec(Spec):
    """One hypervisor: the guests, engines and load on it together, held to this by control groups.

    ``cpu``: how many processors' worth of time they get, such as 0.5 or 2; 0 for no limit. ``memory``: of all of them,
    guests and 192 MiB for what runs them; 0 for no limit. ``cores``: the processors of this machine that they may run
    on, such as ``[0]`` or ``[0, 1]``; none for all. What this machine cannot hold them to is refused.

    ``nic``: the speed of each of its cards, which both directions of what is plugged into it are held to, whatever the
    link allows; 0 for the link's. ``mtu``: of its cards and the switch ports at their other ends; 0 for the link's.
    """

    cpu: Annotated[float, Field(ge=0, le=1024, strict=False)] = 0.0
    memory: Bytes = 0
    cores: Annotated[tuple[Annotated[int, Field(ge=0, le=1023)], ...], FROM_LIST] = ()
    nic: Bandwidth = 0
    mtu: Annotated[int, Field(ge=0, le=9216)] = 0
    load: LoadSpec = LoadSpec()

    @model_validator(mode="after")
    def _enough(self) -> HostSpec:
        if self.cpu and self.cpu < 0.01:
            raise ValueError("a cpu of 0 (no limit) or at least 0.01")
        if self.memory and self.memory < 64 << 20:
            raise ValueError("a memory of 0 (no limit) or at least '64MiB'")
        if self.mtu and self.mtu < 576:
            raise ValueError("an mtu of 0 (the link's), or from 576 to 9216")
        if self.nic and not 8_000 <= self.nic <= 400 * 10**9:
            raise ValueError("a nic of 'unlimited', or from '8kbit' to '400Gbit'")
        if len(set(self.cores)) != len(self.cores):
            raise ValueError("cores that differ from each other")
        return self


class CrossTrafficSpec(Spec):
    """One iperf3 flow beside the migration, for the whole run. ``rate`` 0: as fast as TCP goes; not for udp."""

    source: NodeName
    destination: NodeName
    rate: BitRate = 0
    protocol: Literal["tcp", "udp"] = "tcp"

    @property
    def ends(self) -> tuple[str, str]:
        """Both hosts."""
        return self.source, self.destination

    @model_validator(mode="after")
    def _possible(self) -> CrossTrafficSpec:
        if self.source == self.destination:
            raise ValueError("two different hosts")
        if self.protocol == "udp" and not self.rate:
            raise ValueError("a rate for udp")
        return self


class ScriptSpec(Spec):
    """A change of a link while guests move, ``at`` a time after the first migration begins; again in every repetition.

    Keys that are left out stay as they were. A delay needs a link that was built with one.
    """

    at: DurationNs
    link: str
    bandwidth: Bandwidth | None = None
    delay: DurationNs | None = None
    jitter: DurationNs | None = None
    loss: Share | None = None

    @model_validator(mode="after")
    def _changes(self) -> ScriptSpec:
        if all(getattr(self, key) is None for key in ("bandwidth", "delay", "jitter", "loss")):
            raise ValueError("a bandwidth, delay, jitter or loss to change to")
        return self
