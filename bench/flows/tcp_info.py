"""What the kernel says of a TCP connection: ``struct tcp_info`` of linux/tcp.h, tcp(7), by name.

The structure only ever grows at its end, so an older kernel's is read with zeros behind it.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

_BYTES: Final = 248
_SMALL: Final = struct.Struct("=BBBBBBBB")
_WORDS: Final = struct.Struct("=24I")
_BYTES_ACKED_AT: Final = 120
_NOTSENT_AT: Final = 144
_DELIVERY_RATE_AT: Final = 160
_US: Final = 1000
_MS: Final = 1_000_000

# enum of net/tcp_states.h
STATES: Final = (
    *("", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait"),
    *("last-ack", "listen", "closing", "new-syn-recv"),
)
# enum tcp_ca_state
CA_STATES: Final = ("open", "disorder", "cwr", "recovery", "loss")


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """The members of ``struct tcp_info`` that the bench uses; durations in ns, ``delivery_rate_bps`` in bit/s.

    :param backoff: how often the retransmission timer was doubled since the last acknowledgement.
    :param timeouts: ``tcpi_retransmits``: timeouts in a row, unanswered.
    :param probes: ``tcpi_probes``: unanswered window or keepalive probes.
    :param unacked: segments sent and not acknowledged.
    :param retransmits: segments sent again since the connection began.
    :param since_ack_ns: since the last acknowledgement arrived.
    """

    state: str
    ca_state: str
    timeouts: int
    probes: int
    backoff: int
    rto_ns: int
    unacked: int
    rtt_ns: int
    rttvar_ns: int
    cwnd: int
    retransmits: int
    since_sent_ns: int
    since_ack_ns: int
    bytes_acked: int
    bytes_received: int
    notsent_bytes: int
    min_rtt_ns: int
    delivery_rate_bps: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """:raises OSError: when the socket is closed."""
    return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES))


def parse_tcp_info(raw: bytes) -> TcpInfo:
    """The bytes of TCP_INFO, however many this kernel gave."""
    raw = raw.ljust(_BYTES, b"\0")
    state, ca_state, timeouts, probes, backoff, *_rest = _SMALL.unpack_from(raw)
    words = _WORDS.unpack_from(raw, _SMALL.size)
    acked, received = struct.unpack_from("=QQ", raw, _BYTES_ACKED_AT)
    notsent, min_rtt_us = struct.unpack_from("=II", raw, _NOTSENT_AT)
    (delivery_rate,) = struct.unpack_from("=Q", raw, _DELIVERY_RATE_AT)
    return TcpInfo(
        state=STATES[state] if state < len(STATES) else str(state),
        ca_state=CA_STATES[ca_state] if ca_state < len(CA_STATES) else str(ca_state),
        timeouts=timeouts,
        probes=probes,
        backoff=backoff,
        rto_ns=words[0] * _US,
        unacked=words[4],
        rtt_ns=words[15] * _US,
        rttvar_ns=words[16] * _US,
        cwnd=words[18],
        retransmits=words[23],
        since_sent_ns=words[9] * _MS,
        since_ack_ns=words[12] * _MS,
        bytes_acked=acked,
        bytes_received=received,
        notsent_bytes=notsent,
        min_rtt_ns=min_rtt_us * _US,
        delivery_rate_bps=delivery_rate * 8,
    )
