"""Links as ports of the run's own Open vSwitch, hypervisors' bridges behind them, and their calibration."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import LinkError
from bench.host.commands import run, spawn
from bench.host.kernel import entered_netns
from bench.host.ovs import OpenVSwitch
from bench.host.sandbox import call_in_sandbox
from bench.link.calibrate import Endpoint, calibrate
from bench.link.links import LinkFactory
from bench.link.sockets import widen_packet_sockets
from bench.scenario import CalibrationSpec, Scenario, parse_scenario

pytestmark = pytest.mark.root

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    mininet_net = pytest.importorskip("mininet.net")
    mininet_topo = pytest.importorskip("mininet.topo")


class Star:
    """Hosts h1, h2 and c1 around one switch; a ``br0`` with the uplink and a guest's veth pair in h1."""

    def __init__(self, stack: ExitStack, scenario: Scenario, directory: Path) -> None:
        topo = mininet_topo.Topo()
        topo.addSwitch("s1")
        for host in ("h1", "h2", "c1"):
            topo.addHost(host)
            topo.addLink(host, "s1")
        self.directory = directory
        self.ovs = stack.enter_context(OpenVSwitch(directory / "ovs"))
        self.factory = LinkFactory(scenario.link, log=directory / "line.log")
        stack.callback(self.factory.stop)
        self.net: Any = mininet_net.Mininet(
            topo, link=self.factory.link_class(), switch=self.ovs.switch_class(), controller=None
        )
        stack.callback(self.net.stop)
        self.net.start()
        self.factory.apply_all()
        self.switch_pid = next(item.pid for item in self.ovs.processes if item.name == "ovs-vswitchd")

    def endpoints(self) -> dict[str, Endpoint]:
        return {host.name: Endpoint(host.pid, host.IP()) for host in self.net.hosts}

    def guest_behind_bridge(self, stack: ExitStack) -> int:
        """:returns: a process in the guest's namespace, whose address is 10.0.1.1."""
        h1 = self.net.get("h1")
        guest = spawn(["unshare", "--net", "sleep", "infinity"], log=self.directory / "guest.log", netns_pid=h1.pid)
        stack.callback(guest.stop)
        home = Path(f"/proc/{h1.pid}/ns/net").readlink()
        own = Path("/proc/self/ns/net").readlink()
        namespace = Path(f"/proc/{guest.pid}/ns/net")
        wait_until(lambda: namespace.readlink() not in (home, own), Deadline(5 * NS_PER_S), "the guest's namespace")
        for argv in (
            ["ip", "link", "add", "br0", "type", "bridge"],
            ["ip", "link", "add", "vnet-g", "type", "veth", "peer", "name", "eth0", "netns", str(guest.pid)],
            ["ip", "address", "flush", "dev", "h1-eth0"],
            ["ip", "link", "set", "h1-eth0", "master", "br0"],
            ["ip", "link", "set", "vnet-g", "master", "br0"],
            ["ip", "link", "set", "vnet-g", "up"],
            ["ip", "link", "set", "br0", "up"],
            ["ip", "address", "add", f"{h1.IP()}/16", "dev", "br0"],
        ):
            run(argv, deadline=Deadline(5 * NS_PER_S), netns_pid=h1.pid)
        for argv in (["ip", "address", "add", "10.0.1.1/16", "dev", "eth0"], ["ip", "link", "set", "eth0", "up"]):
            run(argv, deadline=Deadline(5 * NS_PER_S), netns_pid=guest.pid)
        return guest.pid


@contextmanager
def star(raw: dict[str, Any], directory: Path) -> Iterator[tuple[Star, ExitStack]]:
    with ExitStack() as stack:
        yield Star(stack, parse_scenario({"links": raw}, "test"), directory), stack


def in_namespace(pid: int, kind: socket.SocketKind) -> socket.socket:
    with entered_netns(pid):
        sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(20)
    return sock


