"""Options of a flow's connection: checked, applied to a real socket and read back."""

from __future__ import annotations

import socket

import pytest

from bench.clock import NS_PER_S
from bench.errors import ProbeError, ScenarioError
from bench.flows.tcp_info import parse_tcp_info, tcp_info
from bench.flows.tcp_options import TcpOptions, check_supported, kernel_retries
from bench.flows.tcp_samples import TcpSamples
from bench.scenario import parse_scenario, with_commands


@pytest.fixture
def pair():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket() as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                yield client, server


def test_options_are_what_the_socket_says_afterwards():
    raw = {"congestion": "cubic", "user_timeout_ns": 3 * NS_PER_S, "keepalive": [2, 3, 4], "syn_retries": 5}
    options = TcpOptions.from_json(raw, "f")
    with socket.socket() as sock:
        options.apply(sock)
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(tcp, socket.TCP_CONGESTION, 16).split(b"\0")[0] == b"cubic"
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 3000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        kept = [sock.getsockopt(tcp, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)]
        assert kept == [2, 3, 4]
        assert sock.getsockopt(tcp, socket.TCP_SYNCNT) == 5
        assert sock.getsockopt(tcp, socket.TCP_NODELAY) == 1


def test_a_congestion_control_that_is_not_there_is_named():
    with pytest.raises(ProbeError, match=r"flow f: .*tcp.congestion"):
        check_supported(TcpOptions(congestion="nonesuch"), "f")


@pytest.mark.parametrize(
    "raw", [[], {"congestion": 3}, {"keepalive": [1]}, {"user_timeout_ns": -1}, {"retries2": True}, {"nagle": 1}]
)
def test_nonsense_is_refused(raw):
    with pytest.raises(ProbeError, match="flow f: tcp"):
        TcpOptions.from_json(raw, "f")


@pytest.mark.parametrize(
    ("client", "key"),
    [
        ({"kind": "udp-echo", "tcp": {"congestion": "cubic"}}, "clients.0"),
        ({"kind": "tcp-upload", "retry": True}, "clients.0"),
        ({"kind": "tcp-request", "tcp": {"rto_min": "2s"}}, "clients.0.tcp.rto_min"),
        ({"kind": "tcp-request", "tcp": {"keepalive": "1s"}}, "clients.0.tcp.keepalive"),
    ],
)
def test_a_scenario_refuses_what_a_flow_cannot_have(client, key):
    with pytest.raises(ScenarioError, match=key):
        parse_scenario({"clients": [client]}, "x.toml")


def test_programs_become_clients_beside_the_scenarios_own():
    one = parse_scenario({}, "x.toml")
    more = with_commands(one, ["c2:ping -c 3 '10.0.1.1'", "redis-cli -h 10.0.1.1 PING"])
    assert len(more.clients) == len(one.clients) + 2
    assert more.clients[-2].command == ("ping", "-c", "3", "10.0.1.1")
    assert (more.clients[-2].host, more.clients[-1].host) == ("c2", None)
    assert with_commands(one, []) is one
    for bad in ("", "c1:", "echo 'open"):
        with pytest.raises(ScenarioError, match="--client"):
            with_commands(one, [bad])


def test_tcp_info_names_what_the_kernel_says(pair):
    client, server = pair
    client.sendall(b"x" * 1000)
    assert len(server.recv(1000)) == 1000
    info = tcp_info(client)
    assert info.state == "established"
    assert info.ca_state == "open"
    assert info.bytes_acked >= 1000
    assert info.rto_ns >= 200_000_000
    assert parse_tcp_info(b"\x01").state == "established"


def test_a_sample_is_kept_only_when_something_changed(pair):
    client, server = pair
    samples = TcpSamples()
    for _ in range(5):
        samples.look(client)
    assert len(samples.array()) == 1
    client.sendall(b"x" * 100_000)
    samples.look(client)
    server.recv(1 << 20)
    samples.look(client)
    found = samples.array()
    assert 2 <= len(found) <= 3
    assert (np_diff := found["t_ns"][1:] - found["t_ns"][:-1]).min() > 0, np_diff


def test_the_kernels_limits_are_read():
    assert kernel_retries()["retries2"] >= 1
