"""A guest's network card: a veth pair whose host end is a port of the hypervisor's bridge.

Set up over rtnetlink, without external commands. What happens in the middle of a switchover, cutting and wiring the
port, is one message that was built beforehand: setting a bridge port's state takes some 0.07 ms and loses nothing,
whereas taking links down and up sometimes leaves a dead link for seconds.

Sources: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/if_bridge.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import DeadlineError, GuestError
from bench.host import vlan_tags
from bench.host.kernel import set_sysctls, switch_ipv6_on

GUEST_INTERFACE = "eth0"
"""The first card, as the guest sees it; see :func:`card_interface` for the others."""
_SIOCGIFMTU = 0x8921
_INTERFACE_BYTES = 15  # IFNAMSIZ - 1

# Bounds of what a connection's queues can hold, and with them of the device state: 16 MiB, the usual limit, would take
# 130 ms at 1 Gbit/s. Unsent bytes are bounded on their own, so that the send buffer may hold a long link's window.
_SYSCTLS: dict[str, str | int] = {
    "net.ipv6.conf.all.disable_ipv6": 1,
    "net.ipv6.conf.default.disable_ipv6": 1,
    "net.ipv4.tcp_rmem": "4096 131072 1048576",
    "net.ipv4.tcp_wmem": "4096 65536 4194304",
    "net.ipv4.tcp_notsent_lowat": 131072,
    "net.ipv4.conf.all.rp_filter": 0,  # segments as if from the peer come in through lo when a state is restored
    "net.ipv4.conf.default.rp_filter": 0,
}

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK, _RTM_NEWADDR, _RTM_NEWNEIGH, _RTM_GETNEIGH = (
    16,
    17,
    18,
    19,
    20,
    28,
    30,
)
_RTM_NEWROUTE, _RT_TABLE_MAIN, _RTPROT_KERNEL, _RTPROT_BOOT, _RTN_UNICAST, _RT_SCOPE_LINK = 24, 254, 2, 3, 1, 253
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTAX_MTU = 1, 4, 5, 7, 8, 2
_F_REQUEST, _F_ACK, _F_EXCL, _F_REPLACE, _F_CREATE, _F_DUMP = 0x1, 0x4, 0x200, 0x100, 0x400, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_OPERSTATE, _IFLA_LINKINFO = 1, 3, 10, 12, 16, 18
_IFLA_MTU, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 4, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1
_IFLA_BRPORT_STATE, _DISABLED, _FORWARDING = 1, 0, 3
_IFA_LOCAL, _IFA_ADDRESS, _IFA_F_NODAD = 2, 1, 0x02
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_REACHABLE, _NUD_USABLE = 0x02, 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
_AF_BRIDGE = 7
_IFF_UP = 1
_OPER_UP = 6
_STALE_NS = 10 * NS_PER_S

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_ROUTE = struct.Struct("=8BI")  # struct rtmsg


def attribute(kind: int, payload: bytes) -> bytes:
    """One struct rtattr, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes | memoryview) -> dict[int, bytes]:
    """The attributes in *data* by their kind, the flag of nested ones removed; nonsense at the end is left out."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & 0x3FFF] = bytes(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


class Netlink:
    """A NETLINK_ROUTE socket; it stays in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Ask and wait for the acknowledgement. :raises OSError: what the kernel answered."""
        self.send_prepared(self.prepare(kind, flags, body))

    @staticmethod
    def prepare(kind: int, flags: int, body: bytes) -> bytes:
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | _F_REQUEST | _F_ACK, 0, 0) + body

    def send_prepared(self, message: bytes) -> None:
        """:raises OSError: what the kernel answered."""
        self._sock.send(message)
        for kind, payload in self._receive():
            if kind == _NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", payload)
                if error:
                    raise OSError(-error, os.strerror(-error))
                return
        raise OSError(errno.EPROTO, "no acknowledgement from rtnetlink")

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The payload of every answer. :raises OSError: what the kernel answered."""
        self._sequence += 1
        flags = _F_REQUEST | _F_DUMP
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        found: list[bytes] = []
        while True:
            for answer, payload in self._receive():
                if answer == _NLMSG_DONE:
                    return found
                if answer == _NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", payload)
                    raise OSError(-error, os.strerror(-error))
                found.append(payload)

    def _receive(self) -> list[tuple[int, bytes]]:
        data = self._sock.recv(1 << 16)
        messages = []
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _flags, _sequence, _pid = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                break
            messages.append((kind, data[offset + _HEADER.size : offset + length]))
            offset += (length + 3) & ~3
        return messages

    def link(self, index: int, family: int = 0) -> dict[int, bytes]:
        """The attributes of one interface; empty when there is none."""
        for payload in self.dump(_RTM_GETLINK, _LINK.pack(family, 0, 0, 0, 0)):
            if _LINK.unpack_from(payload)[2] == index:
                return attributes(payload[_LINK.size :])
        return {}


