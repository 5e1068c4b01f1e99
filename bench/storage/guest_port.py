"""The block layer's end of a guest's disks: requests come in, completions go out (:mod:`bench.storage.ring`)."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable

from bench.storage import ring
from bench.storage.export import READ, WRITE, Request


class GuestPort:
    """The socket that the guest's requests come over."""

    def __init__(self, sock: socket.socket, area: memoryview, submit: Callable[[int, Request], None]) -> None:
        self._sock = sock
        self._area = area
        self._submit = submit
        self._completions = bytearray()
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def wants(self) -> int:
        return select.POLLIN | (select.POLLOUT if self._completions else 0)

    def due_ns(self) -> int | None:
        return None

    def on_time(self) -> None:
        pass

    def ready(self, events: int) -> None:
        """Take the guest's requests, hand out what is done."""
        if events & select.POLLIN:
            with contextlib.suppress(BlockingIOError):
                data = self._sock.recv(ring.PACKET_BYTES)
                for item in ring.unpack_requests(data):
                    self._take(item)
        self.flush()

    def flush(self) -> None:
        """Send the completions, as far as the guest takes them."""
        while self._completions:
            try:
                size = ring.PACKET_BYTES // ring.COMPLETION.size * ring.COMPLETION.size
                sent = self._sock.send(self._completions[:size])
            except BlockingIOError:
                return
            except OSError:  # the guest is gone, which the channel tells
                self._completions.clear()
                return
            del self._completions[:sent]

    def _take(self, item: ring.Item) -> None:
        def done(error: int) -> None:
            self._completions += ring.COMPLETION.pack(item.ident, error)

        begin = item.slot * ring.SLOT_BYTES
        buffer = self._area[begin : begin + item.length] if item.kind in (READ, WRITE) else None
        if buffer is not None and (item.length > ring.SLOT_BYTES or len(buffer) != item.length):
            done(errno.EINVAL)
            return
        self._submit(item.disk, Request(item.kind, item.offset, item.length, buffer, bool(item.flags & ring.FUA), done))
