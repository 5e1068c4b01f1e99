"""Guests move between two emulated hypervisors under their clients' eyes, driven without an engine."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_lab import ANNOUNCE, CLIENT_IP, GUEST_IP, GUEST_MAC, Guest, Lab, copy_memory, lab, migrate

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import GuestError
from bench.guest import device_state
from bench.host.channel import ChannelClosed
from bench.host.kernel import entered_netns
from bench.host.lease import Lease

pytestmark = pytest.mark.root


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        yield made


def results(flows: subprocess.Popen[str]) -> dict[str, dict]:
    out, _ = flows.communicate(timeout=150)
    return json.loads(out)


def errors(flows: dict[str, dict]) -> dict[str, str]:
    return {name: flow["error"] for name, flow in flows.items() if flow["error"] or not flow["count"]}


def watch_resets(network: Lab) -> subprocess.Popen[str]:
    """Prints a line for each RST that the client sends or receives, until terminated."""
    command = ["tcpdump", "-i", "c-eth0", "-n", "-l", "--immediate-mode", "tcp[tcpflags] & tcp-rst != 0"]
    watcher = subprocess.Popen(
        network.namespaces["c"].enter(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watcher.stderr is not None
    while "listening on" not in watcher.stderr.readline():
        assert watcher.poll() is None
    return watcher


def resets(watcher: subprocess.Popen[str]) -> list[str]:
    watcher.terminate()
    out, _ = watcher.communicate(timeout=20)
    return out.split()


def handshakes(network: Lab) -> int:
    """Connections of the client's that have had no answer to their SYN (proc_net_tcp.rst: state 2)."""
    lines = Path(f"/proc/{network.namespaces['c'].pid}/net/tcp").read_text().splitlines()
    return sum(line.split()[3] == "02" for line in lines[1:])


def client_socket(network: Lab, port: int) -> socket.socket:
    with entered_netns(network.namespaces["c"].pid):
        return socket.create_connection((GUEST_IP, port), 10)


def echo(sock: socket.socket, text: bytes) -> None:
    sock.sendall(text)
    answer = b""
    while len(answer) < len(text):
        part = sock.recv(1 << 16)
        assert part, "end of file"
        answer += part
    assert answer == text


def test_twenty_moves_back_and_forth_lose_nothing(network: Lab) -> None:
    guest = network.boot("h1")
    watcher = watch_resets(network)
    flows = network.flows(24)
    for move in range(20):
        destination = network.skeleton("h1" if guest.host == "h2" else "h2")
        migrate(guest, destination)
        guest = destination
        assert guest.control.stats()["state"] == "running", move
        if move % 4 == 3:
            # A SYN meets a closed door in half of these moves, and again at each retry, ever less often as the client's
            # timer backs off: so that none of them waits for all of them.
            wait_until(lambda: not handshakes(network), Deadline(60 * NS_PER_S), "new connections get in")
    stats = guest.control.stats(check=True)
    found = results(flows)
    assert errors(found) == {}
    assert resets(watcher) == []
    assert stats["self_check_errors"] == 0
    assert stats["pages_written"] > 0
    # totals move with the guest
    assert guest.control.stats()["services"]["echo.connections"] >= found["new_connections"]["count"]
    assert Lease(network.lease).read().generation == 21


def test_roll_back_is_as_if_nothing_had_happened(network: Lab) -> None:
    guest = network.boot("h1")
    watcher = watch_resets(network)
    flows = network.flows(6)
    for _ in range(8):
        guest.control.close_door()
        os.close(guest.control.pause().fd)
        assert guest.control.resume() == (True, "h1")
    found = results(flows)
    assert errors(found) == {}
    assert resets(watcher) == []
    assert guest.control.stats(check=True)["self_check_errors"] == 0
    names = guest.event_names()
    assert names.count("rolled_back") == names.count("pause_begin") == 8


