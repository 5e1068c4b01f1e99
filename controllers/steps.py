"""What the network-wide apps' logic hands to their shim, beside the steps of :mod:`.learning_logic`. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from controllers.learning_logic import Output, Step


@dataclass(frozen=True, slots=True)
class PacketOut:
    """Send a frame out of ports of a switch."""

    data: bytes
    outputs: tuple[Output, ...]
    in_port: int | None = None


@dataclass(frozen=True, slots=True)
class At:
    """A step at one switch. Steps take effect in their order, per switch."""

    dpid: int
    step: Step | PacketOut


Steps: TypeAlias = list[At]
