"""Carries OpenFlow connections out of a run's sandbox to a controller that somebody else started.

A sandbox has a network of its own, in which nothing outside can be reached; a Unix socket in the file system can.
Open vSwitch connects to that (``unix:FILE``, ovs-vswitchd.conf.db(5)), and this process, which stays outside, opens
one TCP connection for each and carries the bytes; on their way from the controller, frames get whole checksums
(:mod:`bench.host.checksums`). It ends with its channel.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
from pathlib import Path

from bench.clock import NS_PER_S, Deadline
from bench.errors import ControllerError, HostError
from bench.host.channel import Channel
from bench.host.checksums import Completing
from bench.host.commands import Process, spawn_child

MAX_CONNECTIONS = 512
PIECE_BYTES = 1 << 16
CONNECT_NS = 5 * NS_PER_S
_START_NS = 20 * NS_PER_S


def reachable(address: str) -> str:
    """Why nobody answers at ``tcp:HOST:PORT``; "" when somebody does."""
    host, port = split(address)
    try:
        socket.create_connection((host, port), CONNECT_NS / NS_PER_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def split(address: str) -> tuple[str, int]:
    """``tcp:HOST:PORT`` to host and port."""
    _tcp, host, port = address.split(":")
    return host, int(port)


class Relay:
    """The relay's process, from outside. :meth:`start` before the sandbox, :meth:`stop` after it; idempotent.

    :param path: of the Unix socket that it listens at; below 107 bytes.
    :param address: ``tcp:HOST:PORT`` of the controller.
    """

    def __init__(self, path: Path, address: str, log: Path) -> None:
        self.path = path
        self._address = address
        self._log = log
        self._process: Process | None = None
        self._channel: Channel | None = None

    def start(self) -> None:
        """:raises ControllerError: nobody answers at the address, or the relay does not start."""
        problem = reachable(self._address)
        if problem:
            raise ControllerError(
                f"no controller answers at {self._address}: {problem}", "start it first, and look at its address"
            )
        arguments = ["--listen", str(self.path), "--to", self._address]
        self._process, self._channel = spawn_child(
            "bench.host.relay", peer="controller relay", extra_args=arguments, log=self._log
        )
        try:
            self._channel.receive(Deadline(_START_NS))
        except HostError as error:
            self.stop()
            raise ControllerError(f"the relay to {self._address} did not start: {error.message}") from error

    def stop(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.stop()


class _Carrier:
    """Both directions of every connection, in one thread."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self._listener = listener
        self._to = split(address)
        self._peer: dict[socket.socket, socket.socket] = {}
        self._completing: dict[socket.socket, Completing] = {}

    def run(self, channel_fd: int) -> None:
        """Until the channel ends."""
        while True:
            ends = {end.fileno(): end for end in self._peer}
            ready, _, _ = select.select([channel_fd, self._listener.fileno(), *ends], [], [])
            if channel_fd in ready:
                return
            for fd in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif (end := ends[fd]) in self._peer:  # its other end may just have closed both
                    self._carry(end)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            if len(self._peer) >= 2 * MAX_CONNECTIONS:
                raise OSError("too many connections")
            far = socket.create_connection(self._to, CONNECT_NS / NS_PER_S)
        except OSError:
            near.close()  # the switch will try again
            return
        for end in (near, far):
            end.settimeout(CONNECT_NS / NS_PER_S)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer[near], self._peer[far] = far, near
        self._completing[far] = Completing()

    def _carry(self, end: socket.socket) -> None:
        try:
            data = end.recv(PIECE_BYTES)
            if data:
                completing = self._completing.get(end)
                self._peer[end].sendall(completing.feed(data) if completing is not None else data)
                return
        except OSError:
            pass
        other = self._peer.pop(end)
        self._peer.pop(other, None)
        for socket_ in (end, other):
            self._completing.pop(socket_, None)
        end.close()
        other.close()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--to", required=True)
    arguments = parser.parse_args()
    channel = Channel.from_fd(arguments.channel_fd, "runner")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(arguments.listen)
        listener.listen(MAX_CONNECTIONS)
        channel.send({"listening": arguments.listen})
        _Carrier(listener, arguments.to).run(channel.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