def card_interface(number: int) -> str:
    """The name of a guest's card in the guest: ``eth0`` is the first."""
    return f"eth{number}"


def port_interface(name: str, number: int) -> str:
    """The name of the hypervisor's end of a guest's card."""
    return f"vnet-{name}-{number}" if number else f"vnet-{name}"


class GuestPort:
    """A guest's card and the bridge port behind it. Make it in the hypervisor's namespace, before unsharing.

    :param name: the guest's; the port is called ``vnet-<name>``, of a further card ``vnet-<name>-<number>``.
    :param bridge: the hypervisor's bridge.
    :param number: of the card, from 0.
    :raises GuestError: when the name is too long or the bridge is missing.
    """

    def __init__(self, name: str, bridge: str, number: int = 0) -> None:
        self.interface = port_interface(name, number)
        self.card = card_interface(number)
        self.forwarding = False
        if len(self.interface.encode()) > _INTERFACE_BYTES or "/" in name or not name:
            most = _INTERFACE_BYTES - len(port_interface("", number))
            raise GuestError(f"guest name {name!r}: 1 to {most} bytes without a slash are allowed")
        try:
            self._bridge_index = socket.if_nametoindex(bridge)
        except OSError as error:
            raise GuestError(f"no bridge {bridge!r} in the hypervisor: {error.strerror}") from error
        self._host = Netlink()
        self._guest: Netlink | None = None
        self._wire = self._cut = b""
        self._host_index = 0
        self._mtu = 1500
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []

    def create(
        self,
        mac: str,
        address: str,
        namespace_fd: int,
        gateway: str = "",
        mtu: int = 1500,
        accepts: int = 0,
        *,
        address6: str = "",
        vlan: int = 0,
    ) -> None:
        """Make the pair and attach it, cut; to be called in the guest's namespace.

        :param mac: of the guest, as ``02:00:00:00:01:01``.
        :param address: as ``10.0.1.1/16``.
        :param namespace_fd: the guest's network namespace.
        :param gateway: of its default route; empty for none.
        :param mtu: what the guest sends at most.
        :param accepts: what both ends let in, if that is more: a switch may join packets of a connection to larger ones
            where its next link carries those (Open vSwitch's userspace datapath does).
        :param address6: as ``fd00::1:1/64``; empty: the card has no IPv6.
        :param vlan: the port's: frames are tagged behind it (:mod:`bench.host.vlan_tags`); 0 for none.
        :raises GuestError: when the kernel refuses.
        :raises MachineError: when it has no VLANs for us.
        """
        refused = set_sysctls(_SYSCTLS)
        unimportant = {name for name in _SYSCTLS if "ipv6" in name and not Path("/proc/sys/net/ipv6").exists()}
        if set(refused) - unimportant:
            raise GuestError(f"the guest's network stack refuses {', '.join(refused)}")
        try:
            self._mtu = mtu
            accepts = max(mtu, accepts)
            self._create(mac, namespace_fd, vlan, accepts)
            self._add_address(ipaddress.IPv4Interface(address), accepts)
            if address6:
                self._add_ipv6(ipaddress.IPv6Interface(address6), accepts)
            if gateway:
                self._add_default_route(ipaddress.IPv4Address(gateway))
        except (OSError, ValueError, DeadlineError) as error:
            raise GuestError(f"port {self.interface} of guest {address}: {error}") from error

    def _create(self, mac: str, namespace_fd: int, vlan: int, accepts: int) -> None:
        self._guest = guest = Netlink()
        peer = _LINK.pack(0, 0, 0, 0, 0) + b"".join(
            (
                attribute(_IFLA_IFNAME, self.card.encode() + b"\0"),
                attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))),
                attribute(_IFLA_MTU, struct.pack("=I", accepts)),
                attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace_fd)),
            )
        )
        info = attribute(_IFLA_INFO_KIND, b"veth") + attribute(
            _IFLA_INFO_DATA | _NESTED, attribute(_VETH_INFO_PEER | _NESTED, peer)
        )
        body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, self.interface.encode() + b"\0")
        body += attribute(_IFLA_MTU, struct.pack("=I", accepts))
        body += attribute(_IFLA_LINKINFO | _NESTED, info)
        wait_until(lambda: self._make_pair(body), Deadline(_STALE_NS), f"{self.interface} of an earlier guest gone")
        self._host_index = host_index = self._find_host_index()
        guest_index = socket.if_nametoindex(self.card)
        # The guest's address comes last. A bridge lets a port forward as soon as it joins, and a guest without an
        # address has nothing to say and no question to answer until the port is cut.
        _set_up(guest, socket.if_nametoindex("lo"))
        _without_link_local_address(self._host, host_index)
        _set_up(guest, guest_index)
        _set_up(self._host, host_index)
        # A late carrier event would make the bridge enable the port again
        wait_until(
            lambda: self._host.link(host_index).get(_IFLA_OPERSTATE) == bytes([_OPER_UP]),
            Deadline(5 * NS_PER_S),
            f"carrier of {self.interface}",
            interval_ns=NS_PER_S // 1000,
        )
        if vlan:
            vlan_tags.attach(self._host.request, host_index, vlan, "port")
        body = _LINK.pack(0, 0, host_index, 0, 0)
        self._host.request(_RTM_SETLINK, 0, body + attribute(_IFLA_MASTER, struct.pack("=I", self._bridge_index)))
        self._cut, self._wire = (_port_state(host_index, state) for state in (_DISABLED, _FORWARDING))
        self.cut()
        self._check_cut(host_index)

    def _add_address(self, address: ipaddress.IPv4Interface, accepts: int) -> None:
        assert self._guest is not None
        body = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, socket.if_nametoindex(self.card))
        local = attribute(_IFA_LOCAL, address.ip.packed) + attribute(_IFA_ADDRESS, address.ip.packed)
        self._guest.request(_RTM_NEWADDR, _F_CREATE | _F_EXCL, body + local)
        self._networks.append(address.network)
        if accepts > self._mtu:
            self._narrow_route(address)

    def _add_ipv6(self, address: ipaddress.IPv6Interface, accepts: int) -> None:
        assert self._guest is not None
        refused = switch_ipv6_on(self.card)
        if accepts > self._mtu:  # of the whole interface: what it accepts is not bound by it
            refused += set_sysctls({f"net.ipv6.conf.{self.card}.mtu": self._mtu})
        if refused:
            raise GuestError(f"the guest's network stack has no IPv6: it refuses {', '.join(refused)}")
        index = socket.if_nametoindex(self.card)
        body = _ADDRESS.pack(socket.AF_INET6, address.network.prefixlen, _IFA_F_NODAD, 0, index)
        self._guest.request(_RTM_NEWADDR, _F_CREATE | _F_EXCL, body + attribute(_IFA_ADDRESS, address.ip.packed))
        self._networks.append(address.network)

    def _narrow_route(self, address: ipaddress.IPv4Interface) -> None:
        """To its own network the guest sends no more than its MTU, whatever its card accepts."""
        assert self._guest is not None
        network = address.network
        body = _ROUTE.pack(
            *(socket.AF_INET, network.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_KERNEL, _RT_SCOPE_LINK, _RTN_UNICAST, 0)
        )
        index = socket.if_nametoindex(self.card)
        body += attribute(_RTA_DST, network.network_address.packed) + attribute(_RTA_PREFSRC, address.ip.packed)
        body += attribute(_RTA_OIF, struct.pack("=I", index)) + self._metrics()
        self._guest.request(_RTM_NEWROUTE, _F_CREATE | _F_REPLACE, body)

    def _metrics(self) -> bytes:
        return attribute(_RTA_METRICS | _NESTED, attribute(_RTAX_MTU, struct.pack("=I", self._mtu)))

    def _add_default_route(self, gateway: ipaddress.IPv4Address) -> None:
        assert self._guest is not None
        body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, 0, _RTN_UNICAST, 0)
        body += attribute(_RTA_GATEWAY, gateway.packed) + self._metrics()
        self._guest.request(_RTM_NEWROUTE, _F_CREATE | _F_EXCL, body)

    def _make_pair(self, body: bytes) -> bool:
        """False while there is one: the kernel removes a dead guest's only some time after its last process."""
        try:
            self._host.request(_RTM_NEWLINK, _F_CREATE | _F_EXCL, body)
        except FileExistsError:
            return False
        return True

    def cut(self) -> None:
        """Black-hole both directions. Idempotent. :raises OSError: when the kernel refuses."""
        if self._cut:
            self._host.send_prepared(self._cut)
        self.forwarding = False

    def wire(self) -> None:
        """Let the port forward. :raises OSError: when the kernel refuses."""
        self._host.send_prepared(self._wire)
        self.forwarding = True

    def neighbours(self) -> tuple[tuple[str, str], ...]:
        """(IP address, MAC) of everybody whom the guest knows at the moment. Empty when the kernel does not tell."""
        if self._guest is None:
            return ()
        index = socket.if_nametoindex(self.card)
        found = []
        for family, length in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            for payload in self._guest.dump(_RTM_GETNEIGH, _NEIGHBOUR.pack(family, 0, 0, 0, 0)):
                _family, interface, state, _flags, _kind = _NEIGHBOUR.unpack_from(payload)
                values = attributes(payload[_NEIGHBOUR.size :])
                ip, mac = values.get(_NDA_DST, b""), values.get(_NDA_LLADDR, b"")
                if interface == index and state & _NUD_USABLE and len(ip) == length and len(mac) == 6:
                    found.append((socket.inet_ntop(family, ip), mac.hex(":")))
        return tuple(found)

    def set_neighbours(self, neighbours: Sequence[tuple[str, str]]) -> None:
        """Know those of this card's networks, as just confirmed. :raises OSError: when the kernel refuses."""
        if self._guest is None:
            return
        index = socket.if_nametoindex(self.card)
        for text, mac in neighbours:
            ip = ipaddress.ip_address(text)
            if not any(ip in network for network in self._networks):
                continue
            family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
            body = _NEIGHBOUR.pack(family, index, _NUD_REACHABLE, 0, 0)
            values = attribute(_NDA_DST, ip.packed)
            values += attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
            self._guest.request(_RTM_NEWNEIGH, _F_CREATE | _F_REPLACE, body + values)

    def remove(self) -> None:
        """Remove the pair, which would otherwise go some time after the guest's namespace. Idempotent.

        :raises OSError: when the kernel refuses.
        """
        if self._host_index:
            index, self._host_index = self._host_index, 0
            self._cut = self._wire = b""
            self._host.request(_RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))

    def close(self) -> None:
        """Close the netlink sockets."""
        self._host.close()
        if self._guest is not None:
            self._guest.close()

    def _find_host_index(self) -> int:
        for payload in self._host.dump(_RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
            name = attributes(payload[_LINK.size :]).get(_IFLA_IFNAME, b"").rstrip(b"\0")
            if name == self.interface.encode():
                return int(_LINK.unpack_from(payload)[2])
        raise OSError(errno.ENODEV, f"no interface {self.interface}")

    def _check_cut(self, index: int) -> None:
        port = attributes(self._host.link(index, _AF_BRIDGE).get(_IFLA_PROTINFO, b""))
        if port.get(_IFLA_BRPORT_STATE) != bytes([_DISABLED]):
            raise OSError(errno.EBUSY, "the bridge did not disable the port (is its spanning tree protocol on?)")


def mtu_of(interface: str) -> int:
    """As the kernel has it, in this network namespace (netdevice(7)). :raises OSError: there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("16si20x", interface.encode(), 0))
    return int(struct.unpack_from("i", answer, 16)[0])


def _port_state(index: int, state: int) -> bytes:
    info = attribute(_IFLA_PROTINFO | _NESTED, attribute(_IFLA_BRPORT_STATE, bytes([state])))
    return Netlink.prepare(_RTM_SETLINK, 0, _LINK.pack(_AF_BRIDGE, 0, index, 0, 0) + info)


def _set_up(netlink: Netlink, index: int) -> None:
    netlink.request(_RTM_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP))


def _without_link_local_address(netlink: Netlink, index: int) -> None:
    """No IPv6 chatter from the host end; a kernel without IPv6 has none."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    spec = attribute(_IFLA_AF_SPEC | _NESTED, attribute(socket.AF_INET6 | _NESTED, mode))
    try:
        netlink.request(_RTM_SETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + spec)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
