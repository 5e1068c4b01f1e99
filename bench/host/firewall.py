"""A stateful firewall in a router's namespace, by nftables, and the state that it keeps, by netlink.

Only what belongs to a connection that is tracked passes, what may begin one (a TCP SYN, any UDP or ICMP), and ARP,
which is not IP. With ``nf_conntrack_tcp_loose`` off a segment from the middle of a connection begins none (kernel,
Documentation/networking/nf_conntrack-sysctl.rst).
"""

from __future__ import annotations

import os
import socket
import struct

from bench.clock import NS_PER_S, Deadline
from bench.errors import CommandError, HostError, MachineError
from bench.host.commands import run
from bench.host.kernel import entered_netns, set_sysctls

RULES = """
table ip bench {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ct state new tcp flags & (syn | ack) == syn accept
    ct state new meta l4proto { udp, icmp } accept
  }
}
"""
_COMMAND_NS = 10 * NS_PER_S
_NETLINK_NETFILTER = 12
_CT_DELETE = 1 << 8 | 2
_REQUEST_ACK = 0x1 | 0x4
_HEADER = struct.Struct("=IHHII")


def set_up(pid: int) -> None:
    """In the network namespace of a process. :raises MachineError: nftables is missing, or the kernel lacks it."""
    refused = set_sysctls({"net.netfilter.nf_conntrack_tcp_loose": 0}, pid)
    if refused:
        raise MachineError(f"the kernel refuses {', '.join(refused)}", "use a kernel with connection tracking")
    try:
        run(["nft", "-f", "-"], deadline=Deadline(_COMMAND_NS), input=RULES.encode(), netns_pid=pid)
    except (CommandError, HostError) as error:
        raise MachineError(f"no stateful firewall: {error.message}", "install the package nftables") from error


def flush(pid: int) -> None:
    """Forget every tracked connection in a process's network namespace. :raises HostError: when the kernel refuses."""
    try:
        with (
            entered_netns(pid),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock,
        ):
            body = struct.pack("=BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg; without a tuple: all of IPv4
            sock.settimeout(_COMMAND_NS / NS_PER_S)
            sock.bind((0, 0))
            sock.send(_HEADER.pack(_HEADER.size + len(body), _CT_DELETE, _REQUEST_ACK, 1, 0) + body)
            answer = sock.recv(1 << 12)
    except OSError as error:
        raise HostError(f"conntrack cannot be flushed: {error.strerror}") from error
    (status,) = struct.unpack_from("=i", answer, _HEADER.size)
    if status:
        raise HostError(f"conntrack cannot be flushed: {os.strerror(-status)}")
