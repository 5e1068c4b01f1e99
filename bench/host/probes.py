"""What this machine can do, found by doing it, never by a version.

A probe takes a directory of its own, returns what it saw in a few words, and raises :class:`BenchError` or
:class:`OSError` when the machine cannot. Probes make interfaces and start daemons: run them in a sandbox
(:func:`bench.host.sandbox.call_in_sandbox`), which takes everything away again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import HostError, MachineError
from bench.host.commands import Process, run, spawn
from bench.host.controller import ControllerProcess
from bench.host.kernel import entered_netns
from bench.host.openssh import find_sshd
from bench.host.ovs import OpenVSwitch, kernel_datapath_problem

Probe = Callable[[Path], str]

TUN_DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_TUN_F_CSUM_TSO4_TSO6 = 0x01 | 0x02 | 0x04

_TCP_REPAIR = 19  # linux/tcp.h
_TCP_REPAIR_QUEUE = 20
_TCP_QUEUE_SEQ = 21
_TCP_SEND_QUEUE = 2

_COMMAND_NS = 10 * NS_PER_S
_TRANSFER_BYTES = 8 << 20
_TRANSFER_NS = 5 * NS_PER_S


def _run(*argv: str, netns_pid: int | None = None) -> str:
    return run(list(argv), deadline=Deadline(_COMMAND_NS), netns_pid=netns_pid).stdout


def mnexec(directory: Path) -> str:
    """A process in a network namespace made by mnexec, and another that joins it."""
    with _namespace(directory, "mnexec", ["mnexec", "-n"]) as process:
        there = _run("readlink", "/proc/self/ns/net", netns_pid=process.pid).strip()
    if there == str(Path("/proc/self/ns/net").readlink()):
        raise HostError("mnexec -a did not enter the other network namespace")
    return "makes namespaces and enters them"


def mininet(_directory: Path) -> str:
    """Import it."""
    from bench.host.ovs_switch import MININET_VERSION  # noqa: PLC0415  loads Mininet

    return MININET_VERSION


@contextlib.contextmanager
def _namespace(directory: Path, name: str, prefix: list[str]) -> Iterator[Process]:
    """A process that holds a network namespace of its own, ready when the body runs."""
    process = spawn([*prefix, "sh", "-c", "echo ready; exec sleep 600"], log=directory / f"{name}.log")
    try:
        deadline = Deadline(_COMMAND_NS)
        while "ready" not in process.last_lines():
            process.require_alive()
            if deadline.expired:
                raise HostError(f"{name}: no namespace in time")
            time.sleep(NS_PER_MS / NS_PER_S)  # a file cannot be waited for
        yield process
    finally:
        process.stop()


def kernel_datapath(_directory: Path) -> str:
    """Create a datapath in the kernel."""
    problem = kernel_datapath_problem()
    if problem:
        raise MachineError(problem)
    return "a datapath can be created"


def user_datapath(directory: Path) -> str:
    """Private daemons, a bridge, and a TCP transfer in large segments through it between two namespaces."""
    with contextlib.ExitStack() as stack:
        ovs = stack.enter_context(OpenVSwitch(directory / "ovs", datapath="user"))
        ends = [stack.enter_context(_namespace(directory, f"end{n}", ["unshare", "--net"])) for n in (1, 2)]
        words = ["--", "add-br", "probe0", "--", "set", "Bridge", "probe0", "datapath_type=netdev"]
        for number, end in enumerate(ends, 1):
            port = f"probe0-{number}"
            _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(end.pid))
            _run("ip", "link", "set", port, "up")
            _run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth0", netns_pid=end.pid)
            _run("ip", "link", "set", "eth0", "up", netns_pid=end.pid)
            words += ["--", "add-port", "probe0", port]
        ovs.vsctl(*words)
        try:
            _transfer(ends[0].pid, ends[1].pid)
        except TimeoutError as error:  # what happens without its support for segmentation offload
            raise MachineError("TCP in large segments does not get through") from error
        return f"Open vSwitch {ovs.version}, TCP in large segments gets through"


def _transfer(server_pid: int, client_pid: int) -> None:
    """Send bytes over TCP from one namespace to the other. :raises TimeoutError: when they stop coming."""
    limit_s = _TRANSFER_NS / NS_PER_S
    with contextlib.ExitStack() as stack:
        with entered_netns(server_pid):
            listener = stack.enter_context(socket.create_server(("10.99.0.1", 0)))
        with entered_netns(client_pid):
            client = stack.enter_context(socket.create_connection(listener.getsockname(), limit_s))
        listener.settimeout(limit_s)
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(limit_s)
        sender = threading.Thread(target=_send_all, args=(client, b"x" * _TRANSFER_BYTES), daemon=True)
        sender.start()
        got = 0
        while got < _TRANSFER_BYTES and (data := server.recv(1 << 20)):
            got += len(data)
        sender.join(limit_s)
    if got < _TRANSFER_BYTES:
        raise MachineError(f"the connection ended after {got} of {_TRANSFER_BYTES} bytes")


def _send_all(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the receiver says what is wrong
        sock.sendall(data)


def queueing(*discipline: str) -> Probe:
    """A probe that puts a queueing discipline (its tc arguments) on an interface."""

    def probe(_directory: Path) -> str:
        _run("tc", "qdisc", "replace", "dev", "lo", "root", *discipline)
        shown = _run("tc", "qdisc", "show", "dev", "lo")
        _run("tc", "qdisc", "del", "dev", "lo", "root")
        if f"qdisc {discipline[0]}" not in shown and f" {discipline[0]} " not in shown:
            raise MachineError(f"the kernel took {discipline[0]} and shows {shown.strip()[:100]!r}")
        return "can be set"

    return probe


def jumbo_frames(_directory: Path) -> str:
    """A veth pair that carries packets of 9000 bytes."""
    _run("ip", "link", "add", "probe-j", "mtu", "9000", "type", "veth", "peer", "name", "probe-k", "mtu", "9000")
    shown = json.loads(_run("ip", "-j", "link", "show", "dev", "probe-j"))[0].get("mtu")
    _run("ip", "link", "del", "probe-j")
    if shown != 9000:
        raise MachineError(f"an interface that was given an MTU of 9000 has {shown}")
    return "interfaces take an MTU of 9000"


def tap(_directory: Path) -> str:
    """A tap device with virtio-net headers and segmentation offload."""
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"probe-tap", _IFF_TAP_NO_PI_VNET_HDR))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO4_TSO6)
    finally:
        os.close(fd)
    return "taps carry whole TCP segments"


def bridge_port_state(_directory: Path) -> str:
    """A bridge whose port is disabled and wired again by netlink: how a guest's network is cut."""
    _run("ip", "link", "add", "probe-br", "type", "bridge")
    _run("ip", "link", "add", "probe-a", "type", "veth", "peer", "name", "probe-b")
    for name in ("probe-br", "probe-a", "probe-b"):
        _run("ip", "link", "set", name, "up")
    # a carrier event that comes late enables a disabled port again
    operational = Path("/sys/class/net/probe-a/operstate")
    wait_until(lambda: operational.read_text() == "up\n", Deadline(_COMMAND_NS), "the carrier of a veth pair")
    _run("ip", "link", "set", "probe-a", "master", "probe-br")
    for state, shown in (("0", "disabled"), ("3", "forwarding")):
        _run("bridge", "link", "set", "dev", "probe-a", "state", state)
        port = json.loads(_run("bridge", "-j", "link", "show", "dev", "probe-a"))[0]
        if port.get("state") != shown:
            raise MachineError(f"a port that was {shown} shows as {port.get('state')}")
    return "ports can be cut and wired"


