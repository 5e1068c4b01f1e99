"""Frames that still reach the source after the pause, kept and sent on to the destination.

The idea is under discussion for QEMU: until the network has learnt the guest's new place, the old hypervisor need not
throw away what arrives for it. One process does it for one migration, with a foot in both hypervisors' namespaces:

- at the source, a packet socket on the uplink that sees frames for the guest (with virtio-net headers, so that TCP
  segments of 64 KiB stay whole);
- one TCP connection from the source's address to the destination's, across the emulated network like everything else:
  records of u64 CLOCK_MONOTONIC ns of arrival, u32 length, bytes;
- at the destination, a packet socket on the hypervisor's end of each of the guest's cards. Past the queueing layer,
  where the tag of a VLAN would be taken off: the kernel has done that already, at the source.

Frames from before the cut of the guest's port, by the kernel's time stamp, are the guest's own business; those after
it wait until the guest has resumed (at most :data:`MAX_BUFFER_BYTES`, then the newest are dropped), and later ones are
sent on as they come. They may overtake or be overtaken by frames that take the new way: the flows' counts of reordered
answers show it.

Commands: ``start``, ``cut`` {t_ns}, ``open`` {interfaces: {MAC address: interface}}. Events (source ``forwarder``):
``forward_ready``, ``forward_opened`` {frames, bytes}, ``forwarded`` {frames, bytes, dropped, last_ns, by_mac}.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError
from bench.host.channel import Channel, serve_worker
from bench.host.commands import Process, spawn_child
from bench.host.kernel import entered_netns
from bench.timeline import EventWriter

SOURCE: Final = "forwarder"
PORT: Final = 49151
MAX_BUFFER_BYTES: Final = 64 << 20
EARLIER_NS: Final = 500 * NS_PER_MS
"""The word of the cut comes so much later at most; frames are kept that long without it."""
_ETH_P_ALL: Final = 0x0003
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_QDISC_BYPASS, _PACKET_OUTGOING = 263, 15, 20, 4
_VNET_HEADER_BYTES: Final = 10
_SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; what it tells has the same number
_TIMESPEC: Final = struct.Struct("=qq")
_TOLD_BYTES: Final = socket.CMSG_SPACE(_TIMESPEC.size)
_RECORD: Final = struct.Struct("=QI")
_FRAME_BYTES: Final = 1 << 17
_CALL_NS: Final = 10 * NS_PER_S


def arrival_ns(told: Iterable[tuple[int, int, bytes]]) -> int:
    """When a frame came, on CLOCK_MONOTONIC: the kernel's stamp (SO_TIMESTAMPNS, socket(7)) and not the moment of being
    read, which may be milliseconds later: what the guest itself got before the cut would be sent on a second time.

    :param told: recvmsg's ancillary data; now, where it has no stamp.
    """
    at_ns = now_ns()
    for level, kind, data in told:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            ago_ns = time.time_ns() - int(seconds) * NS_PER_S - int(nanoseconds)
            return at_ns - max(ago_ns, 0)
    return at_ns


class Forwarder:
    """The process of one migration, from outside; :meth:`stop` is idempotent."""

    def __init__(self, events: Path, log: Path) -> None:
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._events = events
        self._log = log

    def start(self, told: Mapping[str, Any]) -> None:
        """:param told: source_pid, destination_pid, uplink, macs, address (of the destination).

        :raises HostError: it cannot.
        """
        self._process, self._channel = spawn_child("bench.forward", peer="forwarder", log=self._log)
        self._channel.call("start", {**told, "events": str(self._events)}, deadline=Deadline(_CALL_NS))

    def cut(self, t_ns: int) -> None:
        """The guest's network was cut at the source at *t_ns*."""
        self._tell("cut", {"t_ns": t_ns})

    def open(self, interfaces: Mapping[str, str]) -> None:
        """The guest runs at the destination. :param interfaces: behind which, by the card's MAC address."""
        self._tell("open", {"interfaces": dict(interfaces)})

    def _tell(self, command: str, args: Mapping[str, Any]) -> None:
        if self._channel is not None:
            self._channel.call(command, args, deadline=Deadline(_CALL_NS))

    def stop(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            with contextlib.suppress(BenchError):
                process.wait(Deadline(NS_PER_S))
            process.stop()


class _Carrier:
    """Both feet, in one thread."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._macs = {_octets(mac) for mac in told["macs"]}
        self._destination_pid = int(told["destination_pid"])
        self._write = EventWriter(Path(told["events"]), SOURCE)
        self._stack = contextlib.ExitStack()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._cut_ns: int | None = None
        self._opened = False
        self._counts = {"frames": 0, "bytes": 0, "dropped": 0, "last_ns": 0}
        self._by_mac = dict.fromkeys(self._macs, 0)
        self._left = b""
        with entered_netns(self._destination_pid):
            listener = self._stack.enter_context(socket.create_server((str(told["address"]), PORT)))
        with entered_netns(int(told["source_pid"])):
            self._seen = self._packet_socket(str(told["uplink"]))
            self._out = self._stack.enter_context(
                socket.create_connection((str(told["address"]), PORT), _CALL_NS / NS_PER_S)
            )
        self._in = self._stack.enter_context(listener.accept()[0])
        self._out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in.setblocking(False)
        self._cards: dict[bytes, socket.socket] = {}
        self._write("forward_ready")

    def _packet_socket(self, interface: str) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ALL))
        self._stack.callback(sock.close)
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.bind((interface, _ETH_P_ALL))
        sock.setblocking(False)
        return sock

    def command(self, name: str, args: Mapping[str, Any]) -> None:
        if name == "cut":
            self._cut_ns = int(args["t_ns"])
        else:
            with entered_netns(self._destination_pid):
                for mac, interface in args["interfaces"].items():
                    card = self._cards[_octets(mac)] = self._packet_socket(str(interface))
                    card.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            self._opened = True
            self._discard_early()
            self._write("forward_opened", frames=len(self._waiting), bytes=self._bytes)

    def _discard_early(self) -> None:
        before = now_ns() - EARLIER_NS if self._cut_ns is None else self._cut_ns
        while self._waiting and self._waiting[0][0] < before:
            self._bytes -= len(self._waiting.popleft()[1])

    def turn(self, channel_fd: int) -> bool:
        """:returns: whether the channel has something to say."""
        seen_fd, in_fd = self._seen.fileno(), self._in.fileno()
        writes = [self._out.fileno()] if self._opened and self._waiting else []
        ready, writable, _ = select.select([channel_fd, seen_fd, in_fd], writes, [])
        if seen_fd in ready:
            self._take()
        if writable:
            at_ns, frame = self._waiting.popleft()
            self._bytes -= len(frame)
            self._out.sendall(_RECORD.pack(at_ns, len(frame)) + frame)
        if in_fd in ready:
            self._deliver()
        return channel_fd in ready

    def _take(self) -> None:
        try:
            data, told, _flags, address = self._seen.recvmsg(_FRAME_BYTES, _TOLD_BYTES)
        except BlockingIOError:
            return
        if address[2] == _PACKET_OUTGOING or _target(data) not in self._macs:
            return
        if self._bytes + len(data) > MAX_BUFFER_BYTES:
            self._counts["dropped"] += 1
            return
        at_ns = arrival_ns(told)
        if self._cut_ns is not None and at_ns < self._cut_ns:
            return
        self._waiting.append((at_ns, data))
        self._bytes += len(data)
        if not self._opened:
            self._discard_early()

    def _deliver(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._left += self._in.recv(1 << 20)
        while len(self._left) >= _RECORD.size:
            _at_ns, length = _RECORD.unpack_from(self._left)
            if len(self._left) < _RECORD.size + length:
                return
            frame, self._left = self._left[_RECORD.size :][:length], self._left[_RECORD.size + length :]
            try:
                self._cards[_target(frame)].send(frame)
            except (OSError, KeyError):
                self._counts["dropped"] += 1
                continue
            self._counts["frames"] += 1
            self._by_mac[_target(frame)] += 1
            self._counts["bytes"] += length
            self._counts["last_ns"] = now_ns()

    def close(self) -> None:
        by_mac = {mac.hex(":"): count for mac, count in self._by_mac.items() if count}
        self._write("forwarded", **self._counts, by_mac=by_mac)
        self._stack.close()


def _octets(mac: object) -> bytes:
    return bytes.fromhex(str(mac).replace(":", ""))


def _target(data: bytes) -> bytes:
    """The MAC address that a frame is for."""
    return data[_VNET_HEADER_BYTES:][:6]


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    serve_worker(Channel.from_fd(parser.parse_args().channel_fd, "runner"), _Carrier)
    return 0


if __name__ == "__main__":
    sys.exit(main())
