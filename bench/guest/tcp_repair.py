"""Kernel TCP connections as values: taken out of one network stack and put back into another (TCP_REPAIR).

Order at the source, the network cut: :func:`dump` every socket (it stays in repair mode, so that closing it is
silent), or :func:`undo` to go on as if nothing had happened. At the destination, the network still cut:
:func:`restore`; the network attached: :func:`finish`, and send the bytes that it returns.

What is not carried: the round-trip estimate (:mod:`bench.guest.path_memory` keeps it from doing harm) and the
out-of-order queue (the peer sends that again). A connection in SYN_RECV or TIME_WAIT cannot move.

Sources: tcp(7), linux/tcp.h, linux/sockios.h; CRIU's ``soccr`` library for the order of the calls. Needs CAP_NET_ADMIN,
and CAP_NET_RAW for half-closed connections; Linux 5.14 (SO_BUF_LOCK). IPv4 and IPv6.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct

from bench.errors import GuestError
from bench.flows.tcp_options import TCP_RTO_MIN_US
from bench.guest.device_state import OWN_FIN_STATES, PEER_FIN_STATES, U32, TcpState, family_of

_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_TCP_REPAIR_OPTIONS, _TCP_TIMESTAMP, _TCP_REPAIR_WINDOW = 22, 24, 29
_REPAIR_ON, _REPAIR_OFF = 1, 0  # leaving by "off" sends a window probe, which makes the peer acknowledge at once
_NO_QUEUE, _RECEIVE_QUEUE, _SEND_QUEUE = 0, 1, 2
_OPTION_MSS, _OPTION_WINDOW, _OPTION_SACK, _OPTION_TIMESTAMP = 2, 3, 4, 8  # kinds of RFC 9293, 7323, 2018
_INFO_TIMESTAMP, _INFO_SACK, _INFO_WINDOW_SCALE = 1, 2, 4
_INFO_CWND_AT, _INFO_BYTES = 80, 104  # tcpi_snd_cwnd in struct tcp_info
_SIOCINQ, _SIOCOUTQ, _SIOCOUTQNSD = 0x541B, 0x5411, 0x894B
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_BUF_LOCK = 32, 33, 72

_STATES = {1: "established", 4: "fin_wait1", 5: "fin_wait2", 8: "close_wait", 9: "last_ack", 11: "closing"}
TCP_CLOSE = 7

# Set as they were read, before the connection runs; the late ones need an order of their own.
_PLAIN_OPTIONS = {
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "oob_inline": (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    "priority": (socket.SOL_SOCKET, socket.SO_PRIORITY),
    "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "keep_idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "keep_interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "keep_count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    "linger2": (socket.IPPROTO_TCP, socket.TCP_LINGER2),
    "notsent_lowat": (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
    "receive_lowat": (socket.SOL_SOCKET, socket.SO_RCVLOWAT),
    "tos": (socket.IPPROTO_IP, socket.IP_TOS),
    "ttl": (socket.IPPROTO_IP, socket.IP_TTL),
}
_LATE_OPTIONS = {
    "reuse_address": (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "cork": (socket.IPPROTO_TCP, socket.TCP_CORK),
    "buffer_lock": (socket.SOL_SOCKET, _SO_BUF_LOCK),
    "send_buffer": (socket.SOL_SOCKET, socket.SO_SNDBUF),
    "receive_buffer": (socket.SOL_SOCKET, socket.SO_RCVBUF),
}
_ALL_OPTIONS = {**_PLAIN_OPTIONS, **_LATE_OPTIONS}
_RTO_MIN = "rto_min_us"  # TCP_RTO_MIN_US, from Linux 6.16 on; 0 where the kernel has none

_ROOM_BYTES = 256 << 10  # over twice the queue while it is put back: the kernel counts its own overhead too
_PUSH_BYTES = 64 << 10
_SEGMENT_BYTES = 64 << 10  # no segment is larger
_FIN_ACK, _ACK = 0x11, 0x10


def tcp_state(sock: socket.socket) -> str:
    """The kernel's state of a connection; "" for those that cannot move (closed above all)."""
    return _STATES.get(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0], "")


