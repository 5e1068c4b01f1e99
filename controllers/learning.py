"""The learning switch as an OpenFlow 1.3 app: a thin shim that turns packet-ins into calls and steps into messages.

Decisions are in :mod:`.learning_logic`. Works under Ryu and os-ken by the same file, started by :mod:`.launch` or by
the framework's own launcher (``ryu-manager controllers/learning.py``, where that still starts).

Events (source ``controller``): ``packet_in`` {dpid, switch, port, src, dst, ethertype}, ``announcement`` {kind, mac,
ip, switch, port}, ``mac_learned`` {mac, switch, port}, ``mac_moved`` {mac, switch, from_port, to_port, announced},
``late_frame``, ``mac_forgotten``, ``fdb_full``: stamped with the moment at which the app got the message, written
after the switch has been told what to do. ``flow_mod_sent`` {switch, count, xid, mac}, ``barrier_sent`` and
``barrier_answered`` {switch, xid, mac, took_ns}: when that happened; an xid is unique per switch. ``switch_ready``
{dpid, name}: the pipeline is in place.

The environment variable ``BENCH_HOLD_S`` sets the hold time against late frames in seconds (default 1), for networks
in which frames are under way for longer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if not __package__ and str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # loaded as a file by the framework's own launcher

from controllers import framework, observe, openflow
from controllers.learning_logic import (
    HOLD_VARIABLE,
    MISS_COOKIE,
    NS_PER_S,
    Barrier,
    Flow,
    LearningSwitch,
    Match,
    Observation,
    Step,
    hold_s,
)

_ofproto = openflow.ofproto

_BARRIERS_KEPT = 10_000


class Learning(framework.app_class()):  # type: ignore[misc]
    """One :class:`LearningSwitch` per connected switch."""

    OFP_VERSIONS = (_ofproto.OFP_VERSION,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._switches: dict[int, LearningSwitch] = {}
        self._barriers: dict[tuple[int, int], tuple[str | None, int]] = {}
        self._write = observe.observer()
        self._hold_s = hold_s(os.environ.get(HOLD_VARIABLE, ""))

    # from the switches

    @framework.handles("EventOFPSwitchFeatures", "config")
    def switch_features(self, event: Any) -> None:
        datapath = event.msg.datapath
        name = observe.switch_name(datapath.id)
        switch = LearningSwitch(name, datapath.id, hold_ns=self._hold_s * NS_PER_S)
        self._switches[datapath.id] = switch
        self._carry_out(datapath, switch, switch.connected(), observe.now_ns())

    @framework.handles("EventOFPPacketIn", "main")
    def packet_in(self, event: Any) -> None:
        now_ns = observe.now_ns()
        message = event.msg
        switch = self._switches.get(message.datapath.id)
        if switch is not None:
            missed = message.cookie == MISS_COOKIE
            steps = switch.packet_in(now_ns, message.match["in_port"], bytes(message.data), missed=missed)
            self._carry_out(message.datapath, switch, steps, now_ns)

    @framework.handles("EventOFPFlowRemoved", "main")
    def flow_removed(self, event: Any) -> None:
        message = event.msg
        switch = self._switches.get(message.datapath.id)
        if switch is not None and message.reason in (_ofproto.OFPRR_IDLE_TIMEOUT, _ofproto.OFPRR_HARD_TIMEOUT):
            match = Match(in_port=message.match.get("in_port"), eth_src=message.match.get("eth_src"))
            self._carry_out(message.datapath, switch, switch.flow_removed(match), observe.now_ns())

    @framework.handles("EventOFPPortStatus", "main")
    def port_status(self, event: Any) -> None:
        message = event.msg
        switch = self._switches.get(message.datapath.id)
        gone = message.reason == _ofproto.OFPPR_DELETE
        if switch is not None and (gone or message.desc.state & _ofproto.OFPPS_LINK_DOWN):
            self._carry_out(message.datapath, switch, switch.port_down(message.desc.port_no), observe.now_ns())

    @framework.handles("EventOFPBarrierReply", "config", "main")
    def barrier_reply(self, event: Any) -> None:
        now_ns = observe.now_ns()
        message = event.msg
        switch = self._switches.get(message.datapath.id)
        asked = self._barriers.pop((message.datapath.id, message.xid), None)
        if switch is None or asked is None:
            return
        mac, sent_ns = asked
        self._write(
            "barrier_answered",
            {"switch": switch.name, "xid": message.xid, "mac": mac, "took_ns": now_ns - sent_ns},
            now_ns,
        )
        if mac is None:
            self._write("switch_ready", {"dpid": switch.dpid, "name": switch.name}, now_ns)

    @framework.handles("EventOFPErrorMsg", "config", "main")
    def error(self, event: Any) -> None:
        message = event.msg
        told = {"dpid": message.datapath.id, "type": message.type, "code": message.code, "xid": message.xid}
        self._write("openflow_error", told)

    # to the switches

    def _carry_out(self, datapath: Any, switch: LearningSwitch, steps: list[Step], now_ns: int) -> None:
        """Send first, write events afterwards: observing must not delay what is observed."""
        seen = []
        flow_mods = 0
        for step in steps:
            if isinstance(step, Observation):
                seen.append((step.name, step.data, now_ns))
            elif isinstance(step, Barrier):
                request = openflow.parser.OFPBarrierRequest(datapath)
                datapath.set_xid(request)
                sent_ns = observe.now_ns()
                self._remember((switch.dpid, request.xid), (step.mac, sent_ns))
                datapath.send_msg(request)
                told = {"switch": switch.name, "xid": request.xid, "mac": step.mac}
                seen.append(("flow_mod_sent", {**told, "count": flow_mods}, sent_ns))
                seen.append(("barrier_sent", told, sent_ns))
                flow_mods = 0
            else:
                if isinstance(step, Flow):
                    datapath.send_msg(openflow.flow_mod(datapath, step))
                else:
                    datapath.send_msg(openflow.flow_delete(datapath, step))
                flow_mods += 1
        if flow_mods:
            seen.append(
                (
                    "flow_mod_sent",
                    {"switch": switch.name, "count": flow_mods, "xid": None, "mac": None},
                    observe.now_ns(),
                )
            )
        for name, data, t_ns in seen:
            self._write(name, data, t_ns)

    def _remember(self, key: tuple[int, int], barrier: tuple[str | None, int]) -> None:
        if len(self._barriers) >= _BARRIERS_KEPT:  # a switch that never answers
            del self._barriers[next(iter(self._barriers))]
        self._barriers[key] = barrier