def exchange(server_pid: int, server_address: str, client_pid: int, size: int) -> dict[str, bool]:
    """A pattern over TCP both ways, and datagrams of several sizes both ways, between two namespaces."""
    pattern = bytes(range(256)) * (size // 256)
    got: dict[str, bool] = {}
    with (
        in_namespace(server_pid, socket.SOCK_STREAM) as listener,
        in_namespace(client_pid, socket.SOCK_STREAM) as client,
    ):
        listener.bind((server_address, 7001))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                got["tcp_up"] = read(connection, size) == pattern
                connection.sendall(pattern)

        thread = threading.Thread(target=serve)
        thread.start()
        client.connect((server_address, 7001))
        client.sendall(pattern)
        got["tcp_down"] = read(client, size) == pattern
        thread.join()
    with in_namespace(server_pid, socket.SOCK_DGRAM) as server, in_namespace(client_pid, socket.SOCK_DGRAM) as client:
        server.bind((server_address, 7002))
        for length in (1, 100, 1472, 4000):  # the last one in fragments
            client.sendto(pattern[:length], (server_address, 7002))
            data, sender = server.recvfrom(8192)
            server.sendto(data, sender)
            got[f"udp_{length}"] = client.recv(8192) == pattern[:length]
    return got


def read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return bytes(data)


@pytest.mark.parametrize("link", [{}, {"delay": "0.2ms"}, {"delay": "1ms", "jitter": "0.1ms"}], ids=str)
def test_contents_and_checksums_survive_switch_and_bridge(link: dict[str, Any], tmp_path: Path) -> None:
    def body() -> list[dict[str, bool]]:
        with star({"default": link}, tmp_path) as (network, stack):
            guest = network.guest_behind_bridge(stack)
            h1, c1 = network.net.get("h1"), network.net.get("c1")
            return [
                exchange(guest, "10.0.1.1", c1.pid, 4 << 20),
                exchange(c1.pid, c1.IP(), guest, 4 << 20),
                exchange(h1.pid, h1.IP(), guest, 1 << 20),
            ]

    for got in call_in_sandbox(body):
        assert len(got) == 6
        assert all(got.values())


@pytest.mark.alone
def test_calibration_finds_links_as_asked(tmp_path: Path) -> None:
    raw = {"default": {"delay": "2ms", "bandwidth": "100Mbit"}, "h2-s1": {"bandwidth": "50Mbit"}}

    def body() -> list[dict[str, Any]]:
        with star(raw, tmp_path) as (network, _):
            spec = CalibrationSpec.model_validate(
                {"rate_tolerance": 0.5, "delay_tolerance": "50ms"}
            )  # other work runs on this machine
            results = calibrate(
                network.factory, network.endpoints(), spec, log_directory=tmp_path, switch_pids=[network.switch_pid]
            )
            network.factory.verify()
            return [result.model_dump() for result in results]

    results = {result["name"]: result for result in call_in_sandbox(body)}
    assert set(results) == {"c1-s1", "h1-s1", "h2-s1"}
    for result in results.values():
        assert result["mechanism"] in ("htb+delay-line", "htb+netem")
        assert result["measured"]["round_trip"]["minimum_ns"] >= 8_000_000
        for direction in ("forward", "backward"):
            rate_bps = result["measured"][direction]["rate_bps"]
            assert rate_bps == pytest.approx(result["asked"][direction]["rate_bps"], rel=0.5)
    assert results["h2-s1"]["asked"]["forward"]["rate_bps"] == 50_000_000


@pytest.mark.parametrize(
    ("raw", "spoil", "needle"),
    [
        ({"bandwidth": "400Gbit"}, None, "instead of 400 Gbit/s"),
        ({"bandwidth": "unlimited", "delay": "5ms"}, "delay", "instead of 20 ms"),
    ],
)
def test_a_deviation_fails_with_asked_measured_and_remedy(
    raw: dict[str, Any], spoil: str | None, needle: str, tmp_path: Path
) -> None:
    def body() -> str:
        with star({"default": raw}, tmp_path) as (network, _):
            if spoil:  # as a link that lies about its delay
                for link in network.factory.links.values():
                    parameters = {"delay_ns": 0, "jitter_ns": 0, "loss": 0.0, "limit_bytes": 1 << 20}
                    network.factory._call("set", {"name": link.name, "forward": parameters, "backward": parameters})
            with pytest.raises(LinkError) as caught:
                calibrate(network.factory, network.endpoints(), CalibrationSpec(), log_directory=tmp_path)
            return str(caught.value)

    text = call_in_sandbox(body)
    assert needle in text
    assert "remedy" in text


def test_a_dead_path_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.link.calibrate._WARM_NS", NS_PER_S)

    def body() -> str:
        with star({"default": {}}, tmp_path) as (network, _):
            c1 = network.net.get("c1")
            run(["ip", "link", "set", "c1-eth0", "down"], deadline=Deadline(5 * NS_PER_S), netns_pid=c1.pid)
            with pytest.raises(LinkError) as caught:
                calibrate(network.factory, network.endpoints(), CalibrationSpec(), log_directory=tmp_path)
            return str(caught.value)

    assert "c1" in call_in_sandbox(body)


def test_qdiscs_survive_a_port_that_is_added_later(tmp_path: Path) -> None:
    def body() -> int:
        with star({"default": {"bandwidth": "10Mbit"}}, tmp_path) as (network, _):
            argv = ["ip", "link", "add", "name", "late0", "type", "veth", "peer", "name", "late1"]
            run(argv, deadline=Deadline(5 * NS_PER_S))
            network.ovs.vsctl("add-port", "s1", "late0")
            network.factory.verify()
            return widen_packet_sockets(network.switch_pid)

    assert call_in_sandbox(body) >= 4
