"""The steps of the apps' logic as OpenFlow 1.3 messages; the one module, with the apps, that builds them."""

from __future__ import annotations

from typing import Any

from controllers import framework
from controllers.learning_logic import Flow, FlowDelete, Match, Output
from controllers.steps import PacketOut

ofproto = framework.load("ofproto.ofproto_v1_3")
parser = framework.load("ofproto.ofproto_v1_3_parser")

HEAD_BYTES = 128  # of a frame, for the controller: more than any head that packets.parse looks at


def match(wanted: Match) -> Any:
    """An OFPMatch."""
    fields: dict[str, Any] = {}
    for name in ("in_port", "eth_src", "eth_dst", "eth_type"):
        value = getattr(wanted, name)
        if isinstance(value, str) and "/" in value:
            value = tuple(value.split("/"))
        if value is not None:
            fields[name] = value
    return parser.OFPMatch(**fields)


def _actions(outputs: tuple[Output, ...]) -> list[Any]:
    special = {"controller": (ofproto.OFPP_CONTROLLER, HEAD_BYTES), "flood": (ofproto.OFPP_FLOOD,)}
    return [
        parser.OFPActionOutput(*special[port]) if isinstance(port, str) else parser.OFPActionOutput(port)
        for port in outputs
    ]


def flow_mod(datapath: Any, flow: Flow) -> Any:
    """An OFPFlowMod that adds *flow*."""
    actions = _actions(flow.outputs)
    instructions = []
    if actions:
        instructions.append(parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions))
    if flow.goto is not None:
        instructions.append(parser.OFPInstructionGotoTable(flow.goto))
    return parser.OFPFlowMod(
        datapath,
        cookie=flow.cookie,
        table_id=flow.table,
        command=ofproto.OFPFC_ADD,
        idle_timeout=flow.idle_timeout_s,
        hard_timeout=flow.hard_timeout_s,
        priority=flow.priority,
        flags=ofproto.OFPFF_SEND_FLOW_REM if flow.notify_removed else 0,
        match=match(flow.match),
        instructions=instructions,
    )


def flow_delete(datapath: Any, delete: FlowDelete) -> Any:
    """An OFPFlowMod that deletes."""
    return parser.OFPFlowMod(
        datapath,
        table_id=ofproto.OFPTT_ALL if delete.table is None else delete.table,
        command=ofproto.OFPFC_DELETE,
        out_port=ofproto.OFPP_ANY if delete.out_port is None else delete.out_port,
        out_group=ofproto.OFPG_ANY,
        match=match(delete.match),
        instructions=[],
    )


def packet_out(datapath: Any, out: PacketOut) -> Any:
    """An OFPPacketOut with its data."""
    return parser.OFPPacketOut(
        datapath=datapath,
        buffer_id=ofproto.OFP_NO_BUFFER,
        in_port=ofproto.OFPP_CONTROLLER if out.in_port is None else out.in_port,
        actions=_actions(out.outputs),
        data=out.data,
    )
