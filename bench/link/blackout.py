"""A programmed blackout: frames of chosen flows vanish from one instant of CLOCK_MONOTONIC to another, in the kernel.

An eBPF classifier at an interface's ingress looks up the port that names a flow, compares ``bpf_ktime_get_ns()``, which
is CLOCK_MONOTONIC, with the flow's two instants, and drops what lies between them. So a blackout begins and ends to the
microsecond, whatever the machine is busy with, and many flows can have blackouts of different lengths at once. Frames
are dropped where they arrive, never where they leave: a sender whose own qdisc drops would be told, and its TCP would
not back off.

The classifier also notes when it dropped something: one time stamp for each burst (frames less than :data:`BURST_NS`
apart), which are the retransmissions as they arrived, :data:`NOTED` of them at most.

Sources: bpf(2), tc-bpf(8), linux/bpf.h, linux/if_ether.h, RFC 791.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final, Literal

from bench.clock import NS_PER_MS
from bench.errors import MachineError
from bench.host import ebpf
from bench.host.ebpf import (
    ADD,
    AND,
    BYTE,
    DOUBLE,
    HALF,
    JEQ,
    JGE,
    JGT,
    JLT,
    JNE,
    KTIME_GET_NS,
    LSH,
    MAP_LOOKUP_ELEM,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    R10,
    SKB_LOAD_BYTES,
    SUB,
    WORD,
    ArrayMap,
    Assembler,
)

BURST_NS: Final = 2 * NS_PER_MS
NOTED: Final = 48
FIRST_PORT: Final = 20000
MAX_FLOWS: Final = 4096

_SHOT: Final = 2  # TC_ACT_SHOT
_OK: Final = 0
_ETH_P_IP: Final = 0x0800
_ETHER_BYTES: Final = 14
# an entry: begin, end, last drop (u64), drops, bursts (u64), burst times (u64 x NOTED)
_HEAD: Final = struct.Struct("=QQQQQ")
_ENTRY_BYTES: Final = _HEAD.size + 8 * NOTED
_STACK_PORT: Final = -8
_STACK_KEY: Final = -16

Side = Literal["source", "destination"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a blackout dropped of one flow.

    :param frames: how many (a segment of offloaded TCP counts once).
    :param bursts_ns: CLOCK_MONOTONIC of the first frame of each burst, the first :data:`NOTED` of them.
    """

    frames: int
    bursts_ns: tuple[int, ...]


def program(map_fd: int, side: Side) -> bytes:
    """The classifier: *side* says which port of a TCP or UDP frame names the flow."""
    code = Assembler()
    code.move(R6, R1)
    _load(code, 12, 2, "pass")
    code.load(HALF, R1, R10, _STACK_PORT)
    code.to_host16(R1)
    code.jump_if(JNE, R1, _ETH_P_IP, "pass")
    _load(code, _ETHER_BYTES, 1, "pass")
    code.load(BYTE, R7, R10, _STACK_PORT)
    code.compute(AND, R7, 0x0F)
    code.compute(LSH, R7, 2)  # the header's length in bytes
    code.compute(ADD, R7, _ETHER_BYTES + (0 if side == "source" else 2))
    _load_at(code, R7, 2, "pass")
    code.load(HALF, R8, R10, _STACK_PORT)
    code.to_host16(R8)
    code.jump_if(JLT, R8, FIRST_PORT, "pass")
    code.compute(SUB, R8, FIRST_PORT)
    code.jump_if(JGE, R8, MAX_FLOWS, "pass")
    code.store(WORD, R10, _STACK_KEY, R8)
    code.move(R2, R10)
    code.compute(ADD, R2, _STACK_KEY)
    code.load_map(R1, map_fd)
    code.call(MAP_LOOKUP_ELEM)
    code.jump_if(JEQ, R0, 0, "pass")
    code.move(R7, R0)
    code.call(KTIME_GET_NS)
    code.move(R8, R0)
    code.load(DOUBLE, R1, R7, 0)
    code.jump_if_register(JGT, R1, R8, "pass")  # not begun
    code.load(DOUBLE, R1, R7, 8)
    code.jump_if_register(JGE, R8, R1, "pass")  # over
    code.load(DOUBLE, R1, R7, 24)
    code.compute(ADD, R1, 1)
    code.store(DOUBLE, R7, 24, R1)
    code.load(DOUBLE, R9, R7, 16)
    code.compute(ADD, R9, BURST_NS)
    code.store(DOUBLE, R7, 16, R8)
    code.jump_if_register(JGT, R9, R8, "drop")  # of the same burst
    code.load(DOUBLE, R1, R7, 32)
    code.jump_if(JGE, R1, NOTED, "drop")
    code.move(R2, R1)
    code.compute(ADD, R2, 1)
    code.store(DOUBLE, R7, 32, R2)
    code.compute(LSH, R1, 3)
    code.compute_register(ADD, R7, R1)
    code.store(DOUBLE, R7, _HEAD.size, R8)
    code.label("drop")
    code.set(R0, _SHOT)
    code.exit()
    code.label("pass")
    code.set(R0, _OK)
    code.exit()
    return code.assemble()


