"""What a naive learning switch decides: flows with timeouts, and no handling of moves.

This is how many first controllers look (and the samples of the frameworks): the first frame of a pair of addresses
makes a flow from its port to where the destination was last seen; as long as that flow lives, frames that it matches
never reach the controller again. When a guest moves, its announcement is a broadcast, which no flow matches, so the
controller knows the new port at once; but the switch goes on sending to the old one until the flow's timeout. An idle
timeout never comes while a client goes on asking.

=====  ========  ============================  ==============================================
table  priority  match                         instruction
=====  ========  ============================  ==============================================
0      100       in_port, eth_src, eth_dst     output, with idle and hard timeout
0      0         anything                      flood, and a copy of its head to the controller
=====  ========  ============================  ==============================================

One FDB per switch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controllers import packets
from controllers.learning_logic import Barrier, Flow, FlowDelete, Match, Observation
from controllers.steps import At, Steps

PRIORITY = 100
MAX_MACS = 16384


class StaleNetwork:
    """All switches of a network, each for itself.

    :param idle_s, hard_s: timeouts of each flow in whole seconds, 0 for none.
    :param name_of: datapath id -> the switch's name in observations.
    """

    def __init__(self, idle_s: int, hard_s: int, name_of: Callable[[int], str]) -> None:
        self._idle_s = idle_s
        self._hard_s = hard_s
        self._name_of = name_of
        self._fdb: dict[int, dict[str, int]] = {}

    def connected(self, _now_ns: int, dpid: int, _ports: list[int]) -> Steps:
        self._fdb[dpid] = {}
        miss = Flow(0, 0, Match(), outputs=("controller", "flood"))
        return [At(dpid, FlowDelete()), At(dpid, miss), At(dpid, Barrier())]

    def disconnected(self, _now_ns: int, dpid: int) -> Steps:
        self._fdb.pop(dpid, None)
        return []

    def packet_in(self, _now_ns: int, dpid: int, port: int, data: bytes, _cookie: int) -> Steps:
        frame = packets.parse(data)
        if frame is None or dpid not in self._fdb or frame.dst.startswith("01:80:c2:00:00:0"):
            return []
        fdb = self._fdb[dpid]
        name = self._name_of(dpid)
        steps: Steps = []
        if packets.is_unicast(frame.src) and (frame.src in fdb or len(fdb) < MAX_MACS):
            if fdb.get(frame.src) != port:
                told = {"switch": name, "mac": frame.src, "port": port}
                steps.append(At(dpid, Observation("mac_noticed", told)))  # noticed: no flow changes
            fdb[frame.src] = port
        if frame.announcement is not None:
            told = {"switch": name, "kind": frame.announcement.kind, "mac": frame.announcement.mac, "port": port}
            steps.append(At(dpid, Observation("announcement", told)))
        out = fdb.get(frame.dst)
        if out is None or out == port:
            return steps
        flow = Flow(
            *(0, PRIORITY, Match(in_port=port, eth_src=frame.src, eth_dst=frame.dst), (out,)),
            idle_timeout_s=self._idle_s,
            hard_timeout_s=self._hard_s,
        )
        return [At(dpid, flow), *steps]

    def flow_removed(self, _now_ns: int, _dpid: int, _match: Match) -> Steps:
        return []

    def port_changed(self, _now_ns: int, _dpid: int, _port: int, _up: bool) -> Steps:
        return []

    def confirmed(self, _now_ns: int, _dpid: int, _token: int) -> Steps:
        return []

    def ordered(self, _now_ns: int, _order: Mapping[str, Any]) -> Steps:
        return []

    def tick(self, _now_ns: int) -> Steps:
        return []
