"""What the network-wide apps share: a thin OpenFlow 1.3 app that turns messages into calls and steps into messages.

An app is a subclass in a file of its own, whose ``make_logic`` returns a :class:`Logic`. Works under Ryu and os-ken,
started by :mod:`.launch` or by the framework's own launcher.

Events (source ``controller``) are those of :mod:`.learning`, plus what the logic observes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from controllers import framework, observe, openflow, orders
from controllers.learning_logic import Barrier, Flow, FlowDelete, Match, Observation
from controllers.steps import PacketOut, Steps

OPTIONS_VARIABLE = "BENCH_APP_OPTIONS"
TICK_S = 0.1
_BARRIERS_KEPT = 10_000
_hub = framework.load("lib.hub")
_ofproto = openflow.ofproto


class Logic(Protocol):
    """The decisions of one network: no clock, no socket. ``now_ns`` is CLOCK_MONOTONIC."""

    def connected(self, now_ns: int, dpid: int, ports: list[int]) -> Steps: ...

    def disconnected(self, now_ns: int, dpid: int) -> Steps: ...

    def packet_in(self, now_ns: int, dpid: int, port: int, data: bytes, cookie: int) -> Steps: ...

    def flow_removed(self, now_ns: int, dpid: int, match: Match) -> Steps: ...

    def port_changed(self, now_ns: int, dpid: int, port: int, up: bool) -> Steps: ...

    def confirmed(self, now_ns: int, dpid: int, token: int) -> Steps: ...

    def ordered(self, now_ns: int, order: Mapping[str, Any]) -> Steps: ...

    def tick(self, now_ns: int) -> Steps: ...


def options() -> dict[str, Any]:
    """What the environment tells the app: a JSON object in ``BENCH_APP_OPTIONS``; empty without.

    :raises ValueError: when it is something else.
    """
    told = json.loads(os.environ.get(OPTIONS_VARIABLE) or "{}")
    if not isinstance(told, dict):
        raise ValueError(f"{OPTIONS_VARIABLE}: a JSON object")
    return told


class NetworkApp(framework.app_class()):  # type: ignore[misc]
    """One :class:`Logic` for all connected switches. Its calls are serialized: some frameworks have real threads."""

    OFP_VERSIONS = (_ofproto.OFP_VERSION,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logic: Logic = self.make_logic()
        self._datapaths: dict[int, Any] = {}
        self._barriers: dict[tuple[int, int], tuple[Barrier, int]] = {}
        self._write = observe.observer()
        self._lock = threading.RLock()
        orders.subscribe(self._order)
        _hub.spawn(self._tick)

    def make_logic(self) -> Logic:
        """The decisions of this app."""
        raise NotImplementedError

    # from the switches

    @framework.handles("EventOFPSwitchFeatures", "config")
    def switch_features(self, event: Any) -> None:
        datapath = event.msg.datapath
        self._datapaths[datapath.id] = datapath
        datapath.send_msg(openflow.parser.OFPPortDescStatsRequest(datapath, 0))

    @framework.handles("EventOFPPortDescStatsReply", "config", "main")
    def ports_described(self, event: Any) -> None:
        dpid = event.msg.datapath.id
        ports = [port.port_no for port in event.msg.body if port.port_no < _ofproto.OFPP_MAX]
        self._do(lambda now_ns: self._logic.connected(now_ns, dpid, ports))

    @framework.handles("EventOFPStateChange", "dead")
    def gone(self, event: Any) -> None:
        dpid = event.datapath.id
        if dpid is not None and self._datapaths.get(dpid) is event.datapath:
            del self._datapaths[dpid]
            self._do(lambda now_ns: self._logic.disconnected(now_ns, dpid))

    @framework.handles("EventOFPPacketIn", "main")
    def packet_in(self, event: Any) -> None:
        message = event.msg
        dpid, port = message.datapath.id, message.match["in_port"]
        data, cookie = bytes(message.data), message.cookie
        self._do(lambda now_ns: self._logic.packet_in(now_ns, dpid, port, data, cookie))

    @framework.handles("EventOFPFlowRemoved", "main")
    def flow_removed(self, event: Any) -> None:
        message = event.msg
        if message.reason in (_ofproto.OFPRR_IDLE_TIMEOUT, _ofproto.OFPRR_HARD_TIMEOUT):
            fields = {name: message.match.get(name) for name in ("in_port", "eth_src", "eth_dst")}
            dpid = message.datapath.id
            self._do(lambda now_ns: self._logic.flow_removed(now_ns, dpid, Match(**fields)))

    @framework.handles("EventOFPPortStatus", "main")
    def port_status(self, event: Any) -> None:
        message = event.msg
        up = message.reason != _ofproto.OFPPR_DELETE and not message.desc.state & _ofproto.OFPPS_LINK_DOWN
        dpid, port = message.datapath.id, message.desc.port_no
        if port < _ofproto.OFPP_MAX:
            self._do(lambda now_ns: self._logic.port_changed(now_ns, dpid, port, bool(up)))

    @framework.handles("EventOFPBarrierReply", "config", "main")
    def barrier_reply(self, event: Any) -> None:
        now_ns = observe.now_ns()
        message = event.msg
        dpid = message.datapath.id
        asked = self._barriers.pop((dpid, message.xid), None)
        if asked is None:
            return
        barrier, sent_ns = asked
        name = observe.switch_name(dpid)
        self._do(lambda at_ns: self._logic.confirmed(at_ns, dpid, barrier.token))
        told = {"switch": name, "xid": message.xid, "mac": barrier.mac, "took_ns": now_ns - sent_ns}
        self._write("barrier_answered", told, now_ns)
        if barrier.mac is None:
            self._write("switch_ready", {"dpid": dpid, "name": name}, now_ns)

    @framework.handles("EventOFPErrorMsg", "config", "main")
    def error(self, event: Any) -> None:
        message = event.msg
        told = {"dpid": message.datapath.id, "type": message.type, "code": message.code, "xid": message.xid}
        self._write("openflow_error", told)

    # from elsewhere

    def _order(self, order: Mapping[str, Any]) -> None:
        self._do(lambda now_ns: self._logic.ordered(now_ns, order))

    def _tick(self) -> None:
        while True:
            self._do(self._logic.tick)
            _hub.sleep(TICK_S)  # the logic's clock: it has no events of its own to wait for

    # to the switches

    def _do(self, decide: Any) -> None:
        """Send first, write events afterwards: observing must not delay what is observed."""
        seen: list[tuple[str, Mapping[str, Any], int]] = []
        with self._lock:
            now_ns = observe.now_ns()
            for at in decide(now_ns):
                if isinstance(at.step, Observation):
                    seen.append((at.step.name, at.step.data, now_ns))
                    continue
                datapath = self._datapaths.get(at.dpid)
                if datapath is None:
                    continue
                if isinstance(at.step, Barrier):
                    seen.append(self._ask(datapath, at.step))
                else:
                    datapath.send_msg(_message(datapath, at.step))
        for name, data, t_ns in seen:
            self._write(name, data, t_ns)

    def _ask(self, datapath: Any, barrier: Barrier) -> tuple[str, Mapping[str, Any], int]:
        request = openflow.parser.OFPBarrierRequest(datapath)
        datapath.set_xid(request)
        sent_ns = observe.now_ns()
        if len(self._barriers) >= _BARRIERS_KEPT:  # a switch that never answers
            del self._barriers[next(iter(self._barriers))]
        self._barriers[datapath.id, request.xid] = (barrier, sent_ns)
        datapath.send_msg(request)
        told = {"switch": observe.switch_name(datapath.id), "xid": request.xid, "mac": barrier.mac}
        return "barrier_sent", told, sent_ns


def _message(datapath: Any, step: Flow | FlowDelete | PacketOut) -> Any:
    if isinstance(step, Flow):
        return openflow.flow_mod(datapath, step)
    if isinstance(step, FlowDelete):
        return openflow.flow_delete(datapath, step)
    return openflow.packet_out(datapath, step)
