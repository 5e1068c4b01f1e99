"""What is sent: bytes, and stretches of a file whose bytes are also mapped, in whatever pieces a socket takes them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file, for sockets that can take its pages themselves (sendfile(2)), which saves copying them.

    Such a socket holds the pages and not what was in them: what is written there before they leave, or before they
    leave once more, is what arrives.

    :param offset: where they begin in the file *fd*.
    :param view: the same bytes, mapped.
    """

    fd: int
    offset: int
    view: memoryview

    @property
    def nbytes(self) -> int:
        return self.view.nbytes

    def rest(self, count: int) -> Stretch:
        """Without its first *count* bytes."""
        return Stretch(self.fd, self.offset + count, self.view[count:])


Part: TypeAlias = Buffer | Stretch
Piece: TypeAlias = memoryview | Stretch


def views_of(parts: Sequence[Part]) -> list[memoryview]:
    """The bytes of *parts*, without those that are empty."""
    return [piece.view if isinstance(piece, Stretch) else piece for piece in pieces_of(parts)]


def pieces_of(parts: Sequence[Part]) -> list[Piece]:
    """*parts* for :func:`send_some`, without those that are empty."""
    pieces = [part if isinstance(part, Stretch) else memoryview(part).cast("B") for part in parts]
    return [piece for piece in pieces if piece.nbytes]


def bytes_of(parts: Sequence[Part]) -> int:
    """How many bytes *parts* are."""
    return sum(part.nbytes if isinstance(part, Stretch) else memoryview(part).nbytes for part in parts)


def send_some(sock: socket.socket, pieces: list[Piece]) -> int:
    """Write to a socket what it takes now of *pieces*, of which none is empty, and remove that from them.

    :returns: the number of bytes; may be less than the socket would take.
    :raises BlockingIOError: when it takes nothing; OSError: whatever sendmsg(2) and sendfile(2) say.
    """
    first = pieces[0]
    if isinstance(first, Stretch):
        count = _send_stretch(sock, first)
    else:
        views: list[memoryview] = []
        for piece in pieces:
            if isinstance(piece, Stretch):
                break
            views.append(piece)
        more = socket.MSG_MORE if len(views) < len(pieces) else 0  # a header leaves with what follows it
        count = sock.sendmsg(views, (), socket.MSG_DONTWAIT | more)
    left = count
    while left:
        piece = pieces[0]
        if left >= piece.nbytes:
            left -= pieces.pop(0).nbytes
        else:
            pieces[0] = piece.rest(left) if isinstance(piece, Stretch) else piece[left:]
            left = 0
    return count


def _send_stretch(sock: socket.socket, stretch: Stretch) -> int:
    descriptor = sock.fileno()
    os.set_blocking(descriptor, False)  # sendfile has no flag for that; whoever receives here wants to block
    try:
        return os.sendfile(descriptor, stretch.fd, stretch.offset, stretch.nbytes)
    finally:
        os.set_blocking(descriptor, True)
