"""The guest: its memory, what that holds, and who writes it."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench import units
from bench.scenario.cards import MAX_MORE_CARDS, CardSpec, Interface6, Vlan, further_mac
from bench.scenario.disks import DiskSpec, DiskWorkloadSpec
from bench.scenario.values import FROM_LIST, PAGE_BYTES, ByteRate, Bytes, DurationNs, NodeName, Share, Spec, quantity


class ContentSpec(Spec):
    """The mix of page contents that memory is filled with; the shares sum to 1."""

    zero: Share = 0.3
    text: Share = 0.4
    random: Share = 0.3

    @model_validator(mode="after")
    def _sums(self) -> ContentSpec:
        if abs(self.zero + self.text + self.random - 1) > 1e-6:
            raise ValueError("shares zero + text + random that sum to 1")
        return self


class WorkloadSpec(Spec):
    """What the vCPUs write. ``rate`` counts every page write as 4 KiB, so it is the rate of modified memory.

    ``hotset``: a ``hot_share`` of the writes goes uniformly to the first ``working_set`` bytes, the rest uniformly
    to all memory. ``write_bytes`` is how many bytes of a page one write changes. ``trace``: the pages of the file of
    that name, at its times, whatever the rate (docs/trace.md).
    """

    pattern: Literal["idle", "sequential", "uniform", "hotset", "trace"] = "hotset"
    rate: ByteRate = 40 << 20
    working_set: Bytes = 64 << 20
    hot_share: Share = 0.9
    write_bytes: Annotated[int, quantity(units.parse_bytes), Field(ge=16, le=PAGE_BYTES, multiple_of=8)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    trace: str | None = None

    @model_validator(mode="after")
    def _has_trace(self) -> WorkloadSpec:
        if (self.pattern == "trace") != (self.trace is not None):
            raise ValueError("a trace (a file of `bench record-trace`) with pattern 'trace' and only there")
        return self


class GuestSpec(Spec):
    """A guest. ``[guest]`` is the guest of a scenario with one, and says what the ``[[guests]]`` of others do not.

    ``host``: the hypervisor that it boots on; by default ``migration.source``, else the first one. Name, address, MAC
    address and ``workload.seed`` of one of several guests are its own: counted up from those of ``[guest]``.
    ``chatter``: how often it broadcasts something by itself; 0: it is silent, and only answers.
    ``keep_unread``: datagrams that had reached the guest and that it had not read when it was paused move with it, and
    it answers them as soon as it resumes: a sign of life, by which switches learn where it is. Without, they are lost,
    as where a network back end does not carry its receive queue.
    ``gateway``: its default route.
    ``vlan``: of its card's port at the hypervisors, whose own ports carry all VLANs; 0 for none. ``address6``: its IPv6
    address with its prefix length; without it the guest has no IPv6. ``cards``: more network cards. VLANs, IPv6
    addresses and cards of ``[guest]`` are not those of several ``[[guests]]``, which have their own.

    ``vcpu_cpu``: the share of a processor that each vCPU gets at most, by a control group of its own; 0 for no limit.
    ``vcpu_cores``: the processors of this machine that its vCPUs are pinned to, one after the other, round and round;
    none: wherever the hypervisor lets them. ``huge_pages``: its memory lies in pages of 2 MiB; while it is migrated it
    is mapped by 4 KiB, as under KVM.

    ``durable``: the Redis store answers a change only when it is on the first disk, in a log of ``log_size`` there.
    """

    name: NodeName = "g1"
    memory: Bytes = 1024 << 20
    vcpus: Annotated[int, Field(ge=1, le=16)] = 1
    vcpu_cpu: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.0
    vcpu_cores: Annotated[tuple[Annotated[int, Field(ge=0, le=1023)], ...], FROM_LIST] = ()
    huge_pages: bool = False
    content: ContentSpec = ContentSpec()
    image: str | None = None
    store_memory: Bytes = 8 << 20
    address: str = "10.0.1.1"
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] = "52:54:00:00:00:01"
    gateway: str | None = None
    vlan: Vlan = 0
    address6: Interface6 | None = None
    cards: Annotated[tuple[CardSpec, ...], FROM_LIST, Field(max_length=MAX_MORE_CARDS)] = ()
    chatter: DurationNs = 0
    keep_unread: bool = True
    workload: WorkloadSpec = WorkloadSpec()
    disks: Annotated[tuple[DiskSpec, ...], FROM_LIST, Field(max_length=8)] = ()
    disk_workload: DiskWorkloadSpec | None = None
    durable: bool = False
    log_size: Bytes = 8 << 20
    host: NodeName | None = None

    @property
    def all_cards(self) -> tuple[CardSpec, ...]:
        """The first one, which the guest's own keys describe and whose prefix length is the network's, and the others;
        each with its MAC address.
        """
        first = CardSpec.model_construct(address=self.address, address6=self.address6, mac=self.mac, vlan=self.vlan)
        more = (
            card.model_copy(update={"mac": card.mac or further_mac(self.mac, number)})
            for number, card in enumerate(self.cards, 1)
        )
        return (first, *more)

    @field_validator("chatter")
    @classmethod
    def _chatter(cls, value: int) -> int:
        if value and not 1_000_000 <= value <= 60 * 10**9:
            raise ValueError("'0', or from '1ms' to '60s'")
        return value

    @field_validator("gateway")
    @classmethod
    def _gateway(cls, value: str | None) -> str | None:
        try:
            return value and str(ipaddress.IPv4Address(value))
        except ValueError:
            raise ValueError("an IPv4 address") from None

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: int) -> int:
        if value < 4 << 20 or value > 64 << 30 or value % PAGE_BYTES:
            raise ValueError("a multiple of 4 KiB from '4MiB' to '64GiB'")
        return value

    @field_validator("store_memory")
    @classmethod
    def _store(cls, value: int) -> int:
        if value < 1 << 20 or value % PAGE_BYTES:
            raise ValueError("a multiple of 4 KiB of at least '1MiB'")
        return value

    @field_validator("mac")
    @classmethod
    def _unicast(cls, value: str) -> str:
        if int(value[:2], 16) & 1:
            raise ValueError("a unicast MAC address (the lowest bit of the first byte is 0)")
        return value

    @field_validator("log_size")
    @classmethod
    def _log(cls, value: int) -> int:
        if value < 1 << 20 or value % PAGE_BYTES:
            raise ValueError("a multiple of 4 KiB of at least '1MiB'")
        return value

    @model_validator(mode="after")
    def _has_disks(self) -> GuestSpec:
        if self.durable and not self.disks:
            raise ValueError("a disk ([[guest.disks]]) for a durable store")
        if self.durable and not self.disks[0].image and self.log_size >= self.disks[0].size:
            raise ValueError("a log_size below the size of the first disk, which holds the log")
        if self.disk_workload is not None and self.disk_workload.disk >= len(self.disks):
            raise ValueError(f"a disk_workload on one of the {len(self.disks)} disks")
        return self

    @model_validator(mode="after")
    def _whole_huge_pages(self) -> GuestSpec:
        if self.huge_pages and self.memory % (2 << 20):
            raise ValueError("a memory that is a multiple of 2 MiB, with huge_pages")
        if self.vcpu_cpu and self.vcpu_cpu < 0.01:
            raise ValueError("a vcpu_cpu of 0 (no limit), or from 0.01 to 1")
        return self

    @model_validator(mode="after")
    def _fits(self) -> GuestSpec:
        if self.store_memory > self.memory // 2:
            raise ValueError("store_memory of at most half of the guest's memory")
        return self
