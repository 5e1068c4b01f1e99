"""Waits until the spanning tree of a network has settled, and says which ports it blocks.

Open vSwitch: rapid spanning tree (IEEE 802.1D-2004), read from the database column ``rstp_status``. Linux bridges: the
kernel's (802.1D-1998), read from ``/sys/class/net/PORT/brport/state`` (0 disabled, 1 listening, 2 learning, 3
forwarding, 4 blocking).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.host.ovs import OpenVSwitch

SETTLE_NS = 60 * NS_PER_S
STEADY = 5  # looks in a row that agree: a tree may change once more when a better root is heard of
_INTERVAL_NS = 200 * NS_PER_MS
_BRIDGE_STATES = {"3": "forwarding", "4": "blocked"}


def ovs_states(ovs: OpenVSwitch) -> dict[str, str]:
    """Port -> ``forwarding``, ``blocked`` or ``changing``, of all ports that take part."""
    text = ovs.vsctl("--format=json", "--columns=name,rstp_status", "list", "Port")
    states = {}
    for name, status in json.loads(text)["data"]:
        told = dict(status[1]) if isinstance(status, list) else {}
        if told:
            states[str(name)] = _state(told)
    return states


def _state(told: Mapping[str, str]) -> str:
    state, role = told.get("rstp_port_state", ""), told.get("rstp_port_role", "")
    if state == "Forwarding":
        return "forwarding"
    return "blocked" if role in ("Alternate", "Backup") and state == "Discarding" else "changing"


def bridge_states(ports: Iterable[str]) -> dict[str, str]:
    """The same of Linux bridges' ports, in this process's network namespace."""
    found = {}
    for port in ports:
        raw = Path(f"/sys/class/net/{port}/brport/state").read_text().strip()
        found[port] = _BRIDGE_STATES.get(raw, "changing")
    return found


def wait_settled(look: Callable[[], Mapping[str, str]]) -> set[str]:
    """The ports that are blocked once nothing changes any more. :raises DeadlineError: when it goes on for a minute."""
    last: list[Mapping[str, str]] = []

    def settled() -> bool:
        states = look()
        if not states or "changing" in states.values() or (last and last[-1] != states):
            last.clear()
        last.append(states)
        return len(last) >= STEADY and "changing" not in states.values()

    wait_until(settled, Deadline(SETTLE_NS), "the spanning tree has settled", interval_ns=_INTERVAL_NS)
    return {port for port, state in last[-1].items() if state == "blocked"}
