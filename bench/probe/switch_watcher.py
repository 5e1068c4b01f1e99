"""The process that watches switch state: flow tables, FDBs, neighbour caches, conntrack. Started by :mod:`.switches`.

    python -m bench.probe.switch_watcher --channel-fd N

One loop waits for everything that is pushed: each line of ``ovs-ofctl monitor``, each netlink datagram. What can only
be asked for, Open vSwitch's FDB, is asked for in turn, one switch at a time: every :data:`CLOSE_NS` while a migration
goes on (``closely``), else every :data:`IDLE_NS`. It ends with its channel.

Command ``watch`` {guests, flows: [{switch, env, ports}], fdb: [{switch, socket, ports}], bridges: {switch: [port]},
hosts: {host: pid}, conntrack: {host: pid}, events}; ``closely`` {on}; *ports* names a switch's port numbers.

Events (source ``probe.switches``), of the guests' addresses only: ``flow_changed`` {switch, event, mac, outputs},
``fdb_changed`` {switch, mac, vlan, port, how}, ``neighbour_changed`` {host, ip, mac, state}, ``conntrack`` {host,
event, protocol, source, target}, ``watching`` {how}.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError
from bench.host.channel import Channel, serve_worker
from bench.host.kernel import CLONE_NEWNET, setns
from bench.host.ovs import ControlSocket
from bench.probe.switch_state import fdb_entries, flow_change, neighbours, tracked
from bench.timeline import EventWriter

CLOSE_NS: Final = NS_PER_MS
IDLE_NS: Final = 50 * NS_PER_MS
SOURCE: Final = "probe.switches"
_RTNLGRP_NEIGH: Final = 1 << 2
_CT_GROUPS: Final = 0x1 | 0x2 | 0x4  # new, update, destroy
_NETLINK_NETFILTER: Final = 12
_BUFFER_BYTES: Final = 4 << 20
_MAX_LINE_BYTES: Final = 1 << 16


class Watcher:
    """Everything that is watched, in one selector."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._macs = {str(guest["mac"]) for guest in told["guests"]}
        self._addresses = {str(guest["address"]) for guest in told["guests"]}
        self._write = EventWriter(Path(told["events"]), SOURCE)
        self._selector = selectors.DefaultSelector()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._selector.close)
        self._fdbs: list[tuple[str, ControlSocket, dict[str, str]]] = []
        self._fdb_ports: dict[tuple[str, str, int], str] = {}
        self._turn = 0
        self._close = False
        self._next_ns = now_ns()
        for item in told.get("flows", ()):
            self._monitor(str(item["switch"]), dict(item["env"]), dict(item["ports"]))
        for item in told.get("fdb", ()):
            control = ControlSocket(Path(item["socket"]))
            self._stack.callback(control.close)
            self._fdbs.append((str(item["switch"]), control, dict(item["ports"])))
        if told.get("bridges"):
            self._bridges({str(k): list(v) for k, v in told["bridges"].items()})
        for host, pid in told.get("hosts", {}).items():
            self._neighbours(str(host), int(pid))
        for host, pid in told.get("conntrack", {}).items():
            self._conntrack(str(host), int(pid))

    def close(self) -> None:
        self._stack.close()

    # what is pushed

    def _watch(self, source: Any, handle: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handle)

    def _monitor(self, switch: str, env: dict[str, str], names: dict[str, str]) -> None:
        argv = ["ovs-ofctl", "-O", "OpenFlow13", "monitor", switch, "watch:!initial"]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # what it monitors is printed there
            env={**os.environ, **env},
        )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        left = b""

        def lines() -> None:
            nonlocal left
            at_ns = now_ns()
            data = os.read(fd, 1 << 16)
            if not data:
                self._selector.unregister(fd)
                self._write("watching", switch=switch, how="flow monitor", ended=True)
                return
            *whole, left = (left + data).split(b"\n")
            left = left[-_MAX_LINE_BYTES:]
            for line in whole:
                change = flow_change(line.decode(errors="replace"))
                if change is not None and change.mac in self._macs:
                    told = {
                        "event": change.event,
                        "mac": change.mac,
                        "outputs": [names.get(port, port) for port in change.outputs],
                    }
                    self._write("flow_changed", at_ns, switch=switch, **told)

        self._watch(fd, lines)

    def _netlink(self, protocol: int, groups: int, pid: int | None) -> socket.socket:
        """A netlink socket in a process's network namespace."""
        own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if pid is not None:
                there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    setns(there, CLONE_NEWNET)
                finally:
                    os.close(there)
            try:
                sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            finally:
                if pid is not None:
                    setns(own, CLONE_NEWNET)
        finally:
            os.close(own)
        self._stack.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.bind((0, groups))
        sock.setblocking(False)
        return sock

    def _bridges(self, ports: Mapping[str, list[str]]) -> None:
        switch_of = {socket.if_nametoindex(port): (switch, port) for switch, names in ports.items() for port in names}
        sock = self._netlink(socket.NETLINK_ROUTE, _RTNLGRP_NEIGH, None)

        def entries() -> None:
            at_ns = now_ns()
            for entry in neighbours(sock.recv(1 << 16)):
                place = switch_of.get(entry.interface)
                if entry.bridge and place is not None and entry.mac in self._macs and not entry.gone:
                    key = (place[0], entry.mac, entry.vlan)
                    if self._fdb_ports.get(key) != place[1]:
                        self._fdb_ports[key] = place[1]
                        told = {"switch": place[0], "mac": entry.mac, "vlan": entry.vlan, "port": place[1]}
                        self._write("fdb_changed", at_ns, **told, how="netlink")

        self._watch(sock, entries)

    def _neighbours(self, host: str, pid: int) -> None:
        sock = self._netlink(socket.NETLINK_ROUTE, _RTNLGRP_NEIGH, pid)

        def entries() -> None:
            at_ns = now_ns()
            for entry in neighbours(sock.recv(1 << 16)):
                if not entry.bridge and entry.ip in self._addresses:
                    state = "gone" if entry.gone else entry.state
                    self._write("neighbour_changed", at_ns, host=host, ip=entry.ip, mac=entry.mac, state=state)

        self._watch(sock, entries)

    def _conntrack(self, host: str, pid: int) -> None:
        sock = self._netlink(_NETLINK_NETFILTER, _CT_GROUPS, pid)

        def entries() -> None:
            at_ns = now_ns()
            for item in tracked(sock.recv(1 << 16)):
                if item.source[0] in self._addresses or item.target[0] in self._addresses:
                    told = {"event": item.event, "protocol": item.protocol}
                    ends = {"source": list(item.source), "target": list(item.target)}
                    self._write("conntrack", at_ns, host=host, **told, **ends)

        self._watch(sock, entries)

    # what is asked for

    def command(self, name: str, args: Mapping[str, Any]) -> None:
        """``closely``."""
        if name != "closely":
            raise ValueError(f"unknown command {name[:40]!r}")
        self._close = bool(args["on"])
        self._next_ns = now_ns()

    def _ask(self) -> None:
        switch, control, names = self._fdbs[self._turn % len(self._fdbs)]
        self._turn += 1
        try:
            text = control.call("fdb/show", switch, deadline=Deadline(NS_PER_S))
        except BenchError:
            return  # the switch is busy or gone: whoever needs it says so
        at_ns = now_ns()
        for (mac, vlan), number in fdb_entries(text).items():
            port = names.get(number, number)
            if mac in self._macs and self._fdb_ports.get((switch, mac, vlan)) != port:
                self._fdb_ports[switch, mac, vlan] = port
                self._write("fdb_changed", at_ns, switch=switch, mac=mac, vlan=vlan, port=port, how="poll")

    # the loop

    def turn(self, channel_fd: int) -> bool:
        """Wait for something and handle it. :returns: whether the channel has something to say."""
        wait_ns = max(0, self._next_ns - now_ns()) if self._fdbs else NS_PER_S
        if channel_fd not in self._selector.get_map():
            self._selector.register(channel_fd, selectors.EVENT_READ, None)
        spoken = False
        for key, _events in self._selector.select(wait_ns / NS_PER_S):
            if key.data is None:
                spoken = True
            else:
                with contextlib.suppress(BlockingIOError):
                    key.data()
        if self._fdbs and now_ns() >= self._next_ns:
            self._ask()
            self._next_ns = now_ns() + (CLOSE_NS if self._close else IDLE_NS)
        return spoken


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    serve_worker(Channel.from_fd(parser.parse_args().channel_fd, "runner"), Watcher)
    return 0


if __name__ == "__main__":
    sys.exit(main())
