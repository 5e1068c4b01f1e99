"""How a guest moves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench.scenario.values import BitRate, ByteRate, Bytes, DurationNs, NodeName, Spec


class MigrationSpec(Spec):
    """How the guest moves. QEMU's names and defaults where it has them.

    ``downtime_limit`` ``"min"``: go on as long as another round shrinks the rest. ``precopy_rounds``: of mode
    ``hybrid``, before it goes over to post-copy, which neither compresses pages nor sends deltas.

    ``zero_pages``: send zero pages as numbers. ``compression_level``: zstd 1 to 19, lz4 1 to 12;
    ``compression_threads``: of the zstd library beside the engine's own, 0 for none. ``delta_cache``: memory for copies
    of sent pages, so that later rounds send what changed in them; 0 for none. ``streams``: TCP connections that carry
    the pages of rounds at once, as QEMU's multifd channels. ``auto_converge``: hold the vCPUs back when the guest
    writes faster than the link carries; ``on_no_convergence = "throttle"`` does so only when rounds or time are used
    up. ``dirty_limit``: of each vCPU, kept by holding it back; 0 for none. ``announce_delay``: how long after the
    switchover the announcement begins. ``hold``: how much longer the guest stands still at its destination, everything
    there, before it resumes: a stretched stop, which clients see as an outage. A lever that could do nothing in the
    mode is refused.

    ``security``: what the engines' connections go through. ``tls``: version 1.3, each side known to the other by a
    certificate made for the migration. ``ssh``: tunnelled by paramiko to a real sshd in the destination hypervisor,
    with keys made for the migration and the host's pinned, as libvirt's qemu+ssh does.

    With several guests: ``plan`` says whether they move at once or one after the other. ``evacuate``: every guest of
    this hypervisor moves to another one, each to where most memory is free (``network.guest_memory``) or least is in
    use. ``limit_per_host``: so many migrations at a time may leave or enter a hypervisor; 0 for no limit. The engines
    of the first guest use ``port``, those of the next ones the ports after it.
    """

    mode: Literal["precopy", "stop-and-copy", "postcopy", "hybrid"] = "precopy"
    downtime_limit: Literal["min"] | DurationNs = 300_000_000
    precopy_rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    max_rounds: Annotated[int, Field(ge=1, le=10_000)] = 30
    max_time: DurationNs = 600 * 10**9
    max_bandwidth: BitRate = 0
    on_no_convergence: Literal["force", "cancel", "post-copy", "throttle"] = "force"
    security: Literal["none", "tls", "ssh"] = "none"
    zero_pages: bool = True
    compression: Literal["none", "zstd", "lz4"] = "none"
    compression_level: Annotated[int, Field(ge=1, le=19)] = 1
    compression_threads: Annotated[int, Field(ge=0, le=16)] = 0
    delta_cache: Bytes = 0
    streams: Annotated[int, Field(ge=1, le=16)] = 1
    auto_converge: bool = False
    dirty_limit: ByteRate = 0
    announce_delay: DurationNs = 0
    hold: DurationNs = 0
    verify: Literal["background", "pause", "off"] = "background"
    port: Annotated[int, Field(ge=1, le=65535)] = 49152
    source: NodeName | None = None
    destination: NodeName | None = None
    plan: Literal["parallel", "sequential"] = "parallel"
    evacuate: NodeName | None = None
    limit_per_host: Annotated[int, Field(ge=0, le=64)] = 0

    @model_validator(mode="after")
    def _verifiable(self) -> MigrationSpec:
        post_copy = self.mode in ("postcopy", "hybrid") or self.on_no_convergence == "post-copy"
        if self.hold and post_copy:
            raise ValueError("hold '0s' with post-copy, which resumes the guest before everything is there")
        if self.verify == "pause" and post_copy:
            raise ValueError("verify 'background' or 'off' with post-copy, which sends memory after the pause")
        return self

    @field_validator("delta_cache")
    @classmethod
    def _delta_cache(cls, value: int) -> int:
        if value and not 1 << 20 <= value <= 64 << 30:
            raise ValueError("'0', or from '1MiB' to '64GiB'")
        return value

    @field_validator("dirty_limit")
    @classmethod
    def _dirty_limit(cls, value: int) -> int:
        if value and value < 1 << 20:
            raise ValueError("'0', or at least '1MiB/s'")
        return value

    @field_validator("hold")
    @classmethod
    def _hold(cls, value: int) -> int:
        if value > 600 * 10**9:
            raise ValueError("a duration up to '600s'")
        return value

    @field_validator("announce_delay")
    @classmethod
    def _announce_delay(cls, value: int) -> int:
        if value > 60 * 10**9:
            raise ValueError("a duration up to '60s'")
        return value

    @model_validator(mode="after")
    def _compresses(self) -> MigrationSpec:
        if self.compression == "lz4" and (self.compression_level > 12 or self.compression_threads):
            raise ValueError("a compression_level up to 12 and compression_threads = 0 with lz4")
        if self.compression == "none" and (self.compression_level != 1 or self.compression_threads):
            raise ValueError("compression_level and compression_threads only with compression = 'zstd' or 'lz4'")
        return self

    @model_validator(mode="after")
    def _levers_work(self) -> MigrationSpec:
        if self.mode == "postcopy" and self.compression != "none":
            raise ValueError("compression 'none' with mode 'postcopy', which sends each page when it is asked for")
        if self.mode == "postcopy" and self.streams > 1:
            raise ValueError("streams 1 with mode 'postcopy', which has no rounds that more could carry")
        if self.mode in ("postcopy", "stop-and-copy"):
            if self.delta_cache:
                raise ValueError(f"delta_cache '0' with mode '{self.mode}', which sends each page once")
            if self.auto_converge or self.dirty_limit:
                raise ValueError(
                    f"no auto_converge or dirty_limit with mode '{self.mode}', which has no rounds while the guest runs"
                )
        if self.mode != "precopy" and self.on_no_convergence == "throttle":
            raise ValueError(
                f"on_no_convergence 'throttle' only with mode 'precopy': '{self.mode}' does not wait for it"
            )
        return self
