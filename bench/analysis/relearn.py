"""How the network relearnt where the guest is: the wave after its announcement left the destination. Pure.

Two witnesses for every switch on the way: the *controller's events* (an announcement or a moved MAC address; the
barrier that confirms new flows) and the *frames* for the guest that leave the switch's ports. A barrier says what the
switch's tables hold, frames say what the switch does; a switch can also flap back. So a switch counts as **stable**
from the moment after which no frame for the guest went anywhere else again:

- not before the last frame for the guest that left by another port than the one towards its new place;
- not before the switch was told, if that is known: by the controller (the barrier's answer), or, without a
  controller, by the announcement that came in. A frame that left by the right port earlier than that proves that it
  was stable already;
- not known (None) when no frame for the guest was seen to leave by the new port thereafter.

Only IP frames count as frames *for the guest*: an ARP request for it is a broadcast, which leaves by every port by
rights.

The frames are :data:`bench.records.FRAME` records ordered by time; of these fields are used: t_ns, interface,
direction, kind, is_announce, dst_is_guest, and as a frame's identity protocol, flags, addresses, ports, ip_id, seq,
ack and payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.analysis.flows import Window
from bench.analysis.switch_state import TOLERANCE_NS, State, conntrack_counts, disagreement, neighbour_changes, state_of
from bench.clock import NS_PER_MS
from bench.records import (
    DIRECTION_IN,
    DIRECTION_OUT,
    KIND_ARP,
    KIND_IP,
    KIND_RARP,
    StructuredArray,
    mac_to_int,
)
from bench.result import RelearnResult, SwitchRelearn
from bench.timeline import Event, Timeline

SAME_FRAME_NS: Final = 5 * NS_PER_MS
"""Copies of one frame leave the ports of a switch within this time."""
THROUGH_NS: Final = 200 * NS_PER_MS
"""A frame crosses a switch, its queue included, within this time, or it was dropped."""
BATCH_NS: Final = 300_000
"""The kernel stamps a frame, and the switch's state is stamped, so far apart."""
OUT_OF_ORDER_NS: Final = 200_000
"""A switch hands frames over in batches, port by port: so little later does not yet mean "after"."""

_IDENTITY: Final = (
    *("protocol", "flags", "src_ip", "dst_ip", "src_port", "dst_port", "ip_id", "seq", "ack", "payload"),
)
_Times = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Controller:
    """What the controller says of one switch; None where it said nothing."""

    seen_ns: int | None = None
    confirmed_ns: int | None = None
    told_ns: int | None = None
    moves: int = 0


@dataclass(frozen=True, slots=True)
class _Frames:
    """Where frames for the guest left one switch, by time.

    :param right: by the new port. :param old: by the old port. :param old_alone: for each of *old*, no copy left
        elsewhere.
    :param elsewhere: by any port but the new one. :param flooded: frames that left by more than one port.
    """

    right: _Times
    old: _Times
    old_alone: _Flags
    elsewhere: _Times
    flooded: int


