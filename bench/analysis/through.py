"""Which segment of a flow got through first after a migration, and when it left its sender. Pure.

That moment ends the *client's wait* of the outage budget (:mod:`bench.analysis.budget`). Whose segment it is depends on
who was cut off in the middle of what:

- ``udp-echo``, ``udp-stream``: the datagram that ended the outage; the flow's records alone say when it was sent.
- ``tcp-upload``, and a ``tcp-request`` whose request was lost: the client's. Its retransmission timer (or its next
  segment) decides: of the client's segments that left the new port (direction out) after the guest's port was wired the
  first; and the time is when that very segment came from the client (direction in at the client's port).
- ``tcp-download``, and a ``tcp-request`` whose reply was cut off: the guest's, after it left repair: the first with
  data that had not reached the client before, as it came out of the new port.

- from the guest: the same, with the guest's server in the client's place.

So for TCP the earlier of the two is taken. Only segments with data count: an acknowledgement, or the answer to the
window probe that ends TCP_REPAIR, moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.analysis.budget import Through
from bench.analysis.flows import Outage
from bench.clock import NS_PER_S
from bench.records import (
    DIRECTION_IN,
    DIRECTION_OUT,
    KIND_IP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    StructuredArray,
    ip_to_int,
)

_U32 = npt.NDArray[np.uint32]

_LOOK_BACK_NS = 10 * NS_PER_S
_PORTS = {
    "udp-echo": 7,
    "udp-stream": 5001,
    "tcp-request": 7,
    "tcp-idle": 7,
    "tcp-upload": 80,
    "http": 80,
    "redis": 6379,
}
_DATAGRAM_KINDS = ("udp-echo", "udp-stream")


def guest_port(kind: str, rate_bps: int) -> int | None:
    """The service's port that a flow of this kind talks to (a paced download is HTTP, the other one chargen)."""
    if kind == "tcp-download":
        return 80 if rate_bps else 19
    return _PORTS.get(kind)


@dataclass(frozen=True, slots=True)
class FlowPath:
    """Where a flow's frames are to be seen: its addresses, and the switch ports next to its ends.

    Interfaces are indexes into the frames' table of interfaces; None where there is no such port or nothing was seen.

    :param client_port: of a flow from the guest that of its server, which stands in the client's place.
    :param guest_port: the service's port; of a flow from the guest its own.
    :param client_interface: the switch port towards the client's host.
    :param new_interface: the switch port towards the *destination* hypervisor.
    :param old_interface: the switch port towards the source hypervisor.
    """

    client_ip: int
    client_port: int
    guest_ip: int
    guest_port: int
    client_interface: int | None
    new_interface: int | None
    old_interface: int | None
    from_guest: bool = False


def flow_path(
    interfaces: tuple[str, ...],
    *,
    client: tuple[str, int],
    guest: tuple[str, int],
    client_interface: str,
    new_interface: str,
    old_interface: str,
    from_guest: bool = False,
) -> FlowPath:
    """A :class:`FlowPath` from names.

    :param interfaces: the table of interface names that belongs to the frames.
    :param client: the client's IPv4 address and the flow's local port.
    :param guest: the guest's IPv4 address and the service's port.
    """
    index = {name: number for number, name in enumerate(interfaces)}
    return FlowPath(
        client_ip=ip_to_int(client[0]),
        client_port=client[1],
        guest_ip=ip_to_int(guest[0]),
        guest_port=guest[1],
        client_interface=index.get(client_interface),
        new_interface=index.get(new_interface),
        old_interface=index.get(old_interface),
        from_guest=from_guest,
    )


def find_through(
    kind: str, frames: StructuredArray, path: FlowPath, wired_ns: int | None, outage: Outage | None
) -> Through:
    """The first segment that got through; see the module.

    :param frames: records of :data:`bench.records.FRAME`, ordered by time; of the whole run, or around the outage.
    :param wired_ns: when the guest's port at the destination was wired; None when that was not observed.
    """
    if outage is None or not outage.recovered:
        return Through()
    # Slices of what is ordered cost nothing; every comparison below costs its whole length.
    begin, end = np.searchsorted(frames["t_ns"], [outage.start_ns - _LOOK_BACK_NS, outage.end_ns + 1])
    frames = frames[begin:end]
    if kind in _DATAGRAM_KINDS:
        left = outage.through_sent_ns
        passed = None if left is None else _probe_passed_ns(frames, path, left, outage.end_ns)
    elif wired_ns is None:
        return Through()
    else:
        left, passed = _first_segment(frames, path, wired_ns, outage)
        if path.from_guest and left is None:
            left = passed = wired_ns  # nothing had to cross: it lay in the queues that moved with the guest
    misdelivered = None if passed is None or wired_ns is None else _misdelivered_ns(frames, path, wired_ns, passed)
    return Through(left, passed, misdelivered)


def seen_at(frames: StructuredArray, interface: int | None, direction: int) -> StructuredArray:
    """Those of one switch port in one direction; none where there is no such port."""
    if interface is None:
        return frames[:0]
    found: StructuredArray = frames[(frames["interface"] == interface) & (frames["direction"] == direction)]
    return found


