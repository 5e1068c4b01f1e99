"""The real controllers on real switches: hosts reach each other, and a MAC address that moves is followed."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pings import round_trips_ms

import topologies
from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.controller import ControllerProcess
from bench.host.ovs import OpenVSwitch
from bench.host.sandbox import call_in_sandbox
from bench.timeline import Timeline

pytestmark = pytest.mark.root

GUEST = "52:54:00:00:00:01"
ETHERTYPE = 0x88B5  # IEEE 802 local experimental: nobody else on the wire speaks it
LONG = 30 * NS_PER_S
OLD, NEW = "h1", "h2"
HOLD_S = 120  # longer than the test takes, however busy the machine is
MOST_LOST = 200  # frames, one at a time, that may still go to the old port; a handful is usual

USERS_APP = """
from PACKAGE.base.app_manager import BASE
from PACKAGE.controller import ofp_event
from PACKAGE.controller.handler import CONFIG_DISPATCHER, set_ev_cls
from PACKAGE.ofproto import ofproto_v1_3

class Hub(BASE):
    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def features(self, ev):
        dp = ev.msg.datapath
        p = dp.ofproto_parser
        out = [p.OFPInstructionActions(dp.ofproto.OFPIT_APPLY_ACTIONS, [p.OFPActionOutput(dp.ofproto.OFPP_FLOOD)])]
        dp.send_msg(p.OFPFlowMod(datapath=dp, match=p.OFPMatch(), instructions=out))
"""


class Port:
    """A raw socket on a host's only interface."""

    def __init__(self, host: Any) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open() as ours, Path(f"/proc/{host.pid}/ns/net").open() as theirs:
            assert libc.setns(theirs.fileno(), 0) == 0
            try:
                self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
                self.sock.bind((host.defaultIntf().name, ETHERTYPE))
            finally:
                assert libc.setns(ours.fileno(), 0) == 0
        self.mac = host.MAC()

    def send_data(self, src: str, dst: str, number: int = 0) -> None:
        self.sock.send(raw(dst) + raw(src) + struct.pack("!HQ", ETHERTYPE, number) + bytes(38))

    def send_rarp(self, mac: str) -> None:
        body = bytes.fromhex("0001080006040003") + raw(mac) + bytes(4) + raw(mac) + bytes(4)
        self.sock.send((b"\xff" * 6 + raw(mac) + b"\x80\x35" + body).ljust(60, b"\0"))

    def received(self) -> int:
        """The number of the frame that waits."""
        return int(struct.unpack_from("!Q", self.sock.recv(2048), 14)[0])


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@contextlib.contextmanager
def network(framework: str, app: str, directory: Path) -> Iterator[tuple[Any, ControllerProcess]]:
    """Two switches in a row under a controller."""
    from mininet.log import setLogLevel
    from mininet.net import Mininet

    setLogLevel("error")
    with contextlib.ExitStack() as stack:
        controller = stack.enter_context(ControllerProcess(framework, app, directory / "run", 0, hold_s=HOLD_S))
        ovs = stack.enter_context(OpenVSwitch(directory / "ovs", "auto"))
        stack.enter_context(ovs.environment())
        net = Mininet(
            topologies.load("linear"),
            switch=ovs.switch_class(controller.port),
            controller=None,
            autoSetMacs=True,
            build=False,
        )
        stack.callback(net.stop)
        net.build()
        net.start()
        controller.wait_connected(2, Deadline(LONG))
        yield net, controller


