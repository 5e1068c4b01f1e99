"""A controller of one's own: a hub that floods every frame. Also: ``ryu-manager hub.py``."""

from ryu.base.app_manager import RyuApp
from ryu.controller import ofp_event
from ryu.controller.handler import CONFIG_DISPATCHER, set_ev_cls
from ryu.ofproto import ofproto_v1_3


class Hub(RyuApp):
    """One flow for each switch: everything goes out of every other port."""

    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def on_features(self, event):
        datapath = event.msg.datapath
        parser, protocol = datapath.ofproto_parser, datapath.ofproto
        flood = [parser.OFPActionOutput(protocol.OFPP_FLOOD)]
        instructions = [parser.OFPInstructionActions(protocol.OFPIT_APPLY_ACTIONS, flood)]
        datapath.send_msg(parser.OFPFlowMod(datapath=datapath, match=parser.OFPMatch(), instructions=instructions))