def analyse_relearning(
    timeline: Timeline,
    window: Window,
    frames: StructuredArray,
    interfaces: Sequence[str],
    *,
    mac: str,
    ports: Mapping[str, Mapping[str, str | None]],
    distances: Mapping[str, int] | None = None,
    card: int = 0,
) -> RelearnResult:
    """The relearning of the migration in *window*.

    :param interfaces: names; ``frames["interface"]`` indexes it. A switch's ports are those whose names begin with
        its own and a hyphen (Mininet's ``s1-eth2``), beside the two in *ports*.
    :param mac: the guest's MAC address, ``52:54:00:00:00:01``.
    :param ports: for each switch the names of its ports towards the guest's places, ``{"new_port": ..., "old_port":
        ...}``; None or missing where there is no such port. On a switch where both are the same, nothing has to be
        relearnt.
    :param distances: switch -> switches between it and the guest's new place.
    :param card: the number of the guest's card that has *mac*.
    :returns: without switches when the guest did not resume at the destination.
    """
    events = timeline.select(after_ns=window.start_ns, before_ns=window.end_ns)
    guests = [event for event in events if event.source.startswith("guest.")]
    resumed = [event.t_ns for event in guests if event.name == "resumed"] or [
        event.t_ns for event in events if event.source == "engine.destination" and event.name == "resumed"
    ]
    if not resumed:
        return RelearnResult(announce_ns=None)
    resumed_ns = resumed[0]
    announced = [
        event.t_ns
        for event in guests
        if event.name == "announce_sent" and event.t_ns >= resumed_ns and event.data.get("card", 0) == card
    ]
    wired_ns = next((event.t_ns for event in guests if event.name == "port_wired"), resumed_ns)
    got_out = [t_ns for t_ns in announced if t_ns >= wired_ns]  # earlier ones died at the hypervisor's port
    about = [
        event
        for event in events
        if event.source == "controller" and event.t_ns >= resumed_ns and event.data.get("mac") == mac
    ]
    controlled = any(event.source == "controller" for event in timeline)
    after = frames[(frames["t_ns"] >= resumed_ns) & (frames["t_ns"] < window.end_ns)]
    seen = _Seen(after, interfaces)
    switches = []
    for name, both in ports.items():
        state = state_of(name, both.get("new_port"), mac, events, resumed_ns)
        switch = _switch(name, both, _controller(name, about), seen, resumed_ns, controlled=controlled)
        switches.append(
            _with_state(switch, both, state, seen, mac).model_copy(update={"distance": (distances or {}).get(name)})
        )
    watched = any(switch.state_by for switch in switches)
    return RelearnResult(
        announce_ns=min(got_out, default=None),
        announcements=len(announced),
        tolerance_ns=TOLERANCE_NS if watched or controlled else None,
        switches=switches,
        neighbours=neighbour_changes(events, resumed_ns),
        conntrack=conntrack_counts(events, resumed_ns),
    )


def relearned_ns(result: RelearnResult, switches: Iterable[str]) -> int | None:
    """When all of *switches* (those on one client's way to the guest) were stable; None when one was not seen to be."""
    stable = {switch.name: switch.stable_ns for switch in result.switches}
    moments = [stable.get(name) for name in switches]
    known = [moment for moment in moments if moment is not None]
    return max(known) if known and len(known) == len(moments) else None


def _controller(switch: str, about: Sequence[Event]) -> _Controller:
    """*about*: the controller's events about the guest's address since the resume."""
    here = [event for event in about if event.data.get("switch") == switch]
    seen = [event.t_ns for event in here if event.name in ("announcement", "mac_moved", "mac_learned")]
    changes = [event.t_ns for event in here if event.name in ("mac_moved", "mac_learned")]
    answers = [event for event in here if event.name == "barrier_answered"]
    asked = {event.data.get("xid"): event.t_ns for event in here if event.name == "barrier_sent"}

    def answer_ns(change_ns: int) -> int | None:
        """The first answer to a barrier that was sent after a change was decided."""
        return next((event.t_ns for event in answers if asked.get(event.data.get("xid"), -1) >= change_ns), None)

    return _Controller(
        seen_ns=min(seen, default=None),
        confirmed_ns=answer_ns(changes[0]) if changes else None,
        told_ns=answer_ns(changes[-1]) if changes else None,
        moves=sum(event.name == "mac_moved" for event in here),
    )


