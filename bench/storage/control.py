"""The hypervisor's line to a storage server's grants: one connection that stays in the NBD handshake.

Never blocks. One order at a time, each answered or failed within a time; after a failure the next order connects anew.
A server that is busy may be given more time than one that is out of reach gets: TCP tells the two apart.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import StorageError
from bench.storage import nbd_wire as nbd
from bench.storage.silence import notice_silence

ANSWER_NS: Final = 2000 * NS_PER_MS  # more than the first SYN that is lost takes (1 s: RFC 6298, 2.1)
SILENT_NS: Final = 2000 * NS_PER_MS  # a server whose machine acknowledges nothing for so long is out of reach

Done = Callable[[Mapping[str, Any], "StorageError | None"], None]
"""Called once with the answer, or with an empty one and what went wrong."""


class Control:
    """:param name: of the server, for messages; *address* and *port* are the fence's."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name = name
        self._place = (address, port)
        self._answer_ns = ANSWER_NS
        self._sock: socket.socket | None = None
        self._greeted = False
        self._in = bytearray()
        self._out = bytearray()
        self._done: Done | None = None
        self._due_ns: int | None = None

    def connect(self) -> None:
        """Begin to connect, so that the next order need not wait for it. Idempotent."""
        if self._sock is not None:
            return
        self._in.clear()
        self._out = bytearray(nbd.CLIENT_FLAGS.pack(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES))
        self._greeted = False
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_silence(self._sock, SILENT_NS)
        result = self._sock.connect_ex(self._place)
        if result not in (0, errno.EINPROGRESS):
            self._fail(os.strerror(result))

    @property
    def busy(self) -> bool:
        """An order is under way."""
        return self._done is not None

    def ask(self, order: Mapping[str, Any], done: Done, answer_ns: int = ANSWER_NS) -> None:
        """Send an order; *done* is called later, never from here.

        :param answer_ns: how long the server may take.
        """
        if self._done is not None:
            raise StorageError(f"storage server {self.name}: an order is under way")
        self._done = done
        self._answer_ns = answer_ns
        self._due_ns = now_ns() + answer_ns
        self.connect()
        self._out += nbd.option(nbd.OPT_GRANT, nbd.pack_object(dict(order)))

    def close(self) -> None:
        """Idempotent; an order under way is forgotten."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._done = self._due_ns = None

    # what the loop wants to know

    def fileno(self) -> int:
        return -1 if self._sock is None else self._sock.fileno()

    def wants(self) -> int:
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def due_ns(self) -> int | None:
        return self._due_ns

    def on_time(self) -> None:
        self._fail(f"no answer within {self._answer_ns / NS_PER_S:g} s")

    def ready(self, events: int) -> None:
        """The socket is ready."""
        assert self._sock is not None
        try:
            if events & select.POLLOUT and self._out:
                del self._out[: self._sock.send(self._out)]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = self._sock.recv(nbd.MAX_OPTION_BYTES)
                if not data:
                    self._fail("it closed the connection")
                    return
                self._in += data
                self._read()
        except BlockingIOError:
            return
        except (OSError, StorageError) as error:
            self._fail(str(getattr(error, "strerror", "") or error))

    def _read(self) -> None:
        if not self._greeted:
            if len(self._in) < nbd.GREETING.size:
                return
            if nbd.GREETING.unpack_from(self._in)[0] != nbd.MAGIC:
                raise StorageError("no NBD server")
            del self._in[: nbd.GREETING.size]
            self._greeted = True
        if len(self._in) < nbd.ANSWER.size:
            return
        magic, _option, _kind, length = nbd.ANSWER.unpack_from(self._in)
        if magic != nbd.OPTION_REPLY or length > nbd.MAX_OPTION_BYTES:
            raise StorageError("no answer of an NBD server")
        if len(self._in) < nbd.ANSWER.size + length:
            return
        value = nbd.unpack_object(bytes(self._in[nbd.ANSWER.size : nbd.ANSWER.size + length]))
        del self._in[: nbd.ANSWER.size + length]
        done, self._done, self._due_ns = self._done, None, None
        if done is not None:
            error = value.get("error")
            done({} if error else value, StorageError(str(error)[:500]) if error else None)

    def _fail(self, why: str) -> None:
        done = self._done
        self.close()
        if done is not None:
            done({}, StorageError(f"storage server {self.name} is out of reach: {why}"))
