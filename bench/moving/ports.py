"""The switch ports on the way of a moving guest, as the analysis of relearning wants them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.plan import Plan


def ports_on_the_way(
    plan: Plan, ports: Mapping[str, Mapping[str, str]], clients: Iterable[str], source: str, destination: str
) -> dict[str, dict[str, str | None]]:
    """Switch -> its ports towards the old and the new place of the guest, for switches on a client's way.

    :param ports: switch -> (port name -> the node at its other end).
    :param clients: the hosts of the guest's clients.
    """
    ends = (source, destination)
    ways = [plan.switches_between(host, end) for end in ends for host in (*clients, source)]

    def towards(switch: str, node: str) -> str | None:
        following = plan.path(switch, node)[1:2]
        return next((port for port, there in ports[switch].items() if [there] == following), None)

    return {
        switch: {"old_port": towards(switch, source), "new_port": towards(switch, destination)}
        for switch in dict.fromkeys(switch for way in ways for switch in way)
    }


def distances(plan: Plan, switches: Iterable[str], destination: str) -> dict[str, int]:
    """Switch -> how many links between switches lie between it and the one that *destination* is at."""
    return {switch: len(plan.switches_between(switch, destination)) - 1 for switch in switches}