def least_timeout_us(sock: socket.socket) -> int:
    """The least retransmission timeout of a connection; 0 where the kernel does not say."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MIN_US)
    except OSError:
        return 0


def in_flight_bytes(sock: socket.socket) -> int:
    """Bytes sent and not yet acknowledged."""
    return _ioctl(sock, _SIOCOUTQ) - _ioctl(sock, _SIOCOUTQNSD)


def queued_bytes(sock: socket.socket) -> int:
    """Bytes that the kernel has taken and the peer has not acknowledged."""
    return _ioctl(sock, _SIOCOUTQ)


def dump(sock: socket.socket, backlog: bytes | memoryview = b"") -> TcpState | None:
    """Read everything of a connection whose network is cut; the socket stays in repair mode.

    :param backlog: bytes that belong behind the send queue and that the kernel has not taken yet.
    :returns: None, and the socket is untouched, when the connection is over and nothing of it can move.
    :raises OSError: when the kernel refuses.
    """
    if not tcp_state(sock):
        return None
    # read before repair mode: that forces SO_REUSEADDR to another value
    options = {name: sock.getsockopt(level, option) for name, (level, option) in _ALL_OPTIONS.items()}
    options[_RTO_MIN] = least_timeout_us(sock)
    _set(sock, _TCP_REPAIR, _REPAIR_ON)
    try:
        return _dump(sock, options, backlog)
    except OSError:
        _set(sock, _TCP_REPAIR, _REPAIR_OFF)
        raise


def _dump(sock: socket.socket, options: dict[str, int], backlog: bytes | memoryview) -> TcpState | None:
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    congestion = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    local, remote = sock.getsockname(), sock.getpeername()
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    state = _STATES.get(info[0], "")
    if not state:  # it was reset between the two looks
        return None
    negotiated, scales = info[5], info[6]
    queued, unsent = _ioctl(sock, _SIOCOUTQ), _ioctl(sock, _SIOCOUTQNSD)
    fin_unsent = state in OWN_FIN_STATES and unsent > 0
    if state in OWN_FIN_STATES:  # the FIN counts as a byte in both
        queued -= queued > 0
        unsent -= unsent > 0
    receive_sequence, received = _queue(sock, _RECEIVE_QUEUE, _ioctl(sock, _SIOCINQ))
    send_sequence, sending = _queue(sock, _SEND_QUEUE, queued)
    window = struct.unpack("5I", sock.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, 20))
    return TcpState(
        state=state,
        local=(local[0], local[1]),
        remote=(remote[0], remote[1]),
        mss=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG),  # in repair mode: the clamp from the handshake
        sack=bool(negotiated & _INFO_SACK),
        window_scale=(scales & 15, scales >> 4) if negotiated & _INFO_WINDOW_SCALE else None,
        timestamp=_get(sock, _TCP_TIMESTAMP) if negotiated & _INFO_TIMESTAMP else None,
        receive_sequence=receive_sequence,
        send_sequence=send_sequence,
        window=(window[0], window[1], window[2], window[3], window[4]),
        congestion=congestion.rstrip(b"\0").decode("ascii"),
        linger=(on, seconds),
        options=options,
        unsent_bytes=unsent + len(backlog),
        backlog_bytes=len(backlog),
        fin_unsent=fin_unsent,
        congestion_window=max(1, struct.unpack_from("I", info, _INFO_CWND_AT)[0]),
        receive_queue=received,
        send_queue=sending + backlog if backlog else sending,
    )


def undo(sock: socket.socket, state: TcpState) -> None:
    """Leave repair mode where :func:`dump` was called, the network attached again."""
    _set(sock, _TCP_REPAIR_QUEUE, _NO_QUEUE)
    _set(sock, _TCP_REPAIR, _REPAIR_OFF)
    if state.options["reuse_address"]:  # leaving repair mode cleared it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def restore(state: TcpState, raw: socket.socket | None) -> socket.socket:
    """The connection as a socket in repair mode, non-blocking; its network must be cut.

    :param raw: an IPPROTO_RAW socket of the connection's family in the same network namespace (``lo`` up): a
        half-closed connection gets its way into its state by segments as if from the peer, because repair mode knows no
        other. None when there is none.
    :raises GuestError: when the kernel refuses.
    """
    family = family_of(state.local[0])
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _put_back(sock, state)
        if state.state != "established":
            if raw is None:
                raise GuestError("a half-closed connection needs a raw socket to be restored")
            _put_back_fin(sock, state, raw)
    except (OSError, GuestError) as error:
        _silent_close(sock)
        peer = f"{state.remote[0]}:{state.remote[1]}"
        raise GuestError(f"connection of {peer} ({state.state}) cannot be restored: {error}") from error
    return sock


def finish(sock: socket.socket, state: TcpState) -> memoryview:
    """Let a restored connection run, the network attached.

    :returns: bytes that the kernel did not take yet; they belong before anything else that is sent. An own FIN that
        was not sent yet (``state.fin_unsent``) is left to the caller, after them.
    :raises OSError: when the connection is broken.
    """
    _set(sock, _TCP_REPAIR, _REPAIR_OFF)
    rest = memoryview(state.send_queue)[len(state.send_queue) - state.unsent_bytes :]
    with contextlib.suppress(BlockingIOError):
        if _window_shut(state):
            rest = rest[sock.send(rest[:1]) :]
        while rest:
            rest = rest[sock.send(rest) :]
    options = state.options
    # the kernel doubles what is set, and setting locks the size: unlock as it was, so that it tunes itself again
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, options["send_buffer"] // 2)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, options["receive_buffer"] // 2)
    sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, options["buffer_lock"])
    if options["reuse_address"]:  # else a return to this host would find the address in use
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options["cork"]:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    return rest


def _put_back(sock: socket.socket, state: TcpState) -> None:
    options = state.options
    taken = len(state.send_queue) - state.backlog_bytes  # what the kernel at the source held
    send_end = (state.send_sequence - (state.state in OWN_FIN_STATES)) & U32
    receive_end = (state.receive_sequence - (state.state in PEER_FIN_STATES)) & U32
    _set(sock, _TCP_REPAIR, _REPAIR_ON)
    send_room = max(options["send_buffer"] // 2, 2 * len(state.send_queue) + _ROOM_BYTES)
    receive_room = max(options["receive_buffer"] // 2, 2 * len(state.receive_queue) + _ROOM_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, min(send_room, U32 >> 2))
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, min(receive_room, U32 >> 2))
    sock.bind(state.local)
    for queue, sequence in (
        (_RECEIVE_QUEUE, receive_end - len(state.receive_queue)),
        (_SEND_QUEUE, send_end - taken),
    ):
        _set(sock, _TCP_REPAIR_QUEUE, queue)
        _set(sock, _TCP_QUEUE_SEQ, sequence & U32)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, state.congestion.encode("ascii"))
    if options[_RTO_MIN] not in (
        0,
        least_timeout_us(sock),
    ):  # now: connecting sets the timer that what follows waits for
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MIN_US, options[_RTO_MIN])
    sock.connect(state.remote)  # in repair mode: established at once, no packet

    negotiated = [(_OPTION_MSS, state.mss)]
    if state.sack:
        negotiated.append((_OPTION_SACK, 0))
    if state.window_scale is not None:
        negotiated.append((_OPTION_WINDOW, state.window_scale[0] | state.window_scale[1] << 16))
    if state.timestamp is not None:
        negotiated.append((_OPTION_TIMESTAMP, 0))
    packed = b"".join(struct.pack("II", *option) for option in negotiated)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, packed)
    if state.timestamp is not None:  # a clock that jumps back makes the peer drop everything for long (PAWS, RFC 7323)
        _set(sock, _TCP_TIMESTAMP, state.timestamp)
    # The kernel took the segment size of a peer that said nothing, 536, at connect; setting IP options, here none,
    # makes it think again (do_ip_setsockopt). In segments so small a full send queue takes seconds to be sent again.
    # Of an IPv6 peer it takes 1220 (tcp_v6_connect), which does.
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"")

    _push(sock, _RECEIVE_QUEUE, state.receive_queue)
    # Only what was sent: it waits for its acknowledgement. Unsent bytes put here would count as sent and never leave.
    _push(sock, _SEND_QUEUE, memoryview(state.send_queue)[: len(state.send_queue) - state.unsent_bytes])
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, _window(state, receive_end))
    _set(sock, _TCP_REPAIR_QUEUE, _NO_QUEUE)
    for name, (level, option) in _PLAIN_OPTIONS.items():
        wanted = options[name]
        if sock.getsockopt(level, option) != wanted and not (name == "linger2" and wanted <= 0):
            sock.setsockopt(level, option, wanted & U32 if wanted > U32 >> 1 else wanted)
    if state.linger[0]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *state.linger))


def _window_shut(state: TcpState) -> bool:
    """Whether the peer's window does not even take the next segment, as far as the guest knows.

    The update that opens it may be among what the blackout swallowed, and the peer may not answer the probe without
    data that leaving repair mode sends: it answers two such within 500 ms only once (tcp_invalid_ratelimit). A probe
    with one byte of data (RFC 9293, 3.8.6.1) is always answered; without it the guest would wait for 1 s and more.
    """
    sent = len(state.send_queue) - state.unsent_bytes
    return state.unsent_bytes > 0 and state.window[1] - sent < min(state.unsent_bytes, state.mss)


def _window(state: TcpState, receive_end: int) -> bytes:
    """struct tcp_repair_window as the kernel accepts it (tcp_repair_set_window)."""
    snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup = state.window
    if state.state in PEER_FIN_STATES:  # as it was before the peer's FIN, which comes again
        rcv_wup, rcv_wnd = (rcv_wup - 1) & U32, min(rcv_wnd + 1, U32)
    if _after(snd_wl1, receive_end + rcv_wnd):  # after the kernel pruned its queue: would be EINVAL
        snd_wl1 = receive_end
    if _after(rcv_wup, receive_end):
        rcv_wup = receive_end
    if _window_shut(state):
        snd_wnd = max(snd_wnd, len(state.send_queue) - state.unsent_bytes + 1)
    max_window = max(max_window, snd_wnd)
    return struct.pack("5I", snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup)


def _put_back_fin(sock: socket.socket, state: TcpState, raw: socket.socket) -> None:
    """Walk from established to the half-closed state; each side's FIN in the order in which it really came."""
    receive_end = state.receive_sequence - (state.state in PEER_FIN_STATES)
    send_end = state.send_sequence - (state.state in OWN_FIN_STATES)
    unacknowledged = send_end - (len(state.send_queue) - state.backlog_bytes)
    own_fin = state.state in OWN_FIN_STATES and not state.fin_unsent
    if own_fin and state.state != "last_ack":
        _send_fin(sock)
    if state.state in PEER_FIN_STATES:
        _segment_from_peer(state, receive_end, unacknowledged, _FIN_ACK, raw)
    if own_fin and state.state == "last_ack":
        _send_fin(sock)
    if state.state == "fin_wait2":
        _segment_from_peer(state, receive_end, send_end + 1, _ACK, raw)


