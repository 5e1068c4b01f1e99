"""The levers of a migration as its order names them: everything off, or as cheap as nothing, by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.errors import MigrationError
from bench.migration.compression import DEFAULT_LEVEL, NONE, load_codec

MAX_DELTA_CACHE_BYTES: Final = 1 << 40
MAX_DIRTY_LIMIT: Final = 1 << 40
MAX_STREAMS: Final = 16


@dataclass(frozen=True, slots=True)
class Levers:
    """See :class:`bench.scenario.MigrationSpec` for what they mean.

    :param streams: connections that carry the pages of rounds.
    :param delta_cache_bytes: 0 for no delta.
    :param throttle_late: ``on_no_convergence`` is ``throttle``: begin to throttle when rounds or time are used up.
    :param dirty_limit_bytes_per_s: per vCPU; 0 for none.
    :param cgroup: a control group of the run's own with a CPU controller, below which groups for vCPUs are made; empty
        for none, so that vCPUs are paused for a share of each period instead.
    :param announce_delay_ns: how much later than without it the announcement begins; the guest is told so by its
        announcement, the engine only counts it.
    """

    zero_pages: bool = True
    compression: str = NONE
    compression_level: int = DEFAULT_LEVEL
    compression_threads: int = 0
    delta_cache_bytes: int = 0
    streams: int = 1
    auto_converge: bool = False
    throttle_late: bool = False
    dirty_limit_bytes_per_s: int = 0
    cgroup: str = ""
    announce_delay_ns: int = 0

    @classmethod
    def from_json(cls, migration: Mapping[str, Any]) -> Levers:
        """From the ``migration`` object of an order. :raises MigrationError: naming the key that is wrong."""
        levers = cls(
            zero_pages=_get(migration, "zero_pages", True),
            compression=_get(migration, "compression", NONE),
            compression_level=_get(migration, "compression_level", DEFAULT_LEVEL),
            compression_threads=_get(migration, "compression_threads", 0),
            delta_cache_bytes=_get(migration, "delta_cache_bytes", 0, MAX_DELTA_CACHE_BYTES),
            streams=_get(migration, "streams", 1, MAX_STREAMS, least=1),
            auto_converge=_get(migration, "auto_converge", False),
            throttle_late=migration.get("on_no_convergence") == "throttle",
            dirty_limit_bytes_per_s=_get(migration, "dirty_limit_bytes_per_s", 0, MAX_DIRTY_LIMIT),
            cgroup=_get(migration, "cgroup", ""),
            announce_delay_ns=_get(migration, "announce_delay_ns", 0),
        )
        load_codec(levers.compression, levers.compression_level, levers.compression_threads)
        return levers


def _get(migration: Mapping[str, Any], key: str, default: Any, most: int | None = None, least: int = 0) -> Any:
    value = migration.get(key, default)
    good = type(value) is type(default) and (most is None or least <= value <= most)
    if not good:
        raise MigrationError(f"migrate: migration: {key} cannot be {str(value)[:80]!r}")
    return value