class _Seen:
    """The frames since the resume, by port."""

    def __init__(self, frames: StructuredArray, interfaces: Sequence[str]) -> None:
        self._frames = frames
        self._interfaces = list(interfaces)

    def _at(self, names: Sequence[str | None], direction: int) -> StructuredArray:
        wanted = [self._interfaces.index(name) for name in names if name in self._interfaces]
        chosen = np.isin(self._frames["interface"], wanted) & (self._frames["direction"] == direction)
        found: StructuredArray = self._frames[chosen]
        return found

    def _for_guest(self, names: Sequence[str | None]) -> StructuredArray:
        out = self._at(names, DIRECTION_OUT)
        found: StructuredArray = out[out["dst_is_guest"] & (out["kind"] == KIND_IP)]
        return found

    def announcement_in(self, port: str | None) -> int | None:
        """When the first announcement of the guest came in by *port*."""
        arrived = self._at([port], DIRECTION_IN)
        arrived = arrived[arrived["is_announce"]]
        return int(arrived["t_ns"][0]) if len(arrived) else None

    def before(self, port: str | None, mac: int, moment_ns: int | None) -> str:
        """The kind of the last frame from *mac* that came in by *port* until *moment_ns*; "" when there was none."""
        if moment_ns is None:
            return ""
        came = self._at([port], DIRECTION_IN)
        came = came[(came["src_mac"] == mac) & (came["t_ns"] <= moment_ns + BATCH_NS)]
        if not len(came):
            return ""
        last = came[-1]
        if last["is_announce"]:
            return {KIND_RARP: "rarp", KIND_ARP: "garp"}.get(int(last["kind"]), "na")
        return {KIND_IP: "ip", KIND_ARP: "arp"}.get(int(last["kind"]), "other")

    def dropped(self, name: str, new: str | None, old: str | None) -> int:
        """How many frames for the guest came in at a switch and left by none of its ports."""
        ports = {port for port in self._interfaces if port.startswith(f"{name}-")} | {new, old} - {None}
        came = self._at(sorted(port for port in ports if port), DIRECTION_IN)
        came = came[came["dst_is_guest"] & (came["kind"] == KIND_IP)]
        left = self._for_guest(sorted(port for port in ports if port))
        if len(came) and len(left):  # those at the end may only be on their way through
            came = came[came["t_ns"] < left["t_ns"][-1] - THROUGH_NS]
        return int(np.count_nonzero(~_copied(came, left, THROUGH_NS)))

    def of_switch(self, name: str, new: str | None, old: str | None) -> _Frames:
        """Where the frames for the guest left the switch *name*."""
        others = [port for port in self._interfaces if port.startswith(f"{name}-") and port not in (new, old)]
        right = self._for_guest([new])
        gone_old = self._for_guest([old] if old != new else [])
        gone_other = self._for_guest(others)
        elsewhere = np.sort(np.concatenate([gone_old["t_ns"], gone_other["t_ns"]]))
        old_alone = ~(_copied(gone_old, right) | _copied(gone_old, gone_other))
        # A frame that went to n ports is one flooded frame: counted at the new port, or at the old one without that.
        flooded = int(np.count_nonzero(_copied(right, gone_old) | _copied(right, gone_other)))
        flooded += int(np.count_nonzero(_copied(gone_old, gone_other) & ~_copied(gone_old, right)))
        return _Frames(right["t_ns"], gone_old["t_ns"], old_alone, elsewhere, flooded)


def _copied(frames: StructuredArray, among: StructuredArray, within_ns: int = SAME_FRAME_NS) -> _Flags:
    """For each of *frames* whether *among* holds the same frame, left at about the same time."""
    result = np.zeros(len(frames), np.bool_)
    if not len(frames) or not len(among):
        return result
    here, there = _overlap(frames, among, within_ns), _overlap(among, frames, within_ns)
    times: dict[Any, list[int]] = {}
    for key, t_ns in zip(_identities(among[there]), among["t_ns"][there].tolist(), strict=True):
        times.setdefault(key, []).append(t_ns)
    result[here] = [
        any(abs(t_ns - other_ns) <= within_ns for other_ns in times.get(key, ()))
        for key, t_ns in zip(_identities(frames[here]), frames["t_ns"][here].tolist(), strict=True)
    ]
    return result