def _send_fin(sock: socket.socket) -> None:
    """Our FIN, as one that was sent already."""
    _set(sock, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
    sock.shutdown(socket.SHUT_WR)
    _set(sock, _TCP_REPAIR_QUEUE, _NO_QUEUE)


def _segment_from_peer(state: TcpState, sequence: int, acknowledged: int, flags: int, raw: socket.socket) -> None:
    """A segment without data as if from the peer; it goes through ``lo``, so it is there when this returns."""
    family = family_of(state.local[0])
    source, destination = (socket.inet_pton(family, end[0]) for end in (state.remote, state.local))
    window = min(state.window[1] >> (state.window_scale[0] if state.window_scale else 0), 0xFFFF)
    numbers = (state.remote[1], state.local[1], sequence & U32, acknowledged & U32, 5 << 4, flags, window)
    header = struct.pack("!HHIIBBHHH", *numbers, 0, 0)
    pseudo = source + destination + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    header = struct.pack("!HHIIBBHHH", *numbers, _checksum(pseudo + header), 0)
    if family == socket.AF_INET6:  # version, length, next header, hop limit (RFC 8200; the sum is that of RFC 793's)
        ip = struct.pack("!IHBB", 6 << 28, len(header), socket.IPPROTO_TCP, 64) + source + destination
    else:  # version and header length, length, TTL; the kernel fills in identification and checksum
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(header), 0, 0, 64, socket.IPPROTO_TCP, 0) + source + destination
    raw.sendto(ip + header, (state.local[0], 0))


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _silent_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        _set(sock, _TCP_REPAIR, _REPAIR_ON)  # in repair mode closing sends nothing
    sock.close()


