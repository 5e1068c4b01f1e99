"""Connecting: one attempt of a flow of the guest's to connect to its server, without blocking."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from bench.flows.connecting import begin_connecting, require_connected
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
        try:
            sock = begin_connecting(options, server, means.ip)
        except OSError as problem:
            failed(problem)
            return
        self._sock = sock
        means.loop.watch_bulk(sock.fileno(), select.EPOLLOUT, self._ready)

    def _ready(self, _events: int) -> None:
        sock = self._take()
        if sock is None:
            return
        try:
            require_connected(sock)
        except OSError as problem:
            sock.close()
            self._failed(problem)
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
