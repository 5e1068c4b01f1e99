"""The calibration's process in one host: ``python -m bench.link.burst --channel-fd N``, in that host's namespace.

Echoes UDP datagrams whenever it waits for a command. Commands (grammar: :mod:`bench.host.channel`)::

    listen  {address}                                       -> {port}                  the UDP echo
    echo    {address, port, count, interval_ns, timeout_ns, packet_bytes}
                                                            -> {sent, round_trips_ns}  in the order of arrival
    expect  {address, window_bytes}                         -> {port}                  one TCP connection may come
    collect {timeout_ns}                                    -> {bytes, rate_bps, mss}  reads it to its end
    send    {address, port, duration_ns, timeout_ns}        -> {bytes, retransmits}

``rate_bps`` is that of Ethernet frames, as links are shaped: payload and headers of each segment. ``packet_bytes``: the
size of each probe as an IP packet, which must not be cut up; 0 for small ones.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, HostError
from bench.host.channel import Channel, ChannelClosed

_PROBE = struct.Struct("!QQ")
_PROBE_BYTES = 64
_MAX_PROBE_BYTES = 16384
_UDP_HEADER_BYTES = 28  # with IPv4's
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2  # linux/in.h
_CHUNK_BYTES = 1 << 20
_TCP_WINDOW_CLAMP = 10
_SO_RCVBUFFORCE = 33
_TCPI_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info
MAX_PROBES = 1000
HEADER_BYTES = 66  # of a TCP segment with timestamps: Ethernet, IPv4, TCP


def steady_rate_bps(arrivals: Sequence[tuple[int, int]], mss: int) -> int:
    """The rate of Ethernet frames over the last two thirds of a burst, in bit/s; 0 when there is too little.

    The first third is slow start and the shaper's token bucket.

    :param arrivals: (time in ns, bytes of payload read) in order.
    """
    if len(arrivals) < 3:
        return 0
    begin_ns, end_ns = arrivals[0][0], arrivals[-1][0]
    start_ns = begin_ns + (end_ns - begin_ns) // 3
    index = next(i for i, (at_ns, _) in enumerate(arrivals) if at_ns >= start_ns)
    duration_ns = end_ns - arrivals[index][0]
    if duration_ns <= 0:
        return 0
    payload = sum(count for _, count in arrivals[index + 1 :])
    return payload * (mss + HEADER_BYTES) * 8 * NS_PER_S // (mss * duration_ns)


class Burst:
    """State of the process: the echo socket and the connection that is expected."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._udp: socket.socket | None = None
        self._listener: socket.socket | None = None

    def run(self) -> None:
        """Until the channel ends."""
        while True:
            watched: list[Any] = [self._channel] if self._udp is None else [self._channel, self._udp]
            ready = [self._channel] if self._channel.pending() else select.select(watched, [], [])[0]
            if self._udp is not None and self._udp in ready:
                self._reflect()
            if self._channel in ready:
                self._answer()

    def _reflect(self) -> None:
        assert self._udp is not None
        try:
            while True:
                data, sender = self._udp.recvfrom(_MAX_PROBE_BYTES)
                self._udp.sendto(data, sender)
        except OSError:  # nothing more to read, or the sender's port is closed
            return

    def _answer(self) -> None:
        message = self._channel.receive()
        command, number, args = message.get("command"), message.get("id"), message.get("args")
        if not isinstance(number, int) or not isinstance(args, dict):
            raise HostError("the owner sent no command")
        handler = {
            "listen": self._listen,
            "echo": self._echo,
            "expect": self._expect,
            "collect": self._collect,
            "send": self._send,
        }.get(str(command))
        try:
            if handler is None:
                raise ValueError(f"unknown command {command!r}")
            value = handler(args)
        except (OSError, ValueError, KeyError, TypeError, BenchError) as error:
            self._channel.send_error(number, f"{command}: {error or type(error).__name__}")
        else:
            self._channel.send_reply(number, value)

    def _listen(self, args: dict[str, Any]) -> dict[str, Any]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((args["address"], 0))
        sock.setblocking(False)
        self._udp = sock
        return {"port": sock.getsockname()[1]}

    def _echo(self, args: dict[str, Any]) -> dict[str, Any]:
        count, interval_ns = min(int(args["count"]), MAX_PROBES), int(args["interval_ns"])
        round_trips: list[int] = []
        size = max(_PROBE_BYTES, min(int(args.get("packet_bytes", 0)), _MAX_PROBE_BYTES) - _UDP_HEADER_BYTES)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((args["address"], int(args["port"])))
            sock.setblocking(False)
            if args.get("packet_bytes"):
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
            begin_ns = now_ns()
            end_ns = begin_ns + interval_ns * (count - 1) + int(args["timeout_ns"])
            sent = 0
            while len(round_trips) < count and now_ns() < end_ns:
                next_ns = begin_ns + sent * interval_ns if sent < count else end_ns
                if sent < count and now_ns() >= next_ns:
                    self._try_send(sock, sent, size)
                    sent += 1
                    continue
                if select.select([sock], [], [], max(next_ns - now_ns(), 0) / NS_PER_S)[0]:
                    self._take_replies(sock, round_trips)
        return {"sent": sent, "round_trips_ns": round_trips}

    @staticmethod
    def _try_send(sock: socket.socket, number: int, size: int) -> None:
        try:
            sock.send(_PROBE.pack(number, now_ns()).ljust(size, b"\0"))
        except OSError:  # an ICMP error of an earlier probe, or no neighbour yet: this one counts as lost
            return

    @staticmethod
    def _take_replies(sock: socket.socket, round_trips: list[int]) -> None:
        try:
            while True:
                data = sock.recv(_MAX_PROBE_BYTES)
                if len(data) >= _PROBE_BYTES:
                    round_trips.append(now_ns() - _PROBE.unpack_from(data)[1])
        except OSError:  # nothing more to read, or the other side does not listen (yet)
            return

    def _expect(self, args: dict[str, Any]) -> dict[str, Any]:
        self._close_listener()
        window_bytes = int(args["window_bytes"])
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, min(4 * window_bytes, 1 << 30))
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_WINDOW_CLAMP, min(window_bytes, 1 << 30))
        listener.bind((args["address"], 0))
        listener.listen(1)
        self._listener = listener
        return {"port": listener.getsockname()[1]}

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _collect(self, args: dict[str, Any]) -> dict[str, Any]:
        if self._listener is None:
            raise ValueError("no connection is expected")
        deadline = Deadline(int(args["timeout_ns"]))
        arrivals: list[tuple[int, int]] = []
        try:
            self._listener.settimeout(max(deadline.remaining_s, 0.001))
            connection, _ = self._listener.accept()
            with connection:
                mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
                buffer = bytearray(_CHUNK_BYTES)
                while True:
                    connection.settimeout(max(deadline.remaining_s, 0.001))
                    count = connection.recv_into(buffer)
                    if not count:
                        break
                    arrivals.append((now_ns(), count))
        finally:
            self._close_listener()
        total = sum(count for _, count in arrivals)
        return {"bytes": total, "rate_bps": steady_rate_bps(arrivals, mss), "mss": mss}

    def _send(self, args: dict[str, Any]) -> dict[str, Any]:
        limit = Deadline(int(args["timeout_ns"]))
        zeros = memoryview(bytes(_CHUNK_BYTES))
        total = 0
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            # BBR, the default of some machines, probes for the rate instead of filling the window that was chosen
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            sock.settimeout(max(limit.remaining_s, 0.001))
            sock.connect((args["address"], int(args["port"])))
            burst = Deadline(int(args["duration_ns"]))
            while not burst.expired:
                sock.settimeout(max(burst.remaining_s, 0.001))
                try:
                    total += sock.send(zeros)
                except TimeoutError:
                    break
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            (retransmits,) = struct.unpack_from("=I", info, _TCPI_TOTAL_RETRANS)
            sock.shutdown(socket.SHUT_WR)
        return {"bytes": total, "retransmits": retransmits}


def main(arguments: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="bench.link.burst")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        Burst(Channel.from_fd(options.channel_fd, "owner")).run()
    except ChannelClosed:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
