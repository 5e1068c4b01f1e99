"""How a guest's driver and the block layer of its hypervisor exchange requests: a shared area, and short messages.

The area (a memfd, mapped by both) is divided into slots; data of a request lies in one, so it is never copied between
them. The messages go over a SOCK_SEQPACKET pair, many to a packet::

    request      id:u64 kind:u8 flags:u8 disk:u16 slot:u32 offset:u64 length:u32       kinds of bench.storage.export
    completion   id:u64 error:i32                                                      an errno, 0 for done
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

REQUEST: Final = struct.Struct("<QBBHIQI")
COMPLETION: Final = struct.Struct("<Qi")
SLOT_BYTES: Final = 1 << 20
SLOTS: Final = 20
AREA_BYTES: Final = SLOT_BYTES * SLOTS
FUA: Final = 1
PACKET_BYTES: Final = 64 << 10


class Item(NamedTuple):
    """One request of a guest."""

    ident: int
    kind: int
    flags: int
    disk: int
    slot: int
    offset: int
    length: int


def unpack_requests(packet: bytes) -> Iterator[Item]:
    """The requests of a packet; what is left over at its end is ignored."""
    whole = len(packet) // REQUEST.size * REQUEST.size
    return (Item(*fields) for fields in REQUEST.iter_unpack(packet[:whole]))


def unpack_completions(packet: bytes) -> Iterator[tuple[int, int]]:
    """(id, errno) of each completion of a packet."""
    whole = len(packet) // COMPLETION.size * COMPLETION.size
    return ((ident, error) for ident, error in COMPLETION.iter_unpack(packet[:whole]))
