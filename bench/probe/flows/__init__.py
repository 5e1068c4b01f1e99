"""The kinds of client flows: one small class for each, in a registry. A new kind is one new file and one line here."""

from __future__ import annotations

from pathlib import Path

from bench.errors import ProbeError
from bench.flows.spec import FlowSpec
from bench.probe.flows.base import Flow, FlowEvent
from bench.probe.flows.command import CommandFlow
from bench.probe.flows.http_client import HttpFlow
from bench.probe.flows.redis_client import RedisFlow
from bench.probe.flows.tcp_connect import TcpConnectFlow
from bench.probe.flows.tcp_download import TcpDownloadFlow
from bench.probe.flows.tcp_idle import TcpIdleFlow
from bench.probe.flows.tcp_request import TcpRequestFlow
from bench.probe.flows.tcp_upload import TcpUploadFlow
from bench.probe.flows.udp_echo import UdpEchoFlow
from bench.probe.flows.udp_stream import UdpStreamFlow
from bench.probe.loop import Loop

FLOW_KINDS: dict[str, type[Flow]] = {
    flow.kind: flow
    for flow in (
        *(UdpEchoFlow, TcpRequestFlow, TcpDownloadFlow, TcpUploadFlow, CommandFlow),
        *(TcpConnectFlow, TcpIdleFlow, HttpFlow, RedisFlow, UdpStreamFlow),
    )
}


def make_flow(spec: FlowSpec, guest_address: str, loop: Loop, directory: Path, on_event: FlowEvent) -> Flow:
    """:raises ProbeError: for an unknown kind."""
    kind = FLOW_KINDS.get(spec.kind)
    if kind is None:
        raise ProbeError(f"flow {spec.name}: unknown kind {spec.kind!r}", f"one of {', '.join(sorted(FLOW_KINDS))}")
    return kind(spec, guest_address, loop, directory, on_event)


__all__ = ["FLOW_KINDS", "Flow", "FlowEvent", "FlowSpec", "make_flow"]