def _load(code: Assembler, offset: int, count: int, otherwise: str) -> None:
    code.set(R2, offset)
    _load_into_stack(code, count, otherwise)


def _load_at(code: Assembler, register: int, count: int, otherwise: str) -> None:
    code.move(R2, register)
    _load_into_stack(code, count, otherwise)


def _load_into_stack(code: Assembler, count: int, otherwise: str) -> None:
    """``bpf_skb_load_bytes(skb, R2, stack, count)``."""
    code.move(R1, R6)
    code.move(R3, R10)
    code.compute(ADD, R3, _STACK_PORT)
    code.set(R4, count)
    code.call(SKB_LOAD_BYTES)
    code.jump_if(JNE, R0, 0, otherwise)


class Blackout:
    """The classifier on one interface of this process's network namespace.

    :param interface: where frames arrive.
    :param side: which port names the flow.
    :raises MachineError: when the kernel cannot do it.
    """

    def __init__(self, interface: str, side: Side) -> None:
        self._map = ArrayMap(_ENTRY_BYTES, MAX_FLOWS)
        try:
            fd = ebpf.load_classifier(program(self._map.fd, side), "bench_blackout")
            try:
                self._attach(interface, fd)
            finally:
                os.close(fd)  # the filter holds it
        except BaseException:
            self._map.close()
            raise

    @staticmethod
    def _attach(interface: str, fd: int) -> None:
        from pyroute2 import IPRoute  # noqa: PLC0415 - slow to import
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        try:
            with IPRoute() as route:
                (index,) = route.link_lookup(ifname=interface)
                route.tc("add", "clsact", index)
                route.tc(
                    "add-filter",
                    "bpf",
                    index,
                    ":1",
                    fd=fd,
                    name="bench_blackout",
                    parent="ffff:fff2",
                    direct_action=True,
                )
        except (NetlinkError, OSError, ValueError) as error:
            raise MachineError(
                f"tc cannot attach a bpf classifier to {interface}: {error}",
                "the kernel needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
            ) from error

    def schedule(self, port: int, begin_ns: int, end_ns: int) -> None:
        """Drop the frames of *port* in ``[begin_ns, end_ns)``; replaces what was scheduled and noted for it.

        :raises ValueError: for a port outside of FIRST_PORT + [0, MAX_FLOWS).
        """
        if not 0 <= port - FIRST_PORT < MAX_FLOWS:
            raise ValueError(f"a port from {FIRST_PORT} to {FIRST_PORT + MAX_FLOWS - 1}, not {port}")
        self._map[port - FIRST_PORT] = _HEAD.pack(begin_ns, end_ns, 0, 0, 0) + bytes(8 * NOTED)

    def dropped(self, port: int) -> Dropped:
        """What was dropped of *port* since :meth:`schedule`."""
        entry = self._map[port - FIRST_PORT]
        _begin, _end, _last, drops, bursts = _HEAD.unpack_from(entry)
        return Dropped(drops, struct.unpack_from(f"={min(bursts, NOTED)}Q", entry, _HEAD.size))

    def close(self) -> None:
        """Let go of the map; the filter goes with its interface. Idempotent."""
        self._map.close()
