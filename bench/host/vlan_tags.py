"""802.1Q tags put on and taken off at an interface: an access port where neither the bridge nor the kernel has VLANs.

Two eBPF classifiers on the interface's clsact qdisc. On the *inner* side frames have no tag, on the *outer* one they
have the VLAN's: frames on their way out get it (bpf_skb_vlan_push), those on their way in lose it (bpf_skb_vlan_pop),
and frames of another VLAN, or of none, do not get in. Which way is out depends on where the interface is:

- ``port``: the hypervisor's end of a guest's card. What comes in from the guest goes out to the bridge.
- ``card``: a host's own card on a trunk. What the host sends goes out to the wire.

It needs no 802.1Q devices (CONFIG_VLAN_8021Q) and no filtering bridge.

Sources: IEEE 802.1Q, bpf-helpers(7), tc-bpf(8), linux/bpf.h (struct __sk_buff), linux/pkt_cls.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, Literal

from bench.errors import MachineError
from bench.host.ebpf import AND, JEQ, JNE, R0, R1, R2, R3, R6, WORD, Assembler, load_classifier

MAX_VLAN: Final = 4094
Place = Literal["port", "card"]
Request = Callable[[int, int, bytes], None]
"""``request(kind, flags, body)`` of rtnetlink, answered by an acknowledgement; raises OSError."""

_VLAN_PUSH: Final = 18  # enum bpf_func_id
_VLAN_POP: Final = 19
_VLAN_PRESENT, _VLAN_TCI = 20, 24  # offsets in struct __sk_buff
_VID_MASK: Final = 0x0FFF
_ETH_P_8021Q: Final = 0x8100
_OK, _SHOT = 0, 2

_RTM_NEWQDISC, _RTM_NEWTFILTER = 36, 44
_CREATE: Final = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
_CLSACT, _CLSACT_HANDLE, _INGRESS, _EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
_ALL_PROTOCOLS: Final = 1 << 16 | socket.htons(0x0003)  # priority 1, ETH_P_ALL
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 1, 2, 6, 7, 8
_DIRECT_ACTION: Final = 1
_NESTED: Final = 0x8000
_TC: Final = struct.Struct("=BxxxiIII")  # struct tcmsg


def outward(vlan: int) -> bytes:
    """The classifier that tags every frame."""
    code = Assembler()
    code.set(R2, socket.htons(_ETH_P_8021Q))
    code.set(R3, vlan)
    code.call(_VLAN_PUSH)
    code.set(R0, _OK)
    code.exit()
    return code.assemble()


def inward(vlan: int) -> bytes:
    """The classifier that takes the tag off frames of the VLAN and drops all others."""
    code = Assembler()
    code.move(R6, R1)
    code.load(WORD, R2, R6, _VLAN_PRESENT)
    code.jump_if(JEQ, R2, 0, "drop")
    code.load(WORD, R2, R6, _VLAN_TCI)
    code.compute(AND, R2, _VID_MASK)
    code.jump_if(JNE, R2, vlan, "drop")
    code.move(R1, R6)
    code.call(_VLAN_POP)
    code.set(R0, _OK)
    code.exit()
    code.label("drop")
    code.set(R0, _SHOT)
    code.exit()
    return code.assemble()


def attach(request: Request, index: int, vlan: int, place: Place) -> None:
    """Make an interface an access port of *vlan*, for as long as it lives.

    :param request: of a netlink socket in the interface's network namespace.
    :param index: the interface's there.
    :raises MachineError: when the kernel cannot.
    """
    if not 1 <= vlan <= MAX_VLAN:
        raise ValueError(f"a VLAN from 1 to {MAX_VLAN}, not {vlan}")
    ways = ((_INGRESS, outward), (_EGRESS, inward)) if place == "port" else ((_EGRESS, outward), (_INGRESS, inward))
    try:
        qdisc = _TC.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + _attribute(_TCA_KIND, b"clsact\0")
        with contextlib.suppress(FileExistsError):
            request(_RTM_NEWQDISC, _CREATE, qdisc)
        for parent, program in ways:
            fd = load_classifier(program(vlan), f"vlan{vlan}")
            try:
                request(_RTM_NEWTFILTER, _CREATE, _filter(index, parent, fd, vlan))
            finally:
                os.close(fd)  # the filter holds it
    except OSError as error:
        raise MachineError(
            f"VLAN {vlan} cannot be had here: {error.strerror}",
            "the kernel needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
        ) from error


def _filter(index: int, parent: int, fd: int, vlan: int) -> bytes:
    options = _attribute(_TCA_BPF_FD, struct.pack("=I", fd))
    options += _attribute(_TCA_BPF_NAME, f"vlan{vlan}\0".encode())
    options += _attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    body = _TC.pack(0, index, 0, parent, _ALL_PROTOCOLS) + _attribute(_TCA_KIND, b"bpf\0")
    return body + _attribute(_TCA_OPTIONS | _NESTED, options)


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
