"""The carrier SSH: every connection tunnelled by paramiko to a real sshd in the destination hypervisor, as libvirt's
``qemu+ssh`` does.

::

    source engine -- socket pair -- pump (paramiko) == TCP across the network == sshd -- loopback -- destination engine

The engine makes the TCP connection and keeps a descriptor of it, so that the kernel's figures, its timeouts and a reset
are the engine's to use; the pump (:mod:`bench.migration.ssh_pump`), a process for each connection, does all that SSH
is. It counts in shared memory what it has written to TCP: what the engine has sent beyond that is queued inside the
tunnel, and counts as queued. Keys are made for each migration; the host key is pinned.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.host.commands import python_environment
from bench.host.openssh import find_sshd
from bench.migration.carriers import Credentials, Listening, Reception
from bench.migration.door import Door
from bench.migration.sshd import Sshd
from bench.migration.transport import (
    LINK_TIMEOUT_NS,
    Connection,
    PeerLost,
    TransportInfo,
    Watched,
    connected,
    hurry,
    listen,
    ready_beside,
    set_timeouts,
    tcp_info,
    tune,
)

LOOPBACK: Final = "127.0.0.1"
HANDSHAKE_NS: Final = 30 * NS_PER_S  # key exchange and authentication, by a Python that may have to start first
QUEUE_BYTES: Final = 256 << 10  # between engine and pump
COUNTERS: Final = struct.Struct("=QQ")  # bytes of the engine that were written to TCP; CPU time of the pump in ns


class Ssh:
    """See this module."""

    name = "ssh"

    def credentials(self) -> tuple[Credentials, Credentials]:
        from bench.migration.certificates import make_ssh_key  # noqa: PLC0415 - the engines never make any

        find_sshd()
        host, user = make_ssh_key(), make_ssh_key()
        return (
            {"key": user.key, "host_key": host.public},
            {"host_key": host.key, "authorized": user.public},
        )

    def dialer(self, address: str, port: int, link_timeout_ns: int, credentials: Credentials) -> SshDialer:
        return SshDialer(address, port, link_timeout_ns, credentials)

    def receive(self, place: Listening, stack: contextlib.ExitStack) -> Reception:
        door = Door(listen(LOOPBACK, 0), place.ticket, place.link_timeout_ns, Connection)
        stack.callback(door.close)
        sshd = Sshd(place.address, place.port, (LOOPBACK, door.port), place.credentials, Path(place.guest_log))
        stack.callback(sshd.stop)
        sshd.start()
        return SshReception(door, sshd)


class SshReception(Reception):
    """The door is on the loopback: only the sshd reaches it."""

    def __init__(self, door: Door, sshd: Sshd) -> None:
        super().__init__(door, sshd.port, {"forward": [LOOPBACK, door.port]})
        self._sshd = sshd

    def cost(self) -> dict[str, int]:
        return {"cpu_ns": self._sshd.cpu_ns()}


class SshDialer:
    """The source's side."""

    def __init__(self, address: str, port: int, link_timeout_ns: int, credentials: Credentials) -> None:
        self._address = address
        self._port = port
        self._link_timeout_ns = link_timeout_ns
        self._credentials = credentials

    def dial(self, deadline: Deadline, watched: Watched) -> Connection:
        where = f"{self._address}:{self._port}"
        begin_ns = now_ns()
        link = connected(self._address, self._port, deadline, watched)
        with contextlib.ExitStack() as stack:
            stack.callback(link.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.callback(ours.close)
            told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.callback(told.close)
            counters = os.memfd_create("counters", os.MFD_CLOEXEC)
            stack.callback(os.close, counters)
            os.ftruncate(counters, COUNTERS.size)
            passed = (link.fileno(), theirs.fileno(), telling.fileno(), counters)
            with theirs, telling:
                pump = subprocess.Popen(
                    [sys.executable, "-m", "bench.migration.ssh_pump", *map(str, passed)],
                    pass_fds=passed,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **python_environment()},
                )
            stack.callback(_end, pump)
            told.sendall(json.dumps(dict(self._credentials)).encode() + b"\n")
            answer = _answer(told, Deadline(HANDSHAKE_NS), where, watched)
            if "error" in answer:
                raise PeerLost(f"SSH to {where}: {answer['error']}")
            connection = TunnelConnection(ours, link, pump, mmap.mmap(counters, COUNTERS.size), self._link_timeout_ns)
            connection.handshake_ns = now_ns() - begin_ns
            told.close()
            os.close(counters)
            stack.pop_all()
        return connection