def shared_memory(_directory: Path) -> str:
    """Guest memory: a memfd that two mappings share."""
    fd = os.memfd_create("probe")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as one, mmap.mmap(fd, mmap.PAGESIZE) as two:
            one[0] = 1
            if two[0] != 1:
                raise MachineError("two mappings of a memfd do not share memory")
    finally:
        os.close(fd)
    return f"memfd, pages of {mmap.PAGESIZE} bytes"


def tcp_repair(_directory: Path) -> str:
    """Read the sequence number of an established connection in repair mode."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        stack.enter_context(listener.accept()[0])
        client.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        client.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _TCP_SEND_QUEUE)
        client.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
        client.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    return "connections can move"


def tcpdump(_directory: Path) -> str:
    """Open a capture on all interfaces, with nanoseconds and the header that names the interface."""
    _run("tcpdump", "-i", "any", "-y", "LINUX_SLL2", "--time-stamp-precision=nano", "-d", "arp or rarp")
    return "captures on all interfaces, in ns"


def program(*argv: str) -> Probe:
    """A probe that runs a program and returns the first line that it prints."""

    def probe(_directory: Path) -> str:
        lines = _run(*argv).strip().splitlines()
        return lines[0].strip()[:80] if lines else "runs"

    return probe


def controller(framework: str) -> Probe:
    """A probe that starts the bench's controller in a framework and waits until it listens."""

    def probe(directory: Path) -> str:
        with ControllerProcess(framework, "learning", directory / framework, port=0) as process:
            return process.version or "listens"

    return probe


def sshd(_directory: Path) -> str:
    """Where it is: it needs keys and a configuration to run, which each migration makes."""
    return find_sshd()
