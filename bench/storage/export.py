"""One disk as the hypervisor's block layer reaches it: an NBD connection that is made anew until it works.

A request stays here until the storage side has carried it out, however long its disk takes. When the connection breaks,
or the other machine acknowledges nothing that is sent (:mod:`bench.storage.silence`), everything that is not done is
sent again over a new one, in the old order; its higher incarnation makes the fence drop the former
(:mod:`bench.storage.fence`), so no copy of a request can come late. A request that the fence refuses because its
generation has ended also stays: either this hypervisor gets the disk back, or it dies with its guest.

What was done and not flushed yet is kept (:mod:`bench.storage.unflushed`): when the image server behind the fence is
another one than before, which the fence's description of the export tells, it is written again, one change after the
other, before anything else. So that little is kept, a flush is sent by and by, and writes wait for one that is late.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.storage.nbd_wire import ExportName
from bench.storage.silence import notice_silence
from bench.storage.unflushed import Change, Unflushed

RETRY_NS: Final = 100 * NS_PER_MS
STALL_NS: Final = 2 * NS_PER_S  # not connected after so long: try again
SILENT_NS: Final = 2 * NS_PER_S  # connected, and nothing was acknowledged for so long: try another connection
_AGAIN: Final = frozenset(
    {errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENODEV}
)

READ, WRITE, FLUSH, ZERO = 1, 2, 3, 4


@dataclass(eq=False, slots=True)
class Request:
    """One request.

    :param kind: READ, WRITE, FLUSH or ZERO.
    :param buffer: of a read or write, *length* bytes; must live until *done*.
    :param fua: only done when it is on the disk.
    :param done: called once, with 0 or an errno.
    :param mark: of a flush that is on its way: what it covers.
    """

    kind: int
    offset: int
    length: int
    buffer: memoryview | None
    fua: bool
    done: Callable[[int], None]
    mark: int = 0

    @property
    def changes(self) -> bool:
        """Whether the disk is another one afterwards."""
        return self.kind in (WRITE, ZERO)


class Export:
    """:param name: of the guest's disk; the generation comes with :meth:`open`."""

    def __init__(self, place: tuple[str, int], guest: str, disk: str, holder: str) -> None:
        self.disk = disk
        self.size_bytes = 0
        self.fenced = False
        self._place = place
        self._guest, self._holder = guest, holder
        self._generation: int | None = None
        self._incarnation = 0
        self._pending: dict[Request, None] = {}
        self._handle: Any = None
        self._ready = False
        self._retry_ns: int | None = None
        self._begun_ns = 0
        self._finished: list[tuple[Request, int]] = []
        self._unflushed = Unflushed()
        self._server = ""  # the image server that has what is unflushed
        self._met = ""  # the one that this connection goes to
        self._to_redo: deque[Change] = deque()  # what that one has to do again, before anything else
        self._redoing: Request | None = None
        self._held: list[Request] = []  # changes that wait for the flush under way
        self._flushing = False
        self._error = 0  # of something that nobody waits for; the next flush tells it

    def __len__(self) -> int:
        """Requests that are not done."""
        return len(self._pending)

    @property
    def connected(self) -> bool:
        return self._ready

    def open(self, generation: int) -> None:
        """Use this generation from now on; connects in the background. What is not done is sent again in it."""
        if generation == self._generation and self._handle is not None and not self.fenced:
            return
        self._generation = generation
        self.fenced = False
        self._connect()

    def submit(self, request: Request) -> None:
        self._pending[request] = None
        if self._ready and not self.fenced:
            self._admit(request)

    def close(self) -> None:
        """Forget everything. Idempotent."""
        self._drop()
        self._retry_ns = self._generation = None
        self._pending.clear()
        self._unflushed = Unflushed()

    # connecting

    def _connect(self) -> None:
        import nbd  # noqa: PLC0415 - only where there are disks

        self._drop()
        self._incarnation = max(self._incarnation + 1, now_ns())  # grows across processes too: one clock
        handle = nbd.NBD()
        handle.set_pread_initialize(False)
        handle.set_request_structured_replies(False)
        handle.set_full_info(True)  # the description
        assert self._generation is not None
        name = ExportName(self._guest, self.disk, self._holder, self._generation, self._incarnation)
        handle.set_export_name(str(name))
        self._handle = handle
        self._begun_ns = now_ns()
        self._retry_ns = None
        try:
            handle.aio_connect_tcp(self._place[0], str(self._place[1]))
        except nbd.Error:
            self._again()
        else:
            self._look()  # a server that is quick has answered everything by now, and nothing more would come

    def _drop(self) -> None:
        handle, self._handle, self._ready = self._handle, None, False
        self._finished.clear()  # of the handle that goes: sent again
        self._to_redo.clear()
        self._redoing = None
        self._held.clear()
        del handle  # closes it; its completions find that the handle is not this one's any more

    def _again(self) -> None:
        self._drop()
        self._retry_ns = now_ns() + RETRY_NS

    def _admit(self, request: Request) -> None:
        """Send it, unless it has to wait for the flush under way."""
        if request.changes and self._flushing and self._unflushed.full:
            self._held.append(request)
        else:
            self._issue(request)

    def _issue(self, request: Request) -> None:
        import nbd  # noqa: PLC0415 - as above

        handle = self._handle
        request.mark = self._unflushed.mark()
        buffer = None if request.buffer is None else _shared(request.buffer)

        def completed(error: ctypes.c_int) -> int:
            if self._handle is handle:
                if request.kind == READ and not error.value:
                    _copy_back(buffer, request.buffer)
                self._finished.append((request, error.value))  # libnbd holds the handle here: nothing may be sent
            return 1

        flags = nbd.CMD_FLAG_FUA if request.fua else 0
        try:
            if request.kind == FLUSH:
                handle.aio_flush(completion=completed)
            elif request.kind == ZERO:
                handle.aio_zero(request.length, request.offset, completion=completed, flags=flags)
            elif request.kind == READ:
                handle.aio_pread(buffer, request.offset, completion=completed)
            else:
                handle.aio_pwrite(buffer, request.offset, completion=completed, flags=flags)
        except nbd.Error as error:
            if self._lost():
                self._again()
            else:
                self._finished.append((request, error.errnum or errno.EIO))

    def _settle(self) -> None:
        """Tell of the requests that libnbd has finished."""
        while self._finished:
            finished, self._finished = self._finished, []
            for request, error in finished:
                self._completed(request, error)

    def _completed(self, request: Request, error: int) -> None:
        if error in _AGAIN or (error and self._lost()):
            return  # sent again with the next connection
        if error == errno.EPERM:
            self.fenced = True
            return
        if request is self._redoing:
            self._error = self._error or error
            self._redo()
        elif request in self._pending:
            del self._pending[request]
            if request.kind == FLUSH:
                error = self._end_flush(request, error)
            elif request.changes and not error:
                self._unflushed.add(request.offset, request.length, request.buffer)
                self._flush_by_and_by()
            request.done(error)

    # what the server could still lose

    def _flush_by_and_by(self) -> None:
        if self._unflushed.high and not self._flushing:
            self._flushing = True
            self.submit(Request(FLUSH, 0, 0, None, False, self._flushed))

    def _flushed(self, error: int) -> None:
        """The flush that nobody asked for."""
        self._flushing = False
        self._error = self._error or error
        held, self._held = self._held, []
        for request in held:
            self._admit(request)

    def _end_flush(self, request: Request, error: int) -> int:
        """As on a real disk, an error is told once, and what it was about is not tried again. :returns: the error."""
        self._unflushed.flushed(request.mark)
        if request.done != self._flushed:
            error, self._error = error or self._error, 0
        return error

    def _meet(self, server: str) -> None:
        """Connected, to this image server: have it do again what another one did not flush, then what is pending."""
        self._met = server
        if server != self._server:
            self._to_redo = deque(self._unflushed)
        self._redo()

    def _redo(self) -> None:
        """One after the other, as they may overlap."""
        if self._to_redo:
            offset, length, data = self._to_redo.popleft()
            buffer = None if data is None else memoryview(bytearray(data))
            self._redoing = Request(ZERO if data is None else WRITE, offset, length, buffer, False, lambda _error: None)
            self._issue(self._redoing)
            return
        self._redoing = None
        self._server = self._met
        self._ready = True
        for request in list(self._pending):
            self._admit(request)

    def _lost(self) -> bool:
        return self._handle is None or bool(self._handle.aio_is_dead() or self._handle.aio_is_closed())

    # what the loop wants to know

    def fileno(self) -> int:
        if self._handle is None:
            return -1
        with contextlib.suppress(Exception):  # while it resolves it has none
            return int(self._handle.aio_get_fd())
        return -1

    def wants(self) -> int:
        direction = self._handle.aio_get_direction()
        return (select.POLLIN if direction & 1 else 0) | (select.POLLOUT if direction & 2 else 0)

    def due_ns(self) -> int | None:
        if self._finished:
            return 0
        if self._handle is None:
            return self._retry_ns
        connecting = not self._ready and self._redoing is None
        return self._begun_ns + STALL_NS if connecting and not self.fenced else None

    def on_time(self) -> None:
        """Time to tell what is done, or to try again."""
        if self._finished:
            self._settle()
            if self._handle is not None and self._lost():
                self._again()  # found out by sending: its socket, closed by now, tells nobody
        elif self._generation is not None:
            self._connect()

    def ready(self, events: int) -> None:
        """The socket is ready."""
        import nbd  # noqa: PLC0415 - as above

        handle = self._handle
        try:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and handle.aio_get_direction() & 1:
                handle.aio_notify_read()
            elif events & select.POLLOUT:
                handle.aio_notify_write()
            elif events & (select.POLLHUP | select.POLLERR):
                self._again()
                return
        except nbd.Error:
            pass  # what became of it shows below
        self._settle()
        if self._handle is handle:
            self._look()

    def _look(self) -> None:
        """What became of the connection."""
        handle = self._handle
        if self._lost():
            self._again()
        elif not self._ready and self._redoing is None and handle.aio_is_ready():
            self.size_bytes = int(handle.get_size())
            with socket.socket(fileno=os.dup(handle.aio_get_fd())) as sock:
                notice_silence(sock, SILENT_NS)
            self._meet(str(handle.get_export_description()))


def _shared(view: memoryview | None) -> Any:
    """libnbd's buffer over *view*; a copy of it where libnbd is too old to share (before 1.14)."""
    import nbd  # noqa: PLC0415 - as above

    assert view is not None
    if hasattr(nbd.Buffer, "from_buffer"):
        return nbd.Buffer.from_buffer(view)
    return nbd.Buffer.from_bytearray(bytearray(view))


def _copy_back(buffer: Any, view: memoryview | None) -> None:
    """What a read brought, from a buffer that is a copy."""
    import nbd  # noqa: PLC0415 - as above

    if view is not None and not hasattr(nbd.Buffer, "from_buffer"):
        view[:] = buffer.to_bytearray()