def test_nothing_answers_for_a_paused_guest(network: Lab) -> None:
    guest = network.boot("h1")
    with client_socket(network, 7) as sock:
        echo(sock, b"before")
        paused = guest.control.pause()
        os.close(paused.fd)
        command = ["tcpdump", "-i", "c-eth0", "-n", "-l", "--immediate-mode", f"ether src {GUEST_MAC}"]
        watcher = subprocess.Popen(
            network.namespaces["c"].enter(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert watcher.stderr is not None
        while "listening on" not in watcher.stderr.readline():
            assert watcher.poll() is None
        sock.sendall(b"during")
        with entered_netns(network.namespaces["c"].pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"anybody?", (GUEST_IP, 7))
        sock.settimeout(0.7)  # two retransmissions of the client's
        with pytest.raises(TimeoutError):
            sock.recv(10)
        watcher.terminate()
        out, _ = watcher.communicate(timeout=20)
        assert out.split() == []
        assert guest.control.resume() == (True, "h1")
        sock.settimeout(20)
        assert sock.recv(10) == b"during"
        echo(sock, b"after")


def test_unread_data_and_half_closed_connections_move(network: Lab) -> None:
    """Each state that can move: the peer's FIN read or not, everything echoed on the other side."""
    guest = network.boot("h1")
    open_, half, full = (client_socket(network, 7) for _ in range(3))
    generator = client_socket(network, 19)
    try:
        echo(open_, b"x")
        half.sendall(b"a" * 300_000)
        half.shutdown(socket.SHUT_WR)  # the guest has more to send than it got rid of: CLOSE_WAIT
        full.sendall(b"b" * 100)
        full.shutdown(socket.SHUT_WR)  # the guest closes as well
        generator.recv(1000)
        generator.shutdown(socket.SHUT_WR)  # the client does not read: the guest's FIN cannot leave
        for destination_host in ("h2", "h1"):
            destination = network.skeleton(destination_host)
            migrate(guest, destination)
            guest = destination
        echo(open_, b"y" * 10_000)
        assert b"".join(iter(lambda: half.recv(1 << 16), b"")) == b"a" * 300_000
        assert b"".join(iter(lambda: full.recv(1 << 16), b"")) == b"b" * 100
        while generator.recv(1 << 16):
            pass
        for sock in (half, full, generator):
            sock.close()
        wait_until(
            lambda: guest.control.stats()["connections"] == 1, Deadline(20 * NS_PER_S), "closed connections are gone"
        )
    finally:
        for sock in (open_, half, full, generator):
            sock.close()


def test_a_datagram_that_waits_at_the_pause_is_answered_at_the_destination(network: Lab) -> None:
    guest = network.boot("h1")
    with client_socket(network, 7) as sock:  # the client's MAC is in the guest's neighbour table
        echo(sock, b"x")
        destination = network.skeleton("h2")
        paused = guest.control.pause()
        blob = os.pread(paused.fd, paused.device_bytes, 0)
        os.close(paused.fd)
        state = device_state.decode(blob)
        assert [ip for ip, _mac in state.neighbours] == [CLIENT_IP]
        assert state.generation == paused.generation
        with entered_netns(network.namespaces["c"].pid):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with udp:
            udp.bind((CLIENT_IP, 0))
            udp.settimeout(10)
            waiting = device_state.DatagramState(7, (CLIENT_IP, udp.getsockname()[1]), b"unread")
            moved = _with_datagram(blob, waiting)
            copy_memory(guest, destination)
            assert _load(destination, moved) == 1
            assert destination.control.take(ANNOUNCE, paused.owner).taken
            assert udp.recv(100) == b"unread"
        echo(sock, b"y")


def _with_datagram(blob: bytes, datagram: device_state.DatagramState) -> bytes:
    return b"".join(device_state.encode(dataclasses.replace(device_state.decode(blob), datagrams=(datagram,))))


def _load(guest: Guest, blob: bytes) -> int:
    fd = os.memfd_create("state")
    try:
        os.write(fd, blob)
        return guest.control.load(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("damage", ["noise", "flipped", "other guest", "other port"])
def test_a_bad_state_is_refused_and_the_source_runs_on(network: Lab, damage: str) -> None:
    guest = network.boot("h1")
    with client_socket(network, 7) as sock:
        echo(sock, b"x")
        destination = network.skeleton("h2")
        paused = guest.control.pause()
        good = os.pread(paused.fd, paused.device_bytes, 0)
        os.close(paused.fd)
        copy_memory(guest, destination)
        assert _load_fails(destination, _damaged(good, damage))
        assert destination.control.stats()["state"] == "skeleton"
        with pytest.raises(GuestError, match="skeleton"):
            destination.control.take(None, "h1")
        assert guest.control.resume() == (True, "h1")
        echo(sock, b"y")


def _damaged(blob: bytes, damage: str) -> bytes:
    state = device_state.decode(blob)
    if damage == "noise":
        return b"\xff" * 1000
    if damage == "flipped":
        return blob[:-1] + bytes([blob[-1] ^ 1])
    if damage == "other guest":
        return b"".join(device_state.encode(dataclasses.replace(state, name="other")))
    stream = state.streams[0]
    elsewhere = dataclasses.replace(stream, tcp=dataclasses.replace(stream.tcp, local=(GUEST_IP, 22)))
    return b"".join(device_state.encode(dataclasses.replace(state, streams=(elsewhere,))))


def _load_fails(guest: Guest, blob: bytes) -> bool:
    with pytest.raises(GuestError, match="device state"):
        _load(guest, blob)
    return True


def test_illegal_calls_are_refused_and_change_nothing(network: Lab) -> None:
    guest = network.boot("h1")
    control = guest.control
    for call in (control.resume, lambda: control.take(None, "h1"), control.start):
        with pytest.raises(GuestError, match="the guest is running"):
            call()
    with pytest.raises(GuestError, match="must be new"):
        control.configure(network.config("h1", False))
    with pytest.raises(GuestError, match="unknown command"):
        control.channel.call("nonsense", deadline=Deadline(NS_PER_S))
    with pytest.raises(GuestError, match="method"):
        control.track(True, "guessing")
    os.close(control.pause().fd)
    for call in (control.pause, control.close_door, lambda: control.take(None, "h1")):
        with pytest.raises(GuestError, match="the guest is paused"):
            call()
    assert control.resume() == (True, "h1")
    with client_socket(network, 7) as sock:
        echo(sock, b"x")


def test_a_guest_that_cannot_be_configured_ends(network: Lab) -> None:
    guest = network.spawn("h1")
    with pytest.raises(GuestError, match="no bridge 'br9'"):
        guest.control.configure(network.config("h1", False, bridge="br9"))
    assert guest.wait() == 0
    with pytest.raises(ChannelClosed):
        guest.control.stats()
    assert "vnet-g" not in network.namespaces["h1"].ip("link")


def test_a_noisy_peer_is_cut_off_and_the_others_are_served(network: Lab) -> None:
    guest = network.boot("h1")
    with socket.socket(socket.AF_UNIX) as noisy:
        noisy.connect(str(guest.socket))
        noisy.settimeout(10)
        noisy.sendall(b"nonsense\n")
        assert noisy.recv(100) == b""
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(guest.socket))
        slow.sendall(b'{"command": "pau')  # half a message keeps nobody waiting
        assert guest.control.stats()["state"] == "running"