def _after(one: int, other: int) -> bool:
    """Sequence number comparison modulo 2^32."""
    return 0 < (one - other) & U32 < 1 << 31


def _queue(sock: socket.socket, queue: int, count: int) -> tuple[int, bytes]:
    """(sequence number at the end of a queue, its *count* bytes).

    The kernel hands a send queue out in whole segments (tcp_peek_sndq), so where the peer has acknowledged a part of
    the first one, bytes come before those that are wanted; it also counts bytes that found no room, so there is more.
    """
    _set(sock, _TCP_REPAIR_QUEUE, queue)
    sequence = _get(sock, _TCP_QUEUE_SEQ)
    if count <= 0:
        return sequence, b""
    before = _SEGMENT_BYTES if queue == _SEND_QUEUE else 0
    data = sock.recv(count + before + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if not count <= len(data) <= count + before:
        raise OSError(errno.EIO, f"queue {queue} of a connection gave {len(data)} of {count} bytes")
    return sequence, data[-count:]


def _push(sock: socket.socket, queue: int, data: bytes | memoryview) -> None:
    if not data:
        return
    _set(sock, _TCP_REPAIR_QUEUE, queue)
    rest, piece = memoryview(data), _PUSH_BYTES
    while rest:
        sent = _send_piece(sock, rest[:piece])
        rest = rest[sent:]
        if not sent:  # no contiguous memory for a large piece: smaller ones fit
            if piece <= 1024:
                raise OSError(errno.ENOMEM, "the kernel has no memory for a connection's queue")
            piece //= 2


def _send_piece(sock: socket.socket, piece: memoryview) -> int:
    try:
        return sock.send(piece)
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.EAGAIN):
            raise
        return 0


def _ioctl(sock: socket.socket, request: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(sock.fileno(), request, answer)
    return int(struct.unpack("i", answer)[0])


def _get(sock: socket.socket, option: int) -> int:
    return int(struct.unpack("I", sock.getsockopt(socket.IPPROTO_TCP, option, 4))[0])


def _set(sock: socket.socket, option: int, value: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, option, struct.pack("I", value & U32))
