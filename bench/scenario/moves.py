"""Which guest moves where and when, where that is not simply "the guest to the other host"."""

from __future__ import annotations

from pydantic import field_validator

from bench.scenario.values import DurationNs, NodeName, Spec


class MoveSpec(Spec):
    """One migration of a guest, from wherever it is then. Without any ``[[moves]]`` every guest moves once: to
    ``migration.destination`` (if it is there, it stays), or else to the first hypervisor that it is not on.

    ``guest`` may be left out where there is only one. ``start``: not before so long after the first migration's start.
    """

    guest: NodeName | None = None
    destination: NodeName
    start: DurationNs = 0

    @field_validator("start")
    @classmethod
    def _start(cls, value: int) -> int:
        if value > 3600 * 10**9:
            raise ValueError("a duration up to '60min'")
        return value
