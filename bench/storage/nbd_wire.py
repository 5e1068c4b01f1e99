"""The NBD protocol as far as the fence speaks it: constants, headers, and this bench's one option. Pure.

Newstyle handshake, simple replies only, numbers big-endian (doc/proto.md of github.com/NetworkBlockDevice/nbd)::

    greeting   "NBDMAGIC" "IHAVEOPT" flags:u16                     server; the client answers flags:u32
    option     "IHAVEOPT" option:u32 length:u32 data               client
    answer     OPTION_REPLY:u64 option:u32 reply:u32 length:u32 data
    request    REQUEST:u32 flags:u16 type:u16 handle:u64 offset:u64 length:u32 [data of a write]
    reply      SIMPLE_REPLY:u32 error:u32 handle:u64 [data of a read]

Two things are this bench's own. The name of an export says who asks: ``GUEST/DISK@HOLDER.GENERATION.INCARNATION``. And
:data:`OPT_GRANT` carries one JSON object that looks at or changes who may write (:mod:`bench.storage.grant`); its
answer is a :data:`REP_GRANT` with one. A connection that only sends such options never leaves the handshake.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Final

from bench.errors import StorageError

GREETING: Final = struct.Struct(">8s8sH")
OPTION: Final = struct.Struct(">8sII")
ANSWER: Final = struct.Struct(">QIII")
REQUEST: Final = struct.Struct(">IHHQQI")
REPLY: Final = struct.Struct(">IIQ")
EXPORT: Final = struct.Struct(">QH")
CLIENT_FLAGS: Final = struct.Struct(">I")

MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
REPLY_MAGIC: Final = 0x67446698

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
OPT_GRANT: Final = 0x62656E63  # "benc"
REP_ACK, REP_INFO = 1, 3
REP_GRANT: Final = 0x62656E63
REP_ERR_UNSUP: Final = (1 << 31) + 1
REP_ERR_POLICY: Final = (1 << 31) + 2
REP_ERR_UNKNOWN: Final = (1 << 31) + 6
INFO_EXPORT, INFO_DESCRIPTION = 0, 2

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA: Final = 1
CHANGES: Final = frozenset({WRITE, TRIM, WRITE_ZEROES})

EPERM, EIO, EINVAL = 1, 5, 22

MAX_OPTION_BYTES: Final = 4096
MAX_PAYLOAD_BYTES: Final = 4 << 20

_NAME = re.compile(r"([A-Za-z0-9_.-]{1,32})/([A-Za-z0-9_-]{1,32})@([A-Za-z0-9_-]{1,32})\.(\d{1,18})\.(\d{1,18})")


@dataclass(frozen=True, slots=True)
class ExportName:
    """Who asks for which disk.

    :param holder: the hypervisor; *generation* the one in which it may write.
    :param incarnation: of the connection: a higher one replaces those before it, whose requests count no longer.
    """

    guest: str
    disk: str
    holder: str
    generation: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.guest}/{self.disk}@{self.holder}.{self.generation}.{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> ExportName:
        """:raises StorageError: when *text* is no such name."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise StorageError(f"no export is named {text[:80]!r}: GUEST/DISK@HOLDER.GENERATION.INCARNATION")
        return cls(match[1], match[2], match[3], int(match[4]), int(match[5]))


@dataclass(frozen=True, slots=True)
class Request:
    """A request's header; *data* of a write follows it on the wire."""

    flags: int
    kind: int
    handle: int
    offset: int
    length: int

    @classmethod
    def unpack(cls, head: bytes) -> Request:
        """:raises StorageError: when it is none, or asks for more than :data:`MAX_PAYLOAD_BYTES`."""
        magic, flags, kind, handle, offset, length = REQUEST.unpack(head)
        if magic != REQUEST_MAGIC:
            raise StorageError(f"NBD: {magic:#x} is no request")
        if kind in (READ, WRITE) and length > MAX_PAYLOAD_BYTES:
            raise StorageError(f"NBD: a request of {length} bytes; at most {MAX_PAYLOAD_BYTES}")
        return cls(flags, kind, handle, offset, length)

    @property
    def payload_bytes(self) -> int:
        """What follows the request."""
        return self.length if self.kind == WRITE else 0

    @property
    def answer_bytes(self) -> int:
        """What follows a reply that tells of no error."""
        return self.length if self.kind == READ else 0


def greeting() -> bytes:
    """What a server says first."""
    return GREETING.pack(MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)


def option(number: int, data: bytes) -> bytes:
    """One option with its data."""
    return OPTION.pack(OPTION_MAGIC, number, len(data)) + data


def answer(number: int, kind: int, data: bytes = b"") -> bytes:
    """An answer to an option."""
    return ANSWER.pack(OPTION_REPLY, number, kind, len(data)) + data


def reply(handle: int, error: int) -> bytes:
    """A reply without data."""
    return REPLY.pack(REPLY_MAGIC, error, handle)


def export_info(size_bytes: int, flags: int) -> bytes:
    """The data of a REP_INFO answer: an export's size and transmission flags."""
    return struct.pack(">H", INFO_EXPORT) + EXPORT.pack(size_bytes, flags)


def description_info(text: str) -> bytes:
    """The data of a REP_INFO answer: an export's description, at most 4096 bytes."""
    return struct.pack(">H", INFO_DESCRIPTION) + text.encode()


def export_name_of(data: bytes) -> str:
    """The name in the data of OPT_GO or OPT_INFO. :raises StorageError: when there is none."""
    if len(data) >= 4:
        (length,) = struct.unpack_from(">I", data)
        if 4 + length <= len(data):
            return data[4 : 4 + length].decode("utf-8", "replace")
    raise StorageError("NBD: OPT_GO without an export name")


def pack_object(value: dict[str, Any]) -> bytes:
    """The data of OPT_GRANT and REP_GRANT."""
    return json.dumps(value, separators=(",", ":")).encode()


def unpack_object(data: bytes) -> dict[str, Any]:
    """:raises StorageError: when *data* is no JSON object."""
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StorageError("NBD: the grant option carries one JSON object")
    return value
