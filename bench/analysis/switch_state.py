"""The second witness of relearning: what the switches' own tables said of the guest's address, and when. Pure.

Events ``flow_changed`` and ``fdb_changed`` of source ``probe.switches`` (see :mod:`bench.probe.switch_watcher`). A
switch's state is *settled* with the first change to the new port that no change to another port follows.

**Agreement.** The three witnesses see one thing from three sides, each with a delay of its own: the controller hears of
a change when the barrier's answer arrives, the watcher when the switch pushes the change (or, for Open vSwitch's FDB,
when it is asked next), the frames show what the switch does, which a cached flow may put off. So they agree when, to
within :data:`TOLERANCE_NS`,

- the controller's confirmation and the change of state are at one time;
- no frame went to another port later than the change of state (or than the confirmation, where no state was seen);
- no frame went out of the new port alone before it.

The text of a disagreement says which of them differ, and by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.clock import NS_PER_MS
from bench.result import NeighbourChange
from bench.timeline import Event

TOLERANCE_NS: Final = 5 * NS_PER_MS
SOURCE: Final = "probe.switches"
MAX_CHANGES: Final = 1000


@dataclass(frozen=True, slots=True)
class State:
    """What one switch's tables said; *settled_ns* None where no change to the new port was seen, or it did not last.

    :param how: ``flow monitor``, ``netlink`` or ``poll``; empty when nothing was seen.
    :param changes: how often the port changed. :param vlan: of the FDB entry.
    """

    settled_ns: int | None = None
    how: str = ""
    changes: int = 0
    vlan: int | None = None


def state_of(switch: str, new_port: str | None, mac: str, events: Iterable[Event], after_ns: int) -> State:
    """The state of one switch after *after_ns* (the guest's resume)."""
    settled_ns: int | None = None
    how, changes, vlan = "", 0, None
    for event in events:
        data = event.data
        if event.source != SOURCE or data.get("switch") != switch or data.get("mac") != mac or event.t_ns < after_ns:
            continue
        if event.name == "fdb_changed":
            how, ports, vlan = str(data.get("how")), [data.get("port")], data.get("vlan")
        elif event.name == "flow_changed" and data.get("event") != "deleted":
            how, ports = "flow monitor", list(data.get("outputs") or ())
        else:
            continue
        changes += 1
        if new_port in ports and len(ports) == 1:
            settled_ns = event.t_ns if settled_ns is None else settled_ns
        else:
            settled_ns = None
    return State(settled_ns, how, changes, vlan if isinstance(vlan, int) else None)


def disagreement(told_ns: int | None, state_ns: int | None, right: Sequence[int], elsewhere: Sequence[int]) -> str:
    """Which witnesses differ, and by how much; "" when all that there are agree.

    :param told_ns: the controller's confirmation. :param state_ns: the change of the switch's state.
    :param right: when frames left by the new port, *elsewhere* by another, both ascending.
    """
    found = []
    if told_ns is not None and state_ns is not None and abs(told_ns - state_ns) > TOLERANCE_NS:
        found.append(f"control plane and switch state by {abs(told_ns - state_ns) / NS_PER_MS:.1f} ms")
    changed_ns, name = (state_ns, "switch state") if state_ns is not None else (told_ns, "control plane")
    if changed_ns is not None:
        if len(elsewhere) and elsewhere[-1] - changed_ns > TOLERANCE_NS:
            late_ms = (elsewhere[-1] - changed_ns) / NS_PER_MS
            found.append(f"{name} and frames: one went elsewhere {late_ms:.1f} ms later")
        if len(right) and changed_ns - right[0] > TOLERANCE_NS and not (len(elsewhere) and elsewhere[0] < changed_ns):
            found.append(f"{name} and frames: one went right {(changed_ns - right[0]) / NS_PER_MS:.1f} ms earlier")
    return "; ".join(found)


def neighbour_changes(events: Iterable[Event], after_ns: int) -> list[NeighbourChange]:
    """What the neighbour caches of hosts made of the guest's address."""
    return [
        NeighbourChange(
            host=str(event.data.get("host")),
            t_ns=event.t_ns,
            ip=str(event.data.get("ip")),
            mac=str(event.data.get("mac")),
            state=str(event.data.get("state")),
        )
        for event in events
        if event.source == SOURCE and event.name == "neighbour_changed" and event.t_ns >= after_ns
    ][:MAX_CHANGES]


def conntrack_counts(events: Iterable[Event], after_ns: int) -> dict[str, int]:
    """Host and event (``r1 new``) -> how many connections of the guest conntrack told of."""
    counts: dict[str, int] = {}
    for event in events:
        if event.source == SOURCE and event.name == "conntrack" and event.t_ns >= after_ns:
            key = f"{event.data.get('host')} {event.data.get('event')}"
            counts[key] = counts.get(key, 0) + 1
    return counts