def _answer(sock: socket.socket, deadline: Deadline, where: str, watched: Watched) -> Mapping[str, Any]:
    """The pump's one line, when the tunnel is there or will never be."""
    line = b""
    while not line.endswith(b"\n"):
        if not ready_beside(sock.fileno(), select.POLLIN, deadline, watched):
            raise PeerLost(f"SSH to {where}: no tunnel within {deadline.duration_ns / NS_PER_S:g} s")
        part = sock.recv(4096)
        if not part or len(line) > 1 << 16:
            raise PeerLost(f"SSH to {where}: the process that tunnels died")
        line += part
    value = json.loads(line)
    return value if isinstance(value, dict) else {}


def _end(pump: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        pump.kill()
    pump.wait()


class TunnelConnection(Connection):
    """One end, at the source.

    :param sock: to the pump; *link*: the TCP connection that the pump writes to.
    """

    takes_files = False

    def __init__(
        self,
        sock: socket.socket,
        link: socket.socket,
        pump: subprocess.Popen[bytes],
        counters: mmap.mmap,
        link_timeout_ns: int = LINK_TIMEOUT_NS,
    ) -> None:
        self.handshake_ns = 0
        self._link = link
        self._pump = pump
        self._counters = counters
        self._cost: dict[str, int] = {}
        super().__init__(sock, link_timeout_ns)

    def tune(self) -> None:
        tune(self._link, self.link_timeout_ns)
        self.set_link_timeout(self.link_timeout_ns)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES // 2)

    def set_link_timeout(self, link_timeout_ns: int) -> None:
        self.link_timeout_ns = link_timeout_ns
        set_timeouts(self._link, link_timeout_ns)
        whole, part = divmod(link_timeout_ns, NS_PER_S)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", whole, part // 1000))

    def hurry(self) -> None:
        hurry(self._link)

    def limit_queue(self, limit_bytes: int) -> None:
        """Shared by the pair to the pump and the TCP connection."""
        super().limit_queue(max(limit_bytes // 4, 64 << 10))
        half = max(limit_bytes // 2, 64 << 10) // 2
        with contextlib.suppress(OSError):
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, half)

    def limit_unsent(self, limit_bytes: int) -> None:
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit_bytes)

    def close(self) -> None:
        """The pump sends what it has, then ends; the descriptor of the link goes now."""
        if self.sock.fileno() >= 0:
            self._note_cost()
            self.sock.close()
            self._link.close()
            threading.Thread(target=self._pump.wait, daemon=True).start()  # it is reaped when it has sent the rest

    def abort(self) -> None:
        if self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._note_cost()
            _end(self._pump)
        self.close()

    def info(self) -> TransportInfo:
        info = tcp_info(self._link)
        written, _cpu_ns = self._read_counters()
        queued = max(0, self.sent_bytes - written) + info.queued_bytes
        acked = max(0, self.sent_bytes - queued)
        return TransportInfo(acked, queued, info.rtt_ns, info.min_rtt_ns, info.retransmits)

    def cost(self) -> dict[str, int]:
        if self.sock.fileno() >= 0:
            self._note_cost()
        return self._cost

    def _note_cost(self) -> None:
        with contextlib.suppress(OSError):
            info = tcp_info(self._link)
            written, cpu_ns = self._read_counters()
            wire = info.acked_bytes + info.queued_bytes
            self._cost = {
                "wire_bytes": wire,
                "overhead_bytes": max(0, wire - written),
                "handshake_ns": self.handshake_ns,
                "cpu_ns": cpu_ns,
            }

    def _read_counters(self) -> tuple[int, int]:
        written, cpu_ns = COUNTERS.unpack_from(self._counters)
        return written, cpu_ns