def of_flow(frames: StructuredArray, path: FlowPath, protocol: int, to_guest: bool) -> StructuredArray:
    """Those of one flow in one direction, at every port."""
    client, guest = (path.client_ip, path.client_port), (path.guest_ip, path.guest_port)
    source, target = (client, guest) if to_guest else (guest, client)
    found: StructuredArray = frames[
        (frames["kind"] == KIND_IP)
        & (frames["protocol"] == protocol)
        & (frames["src_ip"] == source[0])
        & (frames["src_port"] == source[1])
        & (frames["dst_ip"] == target[0])
        & (frames["dst_port"] == target[1])
    ]
    return found


def _probe_passed_ns(frames: StructuredArray, path: FlowPath, sent_ns: int, until_ns: int) -> int | None:
    direction = DIRECTION_IN if path.from_guest else DIRECTION_OUT
    probes = seen_at(of_flow(frames, path, PROTOCOL_UDP, not path.from_guest), path.new_interface, direction)
    times = probes["t_ns"][(probes["t_ns"] >= sent_ns) & (probes["t_ns"] <= until_ns)]
    return int(times.min()) if len(times) else None


def _first_segment(
    frames: StructuredArray, path: FlowPath, wired_ns: int, outage: Outage
) -> tuple[int | None, int | None]:
    """When the first segment left its sender, and when it passed the new port."""
    before_end = frames[(frames["t_ns"] <= outage.end_ns) & (frames["payload"] > 0)]
    candidates = [
        _client_segment(of_flow(before_end, path, PROTOCOL_TCP, to_guest=True), path, wired_ns),
        _guest_segment(of_flow(before_end, path, PROTOCOL_TCP, to_guest=False), path, wired_ns, outage.start_ns),
    ]
    return min((found for found in candidates if found is not None), default=(None, None))


def _client_segment(segments: StructuredArray, path: FlowPath, wired_ns: int) -> tuple[int, int] | None:
    passed = seen_at(segments, path.new_interface, DIRECTION_OUT)
    passed = passed[passed["t_ns"] >= wired_ns]
    if not len(passed):
        return None
    first = passed[int(passed["t_ns"].argmin())]
    left = seen_at(segments, path.client_interface, DIRECTION_IN)
    left = left[left["t_ns"] <= first["t_ns"]]
    # The same segment: its sequence number lies in it (a super-frame may have been cut on its way), sent last.
    into: _U32 = np.uint32(first["seq"]) - left["seq"].astype(np.uint32)
    same = left[into < left["payload"]]
    if not len(same):
        return None
    exact = same[same["ip_id"] == first["ip_id"]]
    return int((exact if len(exact) else same)["t_ns"].max()), int(first["t_ns"])


def _guest_segment(segments: StructuredArray, path: FlowPath, wired_ns: int, start_ns: int) -> tuple[int, int] | None:
    sent = seen_at(segments, path.new_interface, DIRECTION_IN)
    sent = sent[sent["t_ns"] >= wired_ns]
    known = seen_at(segments, path.client_interface, DIRECTION_OUT)
    known = known[known["t_ns"] <= start_ns]
    if len(known):
        end = _furthest((known["seq"] + known["payload"]).astype(np.uint32))
        beyond: _U32 = (sent["seq"] + sent["payload"]).astype(np.uint32) - end
        sent = sent[beyond.view(np.int32) > 0]
    if not len(sent):
        return None
    first = int(sent["t_ns"].min())
    return first, first


def _furthest(numbers: _U32) -> np.uint32:
    """The furthest of TCP sequence numbers that lie within 2 GiB of the last one (RFC 9293, 3.4: modulo 2**32)."""
    ahead = (numbers - numbers[-1]).view(np.int32)
    return np.uint32(numbers[int(ahead.argmax())])


def _misdelivered_ns(frames: StructuredArray, path: FlowPath, wired_ns: int, until_ns: int) -> int | None:
    """The last frame for the guest that went to the old port alone; one that was flooded went to the new one too."""
    around = frames[
        frames["dst_is_guest"]
        & (frames["kind"] == KIND_IP)
        & (frames["t_ns"] >= wired_ns)
        & (frames["t_ns"] < until_ns)
    ]
    old, new = seen_at(around, path.old_interface, DIRECTION_OUT), seen_at(around, path.new_interface, DIRECTION_OUT)
    lost = old["t_ns"][~np.isin(_identity(old), _identity(new))]
    return int(lost.max()) if len(lost) else None


def _identity(frames: StructuredArray) -> npt.NDArray[np.uint64]:
    """What makes a frame that frame wherever it is seen: source port, IP identification and TCP sequence number."""
    identity: npt.NDArray[np.uint64] = np.zeros(len(frames), np.uint64)
    for name, bits in (("src_port", 16), ("ip_id", 16), ("seq", 32)):
        identity = (identity << np.uint64(bits)) + frames[name].astype(np.uint64)
    return identity
