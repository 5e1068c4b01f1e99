"""What probes record, as numpy layouts: the vocabulary that probes write and analysis reads, and how their files are
read.

Request and progress records (:data:`RECORD`), one for each request of a request/response flow, or one for each observed
progress of a one-way flow:

=============  ====  ==============================================================================================
field          type  meaning
=============  ====  ==============================================================================================
``seq``        u8    number of the request or progress within its flow, from 0, without gaps
``sent_ns``    i8    CLOCK_MONOTONIC before the system call that sent it; of a progress record, its ``received_ns``
``received_ns``  i8  CLOCK_MONOTONIC after the system call that received the first answer; 0 means never
``bytes``      u4    size of the request, or bytes of this progress
``status``     u4    ``STATUS_*`` flags; extra copies of an answer in the upper 16 bits
=============  ====  ==============================================================================================

Frame records (:data:`FRAME`), one for each frame that an interface saw; see :mod:`bench.probe.frames`.
"""

from __future__ import annotations

import ipaddress
import struct
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.errors import ResultError

StructuredArray = npt.NDArray[np.void]

RECORD: Final = np.dtype(
    [("seq", "<u8"), ("sent_ns", "<i8"), ("received_ns", "<i8"), ("bytes", "<u4"), ("status", "<u4")]
)

MAX_RECORDS: Final = 1 << 24
"""The most records of one flow (512 MiB); a flow that would need more stops with an error instead of eating memory."""
_MAX_HEADER_BYTES: Final = 4096

STATUS_CORRUPT: Final = 1
"""An answer's content was not what it had to be; such an answer is no good answer."""
STATUS_REORDERED: Final = 2
"""The answer came after the answer of a later request."""
STATUS_PROGRESS: Final = 4
"""A one-way progress: nothing was asked, data (or its acknowledgement) arrived."""
STATUS_UNSENT: Final = 8
"""The system call that should have sent it failed (no route, no buffer): it never left the client."""
DUPLICATES_SHIFT: Final = 16
"""``status >> DUPLICATES_SHIFT`` is how many further copies of the answer came (saturating at 65535)."""

REQUEST_KINDS: Final = ("udp-echo", "tcp-request", "tcp-connect", "http", "redis")
PROGRESS_KINDS: Final = ("tcp-download", "tcp-upload", "udp-stream")

TCP_SAMPLE: Final = np.dtype(
    [
        ("t_ns", "<i8"),  # CLOCK_MONOTONIC
        ("state", "u1"),  # net/tcp_states.h: 1 established, 7 closed
        ("ca_state", "u1"),  # enum tcp_ca_state: 0 open, 1 disorder, 2 CWR, 3 recovery, 4 loss
        ("timeouts", "u1"),  # retransmission timeouts in a row
        ("probes", "u1"),  # window or keepalive probes in a row
        ("backoff", "u1"),  # doublings of the timer
        ("rto_us", "<u4"),
        ("unacked", "<u4"),  # segments
        ("cwnd", "<u4"),  # segments
        ("rtt_us", "<u4"),
        ("retransmits", "<u4"),  # segments since the connection began
        ("delivery_rate_bps", "<u8"),
        ("bytes_acked", "<u8"),
    ]
)
"""What the kernel says of a flow's connection (``struct tcp_info``), one record for each change seen at 100 Hz."""

FRAME: Final = np.dtype(
    [
        ("t_ns", "<i8"),  # CLOCK_MONOTONIC
        ("interface", "<u2"),  # index into the table of interface names beside the records
        ("direction", "u1"),
        ("kind", "u1"),
        ("protocol", "u1"),  # IP protocol; 0 when kind is not ip
        ("flags", "u1"),  # TCP flags (RFC 9293): FIN 1, SYN 2, RST 4, PSH 8, ACK 16
        ("is_announce", "?"),  # gratuitous ARP or RARP on behalf of the guest
        ("dst_is_guest", "?"),  # IP destination, or an ARP's target, is the guest
        ("src_ip", "<u4"),  # host order (IPv6: see IPV6_KEY); of an ARP the sender's and target's protocol address
        ("dst_ip", "<u4"),
        ("src_port", "<u2"),
        ("dst_port", "<u2"),
        ("ip_id", "<u2"),
        (
            "seq",
            "<u4",
        ),  # TCP's sequence number; of UDP over IPv6, without identification, the payload's first bytes
        ("ack", "<u4"),
        ("payload", "<u4"),  # bytes behind the TCP or UDP header (of a TSO super-frame all of them)
        ("src_mac", "<u8"),  # the sender's link-layer address as an integer, 0 when unknown
    ]
)

DIRECTION_IN: Final = 0
DIRECTION_OUT: Final = 1

KIND_OTHER: Final = 0
KIND_IP: Final = 1
KIND_ARP: Final = 2
KIND_RARP: Final = 3

PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17


IPV6_KEY: Final = 0xF0000000
"""IPv6 addresses are held as the exclusive or of their four words in 28 bits, among IPv4's reserved addresses (240/4),
which no IPv4 frame has: enough to tell the few addresses of a run from each other."""


def ip_to_int(address: str) -> int:
    """``"10.0.1.1"``, ``"fd00::1"`` to the integer that frame records hold. :raises ValueError: it is no address."""
    if ":" in address:
        words: tuple[int, ...] = struct.unpack("!4I", ipaddress.IPv6Address(address).packed)
        return IPV6_KEY | (words[0] ^ words[1] ^ words[2] ^ words[3]) & ~IPV6_KEY & 0xFFFFFFFF
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and int(part) < 256 for part in parts):
        raise ValueError(f"not an IPv4 address: {address!r}")
    value = 0
    for part in parts:
        value = value << 8 | int(part)
    return value


def mac_to_int(address: str) -> int:
    """``"52:54:00:00:00:01"`` to the integer that frame records hold. :raises ValueError: when it is no MAC address."""
    parts = address.split(":")
    if len(parts) != 6 or not all(len(part) == 2 for part in parts):
        raise ValueError(f"not a MAC address: {address!r}")
    return int("".join(parts), 16)


def empty(dtype: np.dtype[Any] = RECORD) -> StructuredArray:
    """No records, of the right layout."""
    return np.zeros(0, dtype)


SAMPLES_SUFFIX: Final = ".tcpinfo.npy"
"""Behind a flow's name: the file of its :data:`TCP_SAMPLE` records, beside that of its requests."""


def load_records(path: Path, layout: np.dtype[Any] = RECORD) -> StructuredArray:
    """Read records that :meth:`bench.probe.records.RecordBuffer.save` wrote, or others of *layout*.

    :raises ResultError: missing, too large, or of another layout.
    """
    try:
        size = path.stat().st_size
        if size > MAX_RECORDS * layout.itemsize + _MAX_HEADER_BYTES:
            raise ResultError(f"{path}: {size} bytes are more than {MAX_RECORDS} records")
        with path.open("rb") as file:
            records = np.load(file, allow_pickle=False)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, OverflowError, zipfile.BadZipFile) as error:
        raise ResultError(f"{path}: not an array of records: {error}") from None
    if not isinstance(records, np.ndarray) or records.dtype != layout or records.ndim != 1:
        raise ResultError(f"{path}: not an array of records: its layout is {getattr(records, 'dtype', type(records))}")
    return records
