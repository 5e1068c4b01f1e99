"""Connecting without blocking: what every end that connects does, whatever loop it runs on."""

from __future__ import annotations

import errno
import os
import socket

from bench.flows.tcp_options import TcpOptions


def begin_connecting(options: TcpOptions, server: tuple[str, int], source: str = "") -> socket.socket:
    """A socket with these *options* that is being connected; it becomes writable when that is decided.

    :param source: the address to connect from; empty for the kernel's choice.
    :raises OSError: an option that this kernel lacks, or that it cannot even begin.
    """
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        options.apply(sock)
        if source:
            sock.bind((source, 0))
        error = sock.connect_ex(server)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except OSError:
        sock.close()
        raise
    return sock


def require_connected(sock: socket.socket) -> None:
    """Of a socket that became writable. :raises OSError: why it is not connected."""
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