def _overlap(frames: StructuredArray, among: StructuredArray, within_ns: int) -> slice:
    """Which of *frames*, by time, can be copies of one of *among*."""
    begin = np.searchsorted(frames["t_ns"], among["t_ns"][0] - within_ns)
    end = np.searchsorted(frames["t_ns"], among["t_ns"][-1] + within_ns, side="right")
    return slice(int(begin), int(end))


def _identities(frames: StructuredArray) -> list[Any]:
    identities: list[Any] = frames[list(_IDENTITY)].tolist()
    return identities


def _switch(
    name: str,
    ports: Mapping[str, str | None],
    controller: _Controller,
    seen: _Seen,
    resumed_ns: int,
    *,
    controlled: bool,
) -> SwitchRelearn:
    new, old = ports.get("new_port"), ports.get("old_port")
    frames = seen.of_switch(name, new, old)
    if new == old:
        told_ns: int | None = resumed_ns
    else:
        told_ns = controller.told_ns if controlled else seen.announcement_in(new)
    return SwitchRelearn(
        name=name,
        controller_ns=controller.seen_ns,
        confirmed_ns=controller.confirmed_ns,
        first_frame_ns=int(frames.right[0]) if len(frames.right) else None,
        stable_ns=_stable_ns(frames, told_ns),
        frames_to_old_port=len(frames.old),
        frames_flooded=frames.flooded,
        flapped=max(_returns(frames), controller.moves // 2),
    )


def _with_state(
    switch: SwitchRelearn, ports: Mapping[str, str | None], state: State, seen: _Seen, mac: str
) -> SwitchRelearn:
    """Beside the frames and the controller: the switch's own state, and whether the three agree."""
    new, old = ports.get("new_port"), ports.get("old_port")
    frames = seen.of_switch(switch.name, new, old)
    changed = [switch.confirmed_ns, state.settled_ns, switch.stable_ns]
    by_ns = next((moment for moment in (state.settled_ns, switch.controller_ns, switch.stable_ns) if moment), None)
    differ = ""
    if new != old and any(moment is not None for moment in changed):
        differ = disagreement(
            switch.confirmed_ns, state.settled_ns, frames.right.tolist(), np.sort(frames.elsewhere).tolist()
        )
        if state.changes and state.settled_ns is None:
            differ = "; ".join(text for text in (differ, "its tables did not stay with the new port") if text)
    return switch.model_copy(
        update={
            "state_ns": state.settled_ns,
            "state_by": state.how,
            "vlan": state.vlan,
            "by": seen.before(new, mac_to_int(mac), by_ns) if new != old else "",
            "frames_dropped": seen.dropped(switch.name, new, old),
            "flapped": max(switch.flapped, (state.changes - 1) // 2 if state.how != "flow monitor" else 0),
            "differ": differ,
        }
    )


def _stable_ns(frames: _Frames, told_ns: int | None) -> int | None:
    """See the module's text; *told_ns* is when the switch was told where the guest is, None when that is not known."""
    last_ns = int(frames.elsewhere[-1]) if len(frames.elsewhere) else None
    right = frames.right if last_ns is None else frames.right[frames.right > last_ns]
    if not len(right):
        return None
    proved_ns = int(right[0])
    since_ns = proved_ns if told_ns is None else min(told_ns, proved_ns)
    return since_ns if last_ns is None else max(since_ns, last_ns)


def _returns(frames: _Frames) -> int:
    """How often frames went to the old port alone again after they had gone to the new one."""
    wrong = frames.old[frames.old_alone]
    if not len(wrong):
        return 0
    right = frames.right[frames.right < wrong[-1]]
    moments = sorted([*((t_ns, True) for t_ns in right.tolist()), *((t_ns, False) for t_ns in wrong.tolist())])
    count = 0
    last_right_ns: int | None = None
    for t_ns, is_right in moments:
        if is_right:
            last_right_ns = t_ns
        elif last_right_ns is not None and t_ns - last_right_ns > OUT_OF_ORDER_NS:
            count += 1
            last_right_ns = None  # a burst to the old port is one return
    return count
