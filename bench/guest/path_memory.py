"""What a connection knew of its path, given to the kernel that goes on with it.

TCP_REPAIR carries neither the congestion window nor the retransmission timeout. A restored connection starts with a
window of 10 segments and, having no round-trip sample, a timeout of 3 s (TCP_TIMEOUT_FALLBACK): a guest that had more
in flight when it was paused sends nothing new, and what the blackout swallowed is missing for seconds. A virtual
machine's kernel moves with both. So, while a connection is being restored, the kernel is told

- the window, by the ``initcwnd`` metric of a route to the peer (ip-route(8));
- that the path is a quick one, by a short conversation on the loopback between the guest's address and the peer's,
  which leaves a round-trip time in the TCP metrics of that pair (ip-tcp_metrics(8)). The timeout of a connection
  restored after it is the minimum of 200 ms (RFC 6298's formula on Linux, net/ipv4/tcp_metrics.c, tcp_init_metrics).

The network must be cut: for the moment of the conversation the peer's address is the guest's own. The true round-trip
time is not carried; the first acknowledgement measures it anew.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from bench.guest.device_state import TcpState, family_of
from bench.guest.port import GUEST_INTERFACE, Netlink, attribute

MAX_WINDOW_SEGMENTS = 10_000

_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_F_REPLACE, _F_CREATE = 0x100, 0x400
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TABLE_LOCAL, _SCOPE_HOST, _LOCAL = 255, 254, 2
_IPV6_FREEBIND = 78
_RTA_DST, _RTA_OIF, _RTA_METRICS, _RTAX_INITCWND = 1, 4, 8, 11
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST = 254, 4, 253, 1
_NESTED = 0x8000
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ROUND_TRIPS = 3
_TIMEOUT_S = 1.0


@contextlib.contextmanager
def remembered(
    connections: Iterable[TcpState], card_of: Callable[[str], str] = lambda _local: GUEST_INTERFACE
) -> Iterator[None]:
    """While the body restores *connections* of the guest's namespace, their paths are known to its kernel.

    :param card_of: the interface that one of the guest's addresses is at.
    :raises OSError: when the kernel refuses.
    """
    windows: dict[tuple[str, str], int] = {}
    for state in connections:
        pair = (state.local[0], state.remote[0])
        windows[pair] = min(max(windows.get(pair, 0), state.congestion_window), MAX_WINDOW_SEGMENTS)
    if not windows:
        yield
        return
    with contextlib.closing(Netlink()) as netlink, contextlib.ExitStack() as stack:
        loopback = socket.if_nametoindex("lo")
        for (local, remote), window in windows.items():
            _teach_round_trip(netlink, loopback, local, remote)
            route = _route(remote, socket.if_nametoindex(card_of(local)), window)
            netlink.request(_RTM_NEWROUTE, _F_CREATE | _F_REPLACE, route)
            stack.callback(netlink.request, _RTM_DELROUTE, 0, route)
        yield


def _teach_round_trip(netlink: Netlink, loopback: int, local: str, remote: str) -> None:
    """IPv6 has a local route in place of an address, which the kernel takes up only when a worker of its has time."""
    packed = ipaddress.ip_address(remote).packed
    if family_of(remote) == socket.AF_INET6:
        places = (_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _LOCAL)
        body = _ROUTE.pack(socket.AF_INET6, 8 * len(packed), 0, 0, *places, 0)
        body += attribute(_RTA_DST, packed) + attribute(_RTA_OIF, struct.pack("=I", loopback))
        new, delete = _RTM_NEWROUTE, _RTM_DELROUTE
    else:
        body = _ADDRESS.pack(socket.AF_INET, 8 * len(packed), 0, 0, loopback)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        new, delete = _RTM_NEWADDR, _RTM_DELADDR
    netlink.request(new, _F_CREATE | _F_REPLACE, body)
    try:
        _converse(local, remote)
    finally:
        netlink.request(delete, 0, body)


def _converse(local: str, remote: str) -> None:
    """A few round trips; the guest's side is closed last, which is when the kernel keeps what it measured."""
    family = family_of(local)
    with socket.socket(family) as listener, socket.socket(family) as guest:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        listener.bind((remote, 0))
        listener.listen(1)
        guest.settimeout(_TIMEOUT_S)
        guest.bind((local, 0))
        guest.connect(listener.getsockname())
        peer, _address = listener.accept()
        with peer:
            peer.settimeout(_TIMEOUT_S)
            for _ in range(_ROUND_TRIPS):
                guest.send(b"?")
                peer.recv(1)
                peer.send(b"!")
                guest.recv(1)
        guest.recv(1)  # the peer's end of file


def _route(remote: str, card: int, window: int) -> bytes:
    """A route to one host by the guest's card, with the window that connections on it start with."""
    packed = ipaddress.ip_address(remote).packed
    places = (_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST)
    header = _ROUTE.pack(family_of(remote), 8 * len(packed), 0, 0, *places, 0)
    destination = attribute(_RTA_DST, packed)
    output = attribute(_RTA_OIF, struct.pack("=I", card))
    metrics = attribute(_RTA_METRICS | _NESTED, attribute(_RTAX_INITCWND, struct.pack("=I", window)))
    return header + destination + output + metrics
