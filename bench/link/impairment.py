"""What one direction of a link does to frames, as integers; pure.

:class:`Direction` is what the rest of :mod:`bench.link` works on; a scenario's ``LinkSpec`` becomes two of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.clock import NS_PER_S

if TYPE_CHECKING:  # the delay line's process stays lean: no pydantic
    from bench.scenario import LinkSpec

ETHERNET_HEADER_BYTES = 14
DEFAULT_MTU = 1500
FRAME_BYTES = DEFAULT_MTU + ETHERNET_HEADER_BYTES
"""A full-size Ethernet frame without its checksum (MTU 1500): what Linux queues count."""

MIN_HELD_BYTES = 4 << 20
UNSHAPED_HELD_BYTES = 256 << 20
MAX_HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class Direction:
    """One direction of a link.

    :param rate_bps: bit/s of Ethernet frames; 0 is unshaped.
    :param delay_ns: one way.
    :param jitter_ns: half-width of a uniform deviation from the delay; the order of frames is kept.
    :param loss: probability 0..1 for each MTU-sized frame.
    :param queue_packets: length of the bottleneck queue in full-size frames; without a rate there is no bottleneck
        and so no queue.
    :param mtu: the largest IP packet, in bytes, at both ends.
    """

    rate_bps: int = 0
    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    queue_packets: int = 1000
    mtu: int = DEFAULT_MTU

    @property
    def frame_bytes(self) -> int:
        """A full-size frame without its checksum."""
        return self.mtu + ETHERNET_HEADER_BYTES

    @property
    def queue_bytes(self) -> int:
        return self.queue_packets * self.frame_bytes

    @property
    def delayed(self) -> bool:
        """True when this direction does more than limit the rate."""
        return bool(self.delay_ns or self.jitter_ns or self.loss)

    @property
    def held_limit_bytes(self) -> int:
        """How many bytes the delay line may hold: twice what fits on the wire at this rate and delay.

        At least 4 MiB, at most 1 GiB; unshaped 256 MiB. What exceeds it is dropped and counted.
        """
        if not self.rate_bps:
            return UNSHAPED_HELD_BYTES
        wire = self.rate_bps * (self.delay_ns + self.jitter_ns) // (8 * NS_PER_S)
        return min(max(2 * wire, MIN_HELD_BYTES), MAX_HELD_BYTES)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_spec(spec: LinkSpec) -> tuple[Direction, Direction]:
    """(forward, backward): from the link's first node to its second, and back.

    Backward is as forward but for the keys that ``reverse`` gives; a delay given there alone bounds the jitter.
    """
    forward = Direction(spec.bandwidth, spec.delay, spec.jitter, spec.loss, spec.queue, spec.mtu)
    reverse = spec.reverse
    if reverse is None:
        return forward, forward
    delay_ns = forward.delay_ns if reverse.delay is None else reverse.delay
    jitter_ns = min(forward.jitter_ns, delay_ns) if reverse.jitter is None else reverse.jitter
    return forward, Direction(
        rate_bps=forward.rate_bps if reverse.bandwidth is None else reverse.bandwidth,
        delay_ns=delay_ns,
        jitter_ns=jitter_ns,
        loss=forward.loss if reverse.loss is None else reverse.loss,
        queue_packets=forward.queue_packets if reverse.queue is None else reverse.queue,
        mtu=forward.mtu,
    )
