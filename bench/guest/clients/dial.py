"""Connecting: one attempt of a flow of the guest's to connect to its server, without blocking."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

from bench.flows.tcp_options import TcpOptions
from bench.guest.clients.base import Means


class Dial:
    """One attempt. Exactly one of the two is called, unless it is given up before.

    :param opened: with the connected socket, which is the callee's.
    :param failed: with the reason.
    """

    def __init__(
        self,
        means: Means,
        options: TcpOptions,
        server: tuple[str, int],
        opened: Callable[[socket.socket], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._means = means
        self._opened = opened
        self._failed = failed
        self._sock: socket.socket | None = None
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            options.apply(sock)
            sock.bind((means.ip, 0))
            error = sock.connect_ex(server)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except OSError as problem:
            sock.close()
            failed(problem)
            return
        self._sock = sock
        means.loop.watch_bulk(sock.fileno(), select.EPOLLOUT, self._ready)

    def _ready(self, _events: int) -> None:
        sock = self._take()
        if sock is None:
            return
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            sock.close()
            self._failed(OSError(error, os.strerror(error)))
        else:
            self._opened(sock)

    def give_up(self) -> bool:
        """A connection half way through its handshake cannot move. Idempotent. :returns: whether it was under way."""
        sock = self._take()
        if sock is None:
            return False
        sock.close()
        return True

    def _take(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._means.loop.unwatch_bulk(sock.fileno())
        return sock
