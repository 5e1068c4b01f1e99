"""What a flow wants of its TCP connection, checked and applied socket by socket.

Sources: tcp(7), RFC 5482 (TCP_USER_TIMEOUT), linux/tcp.h. ``tcp_retries2`` is a setting of the whole network namespace,
which the flows of a client host share; everything else is a connection's own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import ProbeError

TCP_RTO_MIN_US: Final = 45  # linux/tcp.h, from Linux 6.16 on
_IPV4: Final = Path("/proc/sys/net/ipv4")
_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "user_timeout_ns": (0, 3600 * NS_PER_S),
    "rto_min_ns": (0, NS_PER_S),
    "retries2": (0, 30),
    "syn_retries": (0, 127),
}


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """All optional: zero or empty leaves the kernel's default.

    :param keepalive: TCP_KEEPIDLE and TCP_KEEPINTVL in whole seconds, TCP_KEEPCNT; empty for none.
    :param nagle: whether small segments wait for an acknowledgement (RFC 896).
    """

    congestion: str = ""
    user_timeout_ns: int = 0
    keepalive: tuple[int, ...] = ()
    rto_min_ns: int = 0
    retries2: int = 0
    syn_retries: int = 0
    nagle: bool = False

    @classmethod
    def from_json(cls, raw: object, flow: str) -> TcpOptions:
        """:raises ProbeError: naming the member that is wrong."""
        if not isinstance(raw, Mapping):
            raise ProbeError(f"flow {flow}: tcp must be an object")
        congestion, keepalive, nagle = raw.get("congestion", ""), raw.get("keepalive", ()), raw.get("nagle", False)
        if not isinstance(congestion, str) or len(congestion) > 15 or not isinstance(nagle, bool):
            raise ProbeError(f"flow {flow}: tcp.congestion must be a short text and tcp.nagle true or false")
        if not isinstance(keepalive, list | tuple) or len(keepalive) not in (0, 3):
            raise ProbeError(f"flow {flow}: tcp.keepalive must be three numbers, or none")
        numbers: dict[str, int] = {}
        for key, (least, most) in _LIMITS.items():
            value = raw.get(key, 0)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ProbeError(f"flow {flow}: tcp.{key} must be a whole number from {least} to {most}")
            numbers[key] = value
        return cls(congestion=congestion, keepalive=tuple(map(int, keepalive)), nagle=nagle, **numbers)

    def apply(self, sock: socket.socket) -> None:
        """Before connecting.

        :raises OSError: when this kernel lacks one of them, naming it.
        """
        tcp = socket.IPPROTO_TCP
        wanted: list[tuple[str, int, int, int | bytes]] = []
        if self.congestion:
            wanted.append(("congestion", tcp, socket.TCP_CONGESTION, self.congestion.encode()))
        if self.user_timeout_ns:
            wanted.append(("user_timeout", tcp, socket.TCP_USER_TIMEOUT, self.user_timeout_ns // NS_PER_MS))
        if self.keepalive:
            idle, interval, count = self.keepalive
            wanted.append(("keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
            wanted += [("keepalive", tcp, socket.TCP_KEEPIDLE, idle), ("keepalive", tcp, socket.TCP_KEEPCNT, count)]
            wanted.append(("keepalive", tcp, socket.TCP_KEEPINTVL, interval))
        if self.rto_min_ns:
            wanted.append(("rto_min", tcp, TCP_RTO_MIN_US, self.rto_min_ns // 1000))
        if self.syn_retries:
            wanted.append(("syn_retries", tcp, socket.TCP_SYNCNT, self.syn_retries))
        wanted.append(("nagle", tcp, socket.TCP_NODELAY, int(not self.nagle)))
        for name, level, option, value in wanted:
            _set(sock, name, level, option, value)


def _set(sock: socket.socket, name: str, level: int, option: int, value: int | bytes) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        raise OSError(error.errno, f"tcp.{name}: {os.strerror(error.errno or 0)}") from error


def check_supported(options: TcpOptions, flow: str) -> None:
    """Whether this kernel has all of it, found out by doing. :raises ProbeError: naming the option."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            options.apply(sock)
        except OSError as error:
            raise ProbeError(
                f"flow {flow}: this kernel does not take {error.strerror}",
                "leave it out, or use a kernel that has it (see `bench doctor`; rto_min needs Linux 6.16)",
            ) from error


def set_retries2(value: int) -> None:
    """``tcp_retries2`` of this process's network namespace. :raises ProbeError: when it cannot be set."""
    try:
        (_IPV4 / "tcp_retries2").write_text(str(value), encoding="ascii")
    except OSError as error:
        raise ProbeError(f"tcp_retries2 cannot be set: {error.strerror}") from error


def kernel_retries() -> dict[str, int]:
    """``tcp_retries2`` and ``tcp_syn_retries`` as they are here; without those that cannot be read."""
    names = ("retries2", "syn_retries", "syn_linear_timeouts", "early_retrans")
    return {name: value for name in names if (value := _read(name)) is not None}


def _read(name: str) -> int | None:
    try:
        return int((_IPV4 / f"tcp_{name}").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
