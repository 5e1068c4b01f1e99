"""What a controller decides that lets a guest's new port speak only once the guest has announced itself there.

As OVN's ``activation-strategy=rarp`` (ovn-nb(5)): before a migration the bench orders the app to *expect* an address at
the destination's port. Until an announcement of that address comes in there, frames from it are dropped at that port
(a guest that is not meant to run there yet cannot pull its traffic over, and stray frames move nothing). With *dual
delivery* frames for the guest go to both places meanwhile, so that none is lost whichever of the two runs it; the place
that does not run it drops its copies.

The announcement opens the port, and moves the paths as :mod:`.proactive_logic` does.

Two more rules in table 0 of the destination's switch, while one is expected:

=====  ========  =========================================  ==========================================================
0      390       in_port, eth_src, RARP / ARP / all nodes   a copy of its head to the controller; go to table 1
0      380       in_port, eth_src                           drop
=====  ========  =========================================  ==========================================================

Dual delivery needs a network without loops: a copy would go round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controllers import packets
from controllers.learning_logic import (
    DESTINATION_TABLE,
    SOURCE_TABLE,
    WATCH_COOKIE,
    Flow,
    FlowDelete,
    Match,
    Observation,
)
from controllers.proactive_logic import ALL_NODES, ETH_IPV6, Place, ProactiveNetwork
from controllers.steps import At, Steps

OPEN_PRIORITY = 390
BLOCK_PRIORITY = 380


@dataclass(frozen=True)
class Expected:
    """An address will come to *port* of *dpid*; *dual*: frames for it go there as well already."""

    dpid: int
    port: int
    dual: bool


class ActivationNetwork(ProactiveNetwork):
    """A :class:`ProactiveNetwork` with ports that wait for an announcement.

    :param dual: dual delivery, unless an order says otherwise.
    :param dpid_of: the switch's name -> its datapath id.
    """

    def __init__(
        self,
        expected: int,
        name_of: Callable[[int], str],
        dpid_of: Callable[[str], int | None],
        *,
        dual: bool = False,
        hold_ns: int,
    ) -> None:
        super().__init__(expected, name_of, hold_ns=hold_ns)
        self._dual = dual
        self._dpid_of = dpid_of
        self._awaited: dict[str, Expected] = {}

    def ordered(self, now_ns: int, order: Mapping[str, Any]) -> Steps:
        """``expect`` {mac, switch, port}; ``forget`` {mac}: it will not come after all."""
        del now_ns
        mac = str(order.get("mac", "")).lower()
        if order["order"] == "forget":
            return self._no_longer(mac, "cancelled")
        dpid, port = self._dpid_of(str(order.get("switch"))), order.get("port")
        if order["order"] != "expect" or dpid not in self.graph.ports or not isinstance(port, int):
            return [At(0, Observation("order_refused", dict(order)))]
        steps = self._no_longer(mac, "replaced")
        self._awaited[mac] = Expected(dpid, port, bool(order.get("dual", self._dual)))
        steps += [At(dpid, flow) for flow in self._blocking(mac, port)]
        told = {"switch": self._name_of(dpid), "mac": mac, "port": port, "dual": self._awaited[mac].dual}
        place = self.places.get(mac)
        if place is not None:
            steps += self._begin(mac, place, announced=False)
        return [*steps, At(dpid, Observation("port_blocked", told))]

    def _blocking(self, mac: str, port: int) -> list[Flow]:
        kinds = (
            {"eth_type": packets.ETH_RARP},
            {"eth_type": packets.ETH_ARP, "eth_dst": packets.BROADCAST},
            {"eth_type": ETH_IPV6, "eth_dst": ALL_NODES},
        )
        opened = [
            Flow(
                *(SOURCE_TABLE, OPEN_PRIORITY, Match(in_port=port, eth_src=mac, **kind), ("controller",)),
                goto=DESTINATION_TABLE,
                cookie=WATCH_COOKIE,
            )
            for kind in kinds
        ]
        return [*opened, Flow(SOURCE_TABLE, BLOCK_PRIORITY, Match(in_port=port, eth_src=mac))]

    def _no_longer(self, mac: str, why: str) -> Steps:
        awaited = self._awaited.pop(mac, None)
        if awaited is None:
            return []
        told = {"switch": self._name_of(awaited.dpid), "mac": mac, "port": awaited.port, "reason": why}
        steps: Steps = [
            At(awaited.dpid, FlowDelete(SOURCE_TABLE, Match(in_port=awaited.port, eth_src=mac))),
            At(awaited.dpid, Observation("port_unblocked", told)),
        ]
        place = self.places.get(mac)
        if place is not None and awaited.dual and why != "announced":
            steps += self._begin(mac, place, announced=False)
        return steps

    def _source_seen(self, now_ns: int, mac: str, here: tuple[int, int], *, announced: bool) -> Steps:
        awaited = self._awaited.get(mac)
        if awaited is not None and (awaited.dpid, awaited.port) == here:
            if not announced:
                return []
            opened = self._no_longer(mac, "announced")
            return [*opened, *super()._source_seen(now_ns, mac, here, announced=True)]
        return super()._source_seen(now_ns, mac, here, announced=announced)

    def _outputs(self, mac: str, place: Place) -> dict[int, tuple[int, ...]]:
        first = super()._outputs(mac, place)
        awaited = self._awaited.get(mac)
        if awaited is None or not awaited.dual:
            return first
        second = super()._outputs(mac, Place(awaited.dpid, awaited.port))
        return {
            dpid: ports if second.get(dpid, ports) == ports else (*ports, *second[dpid])
            for dpid, ports in first.items()
        }
