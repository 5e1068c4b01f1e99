"""The guest's disks, what reads and writes them, and the storage side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench import units
from bench.scenario.values import ByteRate, Bytes, DurationNs, Share, Spec, quantity

BLOCK_BYTES = 4096


class DiskSpec(Spec):
    """A disk of a guest; the first is named vda, the next vdb, ...

    ``kind``: ``shared`` is an image on the storage host, ``pass-through`` a whole block device there, reserved for one
    hypervisor at a time, ``local`` an image on the guest's hypervisor, copied to the destination while the guest runs.
    Without ``image`` (a file, or the block device) one of ``size`` is made for the run and goes with it. An image is
    written to, and stays.
    """

    kind: Literal["shared", "pass-through", "local"] = "shared"
    format: Literal["raw", "qcow2", "vhd", "vhdx"] = "raw"
    size: Bytes = 64 << 20
    image: str | None = None

    @field_validator("size")
    @classmethod
    def _size(cls, value: int) -> int:
        if not 4 << 20 <= value <= 1 << 40 or value % (1 << 20):
            raise ValueError("a multiple of 1 MiB from '4MiB' to '1024GiB'")
        return value

    @model_validator(mode="after")
    def _whole_device(self) -> DiskSpec:
        if self.kind == "pass-through" and self.format != "raw":
            raise ValueError("format 'raw' for a pass-through disk, which is a device and no image")
        return self


class DiskWorkloadSpec(Spec):
    """What the guest does on a disk beside everything else. ``rate`` 0: as fast as it goes, up to 8 at a time.

    ``disk``: its number, 0 for the first. ``reads``: the share of operations that read (and check what they read).
    ``sync``: a write is done when it is on the disk.
    """

    disk: Annotated[int, Field(ge=0, le=7)] = 0
    pattern: Literal["sequential", "random"] = "random"
    block: Annotated[int, quantity(units.parse_bytes), Field(ge=BLOCK_BYTES, le=1 << 20, multiple_of=512)] = 64 << 10
    rate: ByteRate = 4 << 20
    reads: Share = 0.3
    sync: bool = False


class StorageSpec(Spec):
    """The storage servers. ``rate``: of each, for reads and writes of all disks together; 0 is unlimited.

    ``timeout``: how long a handover may wait for the disks, before the pause and again in it (requests under way, the
    flush, the release); after that the migration fails, with the reason, and the guest goes on at the source.
    """

    rate: ByteRate = 0
    timeout: DurationNs = 10 * 10**9
    port: Annotated[int, Field(ge=1, le=65535)] = 10809

    @field_validator("timeout")
    @classmethod
    def _timeout(cls, value: int) -> int:
        if not 100 * 10**6 <= value <= 60 * 10**9:
            raise ValueError("a duration from '100ms' to '60s'")
        return value