def in_network(framework: str, app: str, test: Callable[[Any, Path], Any]) -> tuple[Any, Timeline]:
    """Run *test* in a network in a sandbox; returns what it returned and the controller's events."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as directory:

        def main() -> Any:
            with network(framework, app, Path(directory)) as (net, controller):
                value = test(net, controller.events)
                controller.check()
                return value

        value = call_in_sandbox(main)
        return value, Timeline.read(Path(directory) / "run" / "events" / "controller.jsonl")


def ping_everyone(net: Any, _events: Path) -> dict[str, int]:
    """Answers lost between each pair of hosts, of two pings each."""
    lost = {}
    for first in net.hosts:
        for second in net.hosts:
            if first is not second:
                answered = round_trips_ms(first.pid, second.IP(), 2)
                lost[f"{first.name}-{second.name}"] = 2 - len(answered)
    return lost


def move_a_mac(net: Any, events: Path) -> dict[str, Any]:
    """A guest behind h1 announces itself by RARP behind h2 while c1 sends to it, one frame at a time."""
    ports = {name: Port(net[name]) for name in (OLD, NEW, "c1")}
    number = 0

    def where_it_goes() -> str:
        """Send one frame to the guest and say which host gets it (both, joined, if it was flooded)."""
        nonlocal number
        number += 1
        ports["c1"].send_data(ports["c1"].mac, GUEST, number)
        got: set[str] = set()
        names = {ports[name].sock.fileno(): name for name in (OLD, NEW)}
        wait_s = 10.0
        while ready := select.select(list(names), [], [], wait_s)[0]:
            for fd in ready:
                if ports[names[fd]].received() == number:
                    got.add(names[fd])
            wait_s = 0.002 if got else wait_s  # a copy elsewhere would be on its way
        return "+".join(sorted(got))

    def until(place: str) -> int:
        """Frames that go elsewhere before one goes to *place* alone."""
        for count in range(MOST_LOST):
            if where_it_goes() == place:
                return count
        return MOST_LOST

    ports[OLD].send_rarp(GUEST)  # both switches get to know it
    found: dict[str, Any] = {"before": until(OLD)}
    ports[NEW].send_rarp(GUEST)
    found["after"] = until(NEW)
    found["then"] = sorted({where_it_goes() for _ in range(100)})
    ports[OLD].send_data(GUEST, ports["c1"].mac)  # late frames
    ports[OLD].send_data(GUEST, ports["c1"].mac)
    found["late"] = sorted({where_it_goes() for _ in range(100)})
    ports[OLD].send_rarp(GUEST)
    found["back"] = until(OLD)

    def confirmed() -> bool:
        answers = Timeline.read(events).select("barrier_answered")
        return sum(event.data["mac"] == GUEST for event in answers) == 6  # learnt, moved, moved back: twice each

    wait_until(confirmed, Deadline(LONG), "every switch has confirmed every move")
    return found


@pytest.mark.parametrize("framework", ["ryu", "os-ken"])
def test_hosts_reach_each_other_and_a_moved_mac_is_followed(framework: str) -> None:
    (lost, moved), events = in_network(framework, "learning", lambda *args: [ping_everyone(*args), move_a_mac(*args)])
    assert lost == dict.fromkeys(lost, 0)
    assert len(lost) == 12
    assert moved["before"] < MOST_LOST
    assert moved["after"] < MOST_LOST
    assert moved["then"] == [NEW]
    assert moved["late"] == [NEW]
    assert moved["back"] < MOST_LOST

    names = [event.name for event in events]
    assert names.index("started") < names.index("listening") < names.index("switch_connected")
    assert {event.data["name"] for event in events.select("switch_ready")} == {"s1", "s2"}
    assert not events.select("openflow_error")
    for switch in ("s1", "s2"):
        about = [event for event in events if event.data.get("switch") == switch and event.data.get("mac") == GUEST]
        there, back = [event for event in about if event.name == "mac_moved"]
        assert there.data["announced"]
        assert (there.data["to_port"], there.data["from_port"]) == (back.data["from_port"], back.data["to_port"])
        assert [event.data["kind"] for event in about if event.name == "announcement"] == ["rarp", "rarp", "rarp"]
        for move in (there, back):
            sent = next(event for event in about if event.name == "barrier_sent" and event.t_ns >= move.t_ns)
            [answer] = [
                event for event in about if event.name == "barrier_answered" and event.data["xid"] == sent.data["xid"]
            ]
            [flows] = [
                event for event in about if event.name == "flow_mod_sent" and event.data["xid"] == sent.data["xid"]
            ]
            assert flows.data["count"] == 3
            assert answer.t_ns - sent.t_ns == answer.data["took_ns"] >= 0
    # A broadcast crosses each switch's connection once.
    seen = [event for event in events.select("packet_in") if event.data["ethertype"] == 0x8035]
    assert len(seen) == 6


@pytest.mark.parametrize(("framework", "package", "base"), [("ryu", "ryu", "RyuApp"), ("os-ken", "os_ken", "OSKenApp")])
def test_an_app_of_the_user_runs_and_its_switches_are_reported(
    framework: str, package: str, base: str, tmp_path: Path
) -> None:
    app = tmp_path / "hub.py"
    app.write_text(USERS_APP.replace("PACKAGE", package).replace("BASE", base))
    lost, events = in_network(framework, str(app), ping_everyone)
    assert sum(lost.values()) <= 2  # the app does not say when its flow is in place
    assert {event.data["name"] for event in events.select("switch_connected")} == {"s1", "s2"}
