"""A paused guest's device state as one block of bytes, and back: pure, versioned, bounded.

Layout, integers in network byte order::

    magic "MBDS" | version u16 | zero u16 | header bytes u32 | body bytes u64 | XXH3-64 of all that follows u64
    header       one JSON object (below)
    body         binary parts one after the other, in the order in which the header gives their lengths

The header's members: ``name, memory_bytes, mac, address, owner, generation, counters, registers[], neighbours[]``,
``disks``, ``flows[]``, ``streams[]`` (each a TCP connection with its service's state; ``receive_bytes`` and
``send_bytes`` long parts) and ``datagrams[]`` (unread ones; ``bytes`` long parts). It never holds a Python object:
bytes from a peer are data only, and whatever is wrong with them is one :class:`GuestError`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import xxhash

from bench.errors import GuestError

VERSION = 1
MAX_STATE_BYTES = 1 << 30
MAX_HEADER_BYTES = 64 << 20
MAX_ITEMS = 65536

_REHEARSALS = 8  # after which the interpreter has specialised the code
_PREFIX = struct.Struct("!4sHHIQQ")
_MAGIC = b"MBDS"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

U32 = (1 << 32) - 1
TCP_STATES = ("established", "fin_wait1", "fin_wait2", "close_wait", "last_ack", "closing")
OWN_FIN_STATES = frozenset({"fin_wait1", "fin_wait2", "closing", "last_ack"})
PEER_FIN_STATES = frozenset({"close_wait", "last_ack", "closing"})
SOCKET_OPTIONS = (
    "keepalive",
    "oob_inline",
    "priority",
    "nodelay",
    "keep_idle",
    "keep_interval",
    "keep_count",
    "user_timeout",
    "linger2",
    "notsent_lowat",
    "receive_lowat",
    "tos",
    "ttl",
    "reuse_address",
    "cork",
    "buffer_lock",
    "send_buffer",
    "receive_buffer",
    "rto_min_us",
)
"""Names of the integer socket options that move; :mod:`bench.guest.tcp_repair` knows their numbers."""

Address = tuple[str, int]


def family_of(ip: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6, by how an address is written."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


@dataclass(frozen=True, slots=True)
class TcpState:
    """One kernel TCP connection as TCP_REPAIR gives it (see :mod:`bench.guest.tcp_repair`).

    :param state: one of :data:`TCP_STATES`.
    :param receive_sequence: the next sequence number expected from the peer, its FIN included.
    :param send_sequence: the next sequence number to be written, the own FIN included; what is in *backlog_bytes* does
        not count yet.
    :param window: ``snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup`` (struct tcp_repair_window).
    :param window_scale: (ours to apply to the peer's window, ours), None when not negotiated.
    :param timestamp: the timestamp clock, None when not negotiated.
    :param unsent_bytes: how many bytes at the end of *send_queue* were never sent, the backlog included.
    :param backlog_bytes: how many bytes at the end of *send_queue* the kernel has not even taken yet.
    :param fin_unsent: the own FIN is queued and was not sent yet.
    :param congestion_window: of the guest, in segments.
    :param receive_queue: received, acknowledged, not yet read by the service.
    :param send_queue: written by the service and not yet acknowledged by the peer.
    """

    state: str
    local: Address
    remote: Address
    mss: int
    sack: bool
    window_scale: tuple[int, int] | None
    timestamp: int | None
    receive_sequence: int
    send_sequence: int
    window: tuple[int, int, int, int, int]
    congestion: str
    linger: tuple[int, int]
    options: Mapping[str, int]
    unsent_bytes: int = 0
    backlog_bytes: int = 0
    fin_unsent: bool = False
    congestion_window: int = 10
    receive_queue: bytes = field(default=b"", repr=False)
    send_queue: bytes = field(default=b"", repr=False)

    def header(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "local": self.local,
            "remote": self.remote,
            "mss": self.mss,
            "sack": self.sack,
            "window_scale": self.window_scale,
            "timestamp": self.timestamp,
            "receive_sequence": self.receive_sequence,
            "send_sequence": self.send_sequence,
            "window": self.window,
            "congestion": self.congestion,
            "linger": self.linger,
            "options": dict(self.options),
            "unsent_bytes": self.unsent_bytes,
            "backlog_bytes": self.backlog_bytes,
            "fin_unsent": self.fin_unsent,
            "congestion_window": self.congestion_window,
            "receive_bytes": len(self.receive_queue),
            "send_bytes": len(self.send_queue),
        }


@dataclass(frozen=True, slots=True)
class StreamState:
    """One connection: which service has it, what that service holds, and the kernel's half.

    :param eof: the service was told that the client sends no more.
    """

    service: str
    state: Mapping[str, Any]
    eof: bool
    tcp: TcpState


@dataclass(frozen=True, slots=True)
class DatagramState:
    """A datagram that waited unread at the pause.

    :param ip: the guest's address that it came to; empty: the first one.
    """

    port: int
    remote: Address
    data: bytes = field(repr=False)
    ip: str = ""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Everything of a paused guest but its memory.

    :param owner: the lease's owner at the pause, and *generation* its generation.
    :param registers: one JSON object for each vCPU, in order.
    :param neighbours: (IP address, MAC) of the guest's neighbour table.
    :param counters: running totals that go on at the destination.
    :param flows: of the guest's own flows (:mod:`bench.guest.clients`).
    :param disks: of what uses the disks (:meth:`bench.guest.disks.GuestDisks.export`), None without disks.
    """

    name: str
    memory_bytes: int
    mac: str
    address: str
    owner: str
    generation: int
    registers: tuple[Mapping[str, Any], ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    streams: tuple[StreamState, ...] = ()
    datagrams: tuple[DatagramState, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    flows: tuple[Mapping[str, Any], ...] = ()
    disks: Mapping[str, Any] | None = None


def encode(state: DeviceState) -> list[bytes]:
    """The state as pieces to be written one after the other: queues of megabytes are not copied into one.

    :raises GuestError: when the state is larger than a destination accepts.
    """
    header = {
        "name": state.name,
        "memory_bytes": state.memory_bytes,
        "mac": state.mac,
        "address": state.address,
        "owner": state.owner,
        "generation": state.generation,
        "counters": dict(state.counters),
        "disks": None if state.disks is None else dict(state.disks),
        "flows": [dict(flow) for flow in state.flows],
        "registers": [dict(registers) for registers in state.registers],
        "neighbours": state.neighbours,
        "streams": [
            {"service": stream.service, "state": dict(stream.state), "eof": stream.eof, "tcp": stream.tcp.header()}
            for stream in state.streams
        ],
        "datagrams": [
            {
                "port": datagram.port,
                "remote": datagram.remote,
                "bytes": len(datagram.data),
                **({"ip": datagram.ip} if datagram.ip else {}),
            }
            for datagram in state.datagrams
        ],
    }
    parts: list[bytes] = []
    for stream in state.streams:
        parts += [stream.tcp.receive_queue, stream.tcp.send_queue]
    parts += [datagram.data for datagram in state.datagrams]
    text = json.dumps(header, separators=(",", ":")).encode()
    body_bytes = sum(map(len, parts))
    if len(text) > MAX_HEADER_BYTES or _PREFIX.size + len(text) + body_bytes > MAX_STATE_BYTES:
        raise GuestError(f"device state of {len(text)} + {body_bytes} bytes is too large to be moved")
    digest = xxhash.xxh3_64(text)
    for part in parts:
        digest.update(part)
    return [_PREFIX.pack(_MAGIC, VERSION, 0, len(text), body_bytes, digest.intdigest()), text, *parts]


def decode(data: bytes | memoryview) -> DeviceState:
    """:raises GuestError: whatever is wrong with *data*."""
    if len(data) < _PREFIX.size:
        raise GuestError(f"device state: {len(data)} bytes are no state")
    magic, version, zero, header_bytes, body_bytes, checksum = _PREFIX.unpack_from(data)
    if magic != _MAGIC or zero != 0:
        raise GuestError("device state: wrong magic")
    if version != VERSION:
        raise GuestError(f"device state: version {version}, and this guest reads version {VERSION} only")
    if header_bytes > MAX_HEADER_BYTES or _PREFIX.size + header_bytes + body_bytes != len(data):
        raise GuestError(f"device state: {len(data)} bytes do not match the announced lengths")
    if xxhash.xxh3_64_intdigest(memoryview(data)[_PREFIX.size :]) != checksum:
        raise GuestError("device state: checksum mismatch")
    body = _Body(memoryview(data)[_PREFIX.size + header_bytes :])
    try:
        raw = json.loads(bytes(data[_PREFIX.size : _PREFIX.size + header_bytes]), parse_constant=_no_constant)
        state = _state(_object(raw), body)
        body.done()
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise GuestError(f"device state: {type(error).__name__}: {str(error)[:200]}") from error
    return state


def rehearse() -> None:
    """Encode and decode a made-up state: the first time takes twice as long as those that follow."""
    options = dict.fromkeys(SOCKET_OPTIONS, 0)
    end = ("192.0.2.1", 7)  # RFC 5737
    window, scale = (0, 0, 0, 0, 0), (7, 7)
    tcp = TcpState("established", end, end, 1460, True, scale, 1, 1, 1, window, "cubic", (0, 0), options)
    stream = StreamState("echo", {}, False, tcp)
    datagram = DatagramState(7, end, b"-")
    mac = "02:00:00:00:00:01"
    neighbours = (("192.0.2.1", mac),)
    state = DeviceState("rehearsal", 4096, mac, "192.0.2.1/24", "", 0, ({},), neighbours, (stream,), (datagram,))
    for _ in range(_REHEARSALS):
        decode(b"".join(encode(state)))


class _Body:
    """Hands out the binary parts in order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def part(self, count: int) -> bytes:
        if count > len(self._data) - self._offset:
            raise ValueError(f"a part of {count} bytes lies beyond the end")
        self._offset += count
        return bytes(self._data[self._offset - count : self._offset])

    def done(self) -> None:
        if self._offset != len(self._data):
            raise ValueError(f"{len(self._data) - self._offset} bytes belong to nothing")


def _state(raw: Mapping[str, Any], body: _Body) -> DeviceState:
    streams = tuple(_stream(_object(item), body) for item in _items(raw["streams"]))
    datagrams = tuple(_datagram(_object(item), body) for item in _items(raw["datagrams"]))
    address = _text(raw["address"], 18)
    ipaddress.IPv4Interface(address)
    return DeviceState(
        name=_text(raw["name"], 64),
        memory_bytes=_integer(raw["memory_bytes"], 1, 1 << 48),
        mac=_mac(raw["mac"]),
        address=address,
        owner=_text(raw["owner"], 64),
        generation=_integer(raw["generation"], 0, 1 << 62),
        registers=tuple(_object(item) for item in _items(raw["registers"])),
        neighbours=tuple((_ip(ip), _mac(mac)) for ip, mac in (_items(pair) for pair in _items(raw["neighbours"]))),
        streams=streams,
        datagrams=datagrams,
        counters={_text(key, 64): _integer(value, 0, 1 << 62) for key, value in _object(raw["counters"]).items()},
        flows=tuple(_object(item) for item in _items(raw.get("flows", []))),
        disks=None if raw.get("disks") is None else _object(raw["disks"]),
    )


def _stream(raw: Mapping[str, Any], body: _Body) -> StreamState:
    tcp = _tcp(_object(raw["tcp"]), body)
    return StreamState(_text(raw["service"], 32), _object(raw["state"]), _flag(raw["eof"]), tcp)


def _datagram(raw: Mapping[str, Any], body: _Body) -> DatagramState:
    port = _integer(raw["port"], 1, 65535)
    ip = _ip(raw["ip"]) if raw.get("ip") else ""
    return DatagramState(port, _endpoint(raw["remote"]), body.part(_integer(raw["bytes"], 0, 65535)), ip)


def _tcp(raw: Mapping[str, Any], body: _Body) -> TcpState:
    state = raw["state"]
    if state not in TCP_STATES:
        raise ValueError(f"TCP state {str(state)[:32]!r}")
    received = body.part(_integer(raw["receive_bytes"], 0, MAX_STATE_BYTES))
    sending = body.part(_integer(raw["send_bytes"], 0, MAX_STATE_BYTES))
    unsent = _integer(raw["unsent_bytes"], 0, len(sending))
    scale = raw["window_scale"]
    timestamp = raw["timestamp"]
    options = _object(raw["options"])
    if set(options) != set(SOCKET_OPTIONS):
        raise ValueError("socket options are missing or unknown")
    snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup = (_integer(item, 0, U32) for item in _items(raw["window"], 5))
    on, seconds = (_integer(item, 0, U32 >> 1) for item in _items(raw["linger"], 2))
    return TcpState(
        state=state,
        local=_endpoint(raw["local"]),
        remote=_endpoint(raw["remote"]),
        mss=_integer(raw["mss"], 1, 65535),
        sack=_flag(raw["sack"]),
        window_scale=None if scale is None else _scale(scale),
        timestamp=None if timestamp is None else _integer(timestamp, 0, U32),
        receive_sequence=_integer(raw["receive_sequence"], 0, U32),
        send_sequence=_integer(raw["send_sequence"], 0, U32),
        window=(snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup),
        congestion=_text(raw["congestion"], 15),
        linger=(on, seconds),
        options={name: _integer(options[name], -(1 << 31), U32) for name in SOCKET_OPTIONS},
        unsent_bytes=unsent,
        backlog_bytes=_integer(raw["backlog_bytes"], 0, unsent),
        fin_unsent=_flag(raw["fin_unsent"]),
        congestion_window=_integer(raw["congestion_window"], 1, U32),
        receive_queue=received,
        send_queue=sending,
    )


def _scale(raw: object) -> tuple[int, int]:
    send, receive = (_integer(item, 0, 14) for item in _items(raw, 2))  # RFC 7323: at most 14
    return send, receive


def _object(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError("an object is missing")
    return cast("dict[str, Any]", raw)


def _items(raw: object, count: int | None = None) -> list[Any]:
    if not isinstance(raw, list) or len(raw) > MAX_ITEMS or count not in (None, len(raw)):
        raise TypeError("a list is missing or of a wrong length")
    return raw


def _integer(raw: object, least: int, most: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise ValueError(f"{str(raw)[:32]} is no integer in {least} … {most}")
    return raw


def _flag(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise TypeError("true or false is missing")
    return raw


def _text(raw: object, most: int) -> str:
    if not isinstance(raw, str) or not raw.isprintable() or len(raw) > most:
        raise ValueError("a text is missing or too long")
    return raw


def _ip(raw: object) -> str:
    return str(ipaddress.ip_address(_text(raw, 39)))


def _mac(raw: object) -> str:
    text = _text(raw, 17)
    if not _MAC.fullmatch(text):
        raise ValueError(f"MAC {text!r}")
    return text


def _endpoint(raw: object) -> Address:
    ip, port = _items(raw, 2)
    return _ip(ip), _integer(port, 1, 65535)


def _no_constant(text: str) -> Iterable[object]:
    raise ValueError(f"{text} is no JSON number")
