"""A server outside: ``python -m bench.outside.server --channel-fd N --address IP --notes FILE``.

In the network namespace of a client host it offers what a guest offers, on the same ports (echo, discard, chargen,
HTTP, Redis, and the sink of one-way datagrams): the same services on the same loop, on a machine that does not move.
It says ``ready`` up the channel once it listens, and ends with its channel.
"""

from __future__ import annotations

import argparse
import gc
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_MS, now_ns
from bench.flows.notes import NoteFile
from bench.guest.loop import Loop
from bench.guest.services.base import Machine
from bench.guest.sockets import Sockets
from bench.guest.store import Store
from bench.host.channel import Channel, ChannelClosed
from bench.host.timer import set_timer_slack_ns
from bench.timeline import Event

MEMORY_BYTES: Final = 16 << 20
STORE_BYTES: Final = 8 << 20
FLUSH_NS: Final = 250 * NS_PER_MS


class Server:
    """Serve until the channel ends.

    :raises GuestError: a port is taken.
    """

    def __init__(self, channel: Channel, address: str, notes: Path) -> None:
        self._channel = channel
        self._loop = Loop()
        self._notes = NoteFile(notes)
        memory = memoryview(bytearray(MEMORY_BYTES))
        machine = Machine(memory, Store.format(memory[-STORE_BYTES:]))
        self._sockets = Sockets((address,), machine, self._loop, self._notes)

    def run(self) -> None:
        self._loop.watch(self._channel.fileno(), select.EPOLLIN, self._heard)
        self._sockets.serve()
        self._loop.release_bulk()
        self._flush()
        self._channel.send_event(Event.now("outside.server", "ready"))
        try:
            self._loop.run()
        finally:
            self._notes.close()

    def _heard(self, _events: int) -> None:
        try:
            self._channel.receive_ready()
        except ChannelClosed:
            self._loop.stop()

    def _flush(self) -> None:
        self._notes.flush()
        self._loop.at(now_ns() + FLUSH_NS, self._flush)


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """The server's process."""
    parser = argparse.ArgumentParser(prog="bench.outside.server")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--notes", type=Path, required=True)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to handle
    signal.signal(signal.SIGTERM, _terminated)
    set_timer_slack_ns(1)
    server = Server(Channel.from_fd(options.channel_fd, "runner"), options.address, options.notes)
    gc.collect()
    gc.freeze()
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
