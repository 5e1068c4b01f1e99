"""The fence: an NBD server in front of the image servers that passes on only requests whose sender may have them done.

Every connection names its holder, generation and incarnation (:class:`bench.storage.nbd_wire.ExportName`). One thread
decides: a request is read whole, then, in one step without a wait, looked up in the grant and passed on or refused
(EPERM). So there is one instant at which a generation ends: whatever of it comes later, from a source that was paused
or cut off, is refused here, whatever its sender believes. What had been passed on before is waited for until the image
server has answered, before anybody is told of the new generation.

An export's description names the image server behind it, so that a client knows when that is another one than before,
and what it did not flush may be lost (:mod:`bench.storage.unflushed`).

A connection of a higher incarnation ends those of the same disk and generation before it, and waits for what they had
passed on: a request that is sent again over a new connection cannot be overtaken by its first copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, now_ns
from bench.errors import StorageError
from bench.host.kernel import start_ticks
from bench.storage import nbd_wire as nbd
from bench.storage.grant import Grant, GrantFile

BUFFER_BYTES: Final = nbd.MAX_PAYLOAD_BYTES
HANDSHAKE_S: Final = 10.0
_SO_SNDBUFFORCE: Final = 32
_CREDENTIALS: Final = struct.Struct("3i")
MAX_IN_FLIGHT: Final = 256  # of one connection
READ_AHEAD_BYTES: Final = (
    16 << 20
)  # asyncio reads up to twice that: more than a block layer ever has under way, so that
# a slow disk never closes the window of its connection, which would be taken for silence

Notify = Callable[..., object]
"""Called as an :class:`bench.timeline.EventWriter`."""


class Limit:
    """The server's own rate limit, for reads and writes of all disks together.

    :param rate_bytes_per_s: 0 for none.
    """

    def __init__(self, rate_bytes_per_s: int) -> None:
        self._rate = rate_bytes_per_s
        self._free_ns = 0

    async def take(self, count: int) -> None:
        """Wait until *count* more bytes may pass."""
        if not self._rate or not count:
            return
        begin_ns = max(now_ns(), self._free_ns)
        self._free_ns = begin_ns + count * NS_PER_S // self._rate
        wait_ns = self._free_ns - now_ns()
        if wait_ns > 0:
            await asyncio.sleep(wait_ns / NS_PER_S)


@dataclass(eq=False)
class Link:
    """One connection of a hypervisor, and the one to the image server behind it."""

    name: nbd.ExportName
    front: asyncio.StreamWriter
    back: asyncio.StreamWriter
    in_flight: dict[int, nbd.Request] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def changes_in_flight(self) -> bool:
        return any(request.kind != nbd.READ for request in self.in_flight.values())

    async def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def close(self) -> None:
        self.front.close()


@dataclass
class Counters:
    """What a guest's grant saw."""

    refused_writes: int = 0
    refused_reads: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    flushes: int = 0


class Fence:
    """:param backends: (guest, disk) -> the Unix socket of its image server.

    :param directory: the grants' files.
    :param notify: told of storage_released, storage_fenced, storage_first_write and storage_refused.
    """

    def __init__(
        self,
        backends: Mapping[tuple[str, str], Path],
        directory: Path,
        notify: Notify,
        rate_bytes_per_s: int = 0,
    ) -> None:
        self._backends = dict(backends)
        self._notify = notify
        self._limit = Limit(rate_bytes_per_s)
        self._files = {guest: GrantFile(directory / f"{guest}.grant") for guest, _disk in self._backends}
        self.grants: dict[str, Grant] = {guest: file.load(guest) for guest, file in self._files.items()}
        self.counters = {guest: Counters() for guest in self.grants}
        self._links: dict[Link, None] = {}
        self._incarnations: dict[tuple[str, str, str, int], int] = {}
        self._settling: set[str] = set()
        self._unwritten: set[str] = set()  # guests whose present generation has not written yet
        self._refusing: set[tuple[str, int]] = set()

    # who may write

    async def change(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one OPT_GRANT: ``{"do": "status"|"release"|"raise", "guest", "holder", "generation",
        "at_least"}``.

        :raises StorageError: when it is refused; nothing has changed then.
        """
        what, guest = order.get("do"), order.get("guest")
        if not isinstance(guest, str) or guest not in self.grants:
            raise StorageError(f"no guest {str(guest)[:40]!r} has disks here")
        grant = self.grants[guest]
        if what != "status":
            holder, generation = order.get("holder"), order.get("generation")
            if not isinstance(holder, str) or not isinstance(generation, int):
                raise StorageError("a grant order without holder or generation")
            fresh = dataclasses.replace(grant)
            if what == "release":
                fresh.release(holder, generation)
            elif what == "raise":
                at_least = order.get("at_least", 0)
                fresh.raise_to(holder, generation, at_least if isinstance(at_least, int) else 0)
            else:
                raise StorageError(f"unknown grant order {str(what)[:40]!r}")
            self._files[guest].save(fresh)
            self.grants[guest] = grant = fresh  # this is the instant
            at_ns = now_ns()
            if what == "raise":
                self._unwritten.add(guest)
                self._notify("storage_fenced", at_ns, guest=guest, holder=holder, generation=fresh.generation)
            else:
                self._notify("storage_released", at_ns, guest=guest, holder=holder, generation=generation)
            await self._settle(guest)
        return grant.to_json()

    async def _settle(self, guest: str) -> None:
        """Wait until no change that was passed on before may still happen."""
        self._settling.add(guest)
        try:
            for link in [link for link in self._links if link.name.guest == guest]:
                await link.wait(lambda link=link: not link.changes_in_flight)  # type: ignore[misc]
        finally:
            self._settling.discard(guest)

    def _may(self, name: nbd.ExportName, request: nbd.Request) -> bool:
        if name.guest not in self._settling and self.grants[name.guest].serves(name.holder, name.generation):
            key = (name.guest, name.disk, name.holder, name.generation)
            if self._incarnations.get(key) == name.incarnation:
                return True
        counters = self.counters[name.guest]
        if request.kind in nbd.CHANGES:
            counters.refused_writes += 1
        else:
            counters.refused_reads += 1
        if (name.guest, name.generation) not in self._refusing:  # once for each, not for every request
            self._refusing.add((name.guest, name.generation))
            self._notify("storage_refused", guest=name.guest, holder=name.holder, generation=name.generation)
        return False

    # connections

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from the greeting to its end."""
        try:
            name = await self._handshake(reader, writer)
            if name is not None:
                await self._transmit(name, reader, writer)
        except (OSError, EOFError, asyncio.TimeoutError, StorageError):
            pass  # whoever is at the other end finds out by the end of the connection
        finally:
            writer.close()

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> nbd.ExportName | None:
        """:returns: the export that the client went for; None when it only wanted to talk."""
        writer.write(nbd.greeting())
        await asyncio.wait_for(reader.readexactly(nbd.CLIENT_FLAGS.size), HANDSHAKE_S)
        while True:
            magic, number, length = nbd.OPTION.unpack(await reader.readexactly(nbd.OPTION.size))
            if magic != nbd.OPTION_MAGIC or length > nbd.MAX_OPTION_BYTES:
                return None
            data = await reader.readexactly(length)
            if number == nbd.OPT_ABORT:
                return None
            if number == nbd.OPT_GRANT:
                try:
                    value = await self.change(nbd.unpack_object(data))
                except StorageError as error:
                    value = {"error": error.message}
                writer.write(nbd.answer(number, nbd.REP_GRANT, nbd.pack_object(value)))
            elif number in (nbd.OPT_GO, nbd.OPT_INFO):
                try:
                    name = self._known(nbd.export_name_of(data))
                except StorageError as error:
                    writer.write(nbd.answer(number, nbd.REP_ERR_UNKNOWN, error.message.encode()))
                    continue
                if number == nbd.OPT_GO:
                    await self._replace(name)
                    return name
                writer.write(nbd.answer(number, nbd.REP_ERR_UNSUP))
            elif number == nbd.OPT_EXPORT_NAME:
                return None  # cannot be refused in any other way
            else:
                writer.write(nbd.answer(number, nbd.REP_ERR_UNSUP))

    def _known(self, text: str) -> nbd.ExportName:
        name = nbd.ExportName.parse(text)
        if (name.guest, name.disk) not in self._backends:
            raise StorageError(f"guest {name.guest} has no disk {name.disk} here")
        return name

    async def _replace(self, name: nbd.ExportName) -> None:
        """End the connections that *name* takes the place of. :raises StorageError: when it comes too late itself."""
        key = (name.guest, name.disk, name.holder, name.generation)
        if name.incarnation <= self._incarnations.get(key, -1):
            raise StorageError(f"{name}: a later connection is there already")
        self._incarnations[key] = name.incarnation
        former = [link for link in self._links if (link.name.guest, link.name.disk, link.name.holder) == key[:3]]
        for link in former:
            if link.name.generation == name.generation:
                link.close()
                await link.wait(lambda link=link: not link.changes_in_flight)  # type: ignore[misc]

    async def _transmit(self, name: nbd.ExportName, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = self._backends[name.guest, name.disk]
        back_reader, back_writer = await asyncio.open_unix_connection(str(path), limit=BUFFER_BYTES)
        with contextlib.suppress(OSError):  # a whole request at once, rather than in pieces
            back_writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        link = Link(name, writer, back_writer)
        try:
            size_bytes, flags = await asyncio.wait_for(_go(back_reader, back_writer), HANDSHAKE_S)
            info = nbd.answer(nbd.OPT_GO, nbd.REP_INFO, nbd.export_info(size_bytes, flags))
            about = nbd.answer(nbd.OPT_GO, nbd.REP_INFO, nbd.description_info(_server_of(back_writer)))
            writer.write(info + about + nbd.answer(nbd.OPT_GO, nbd.REP_ACK))
            self._links[link] = None
            replies = asyncio.ensure_future(self._pass_replies(link, back_reader))
            try:
                await self._pass_requests(link, reader)
            finally:
                await self._finish(link, replies)
        finally:
            self._links.pop(link, None)
            back_writer.close()

    async def _finish(self, link: Link, replies: asyncio.Future[None]) -> None:
        """Nothing more will be passed on; what was is waited for, until the image server answered or died."""
        waiting = asyncio.ensure_future(link.wait(lambda: not link.in_flight))
        try:
            await asyncio.wait({replies, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            replies.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, EOFError):
                await replies
            link.in_flight.clear()
            link.changed.set()

    async def _pass_requests(self, link: Link, reader: asyncio.StreamReader) -> None:
        while True:
            head = await reader.readexactly(nbd.REQUEST.size)
            request = nbd.Request.unpack(head)
            if request.kind == nbd.DISCONNECT:
                return
            data = await reader.readexactly(request.payload_bytes)
            if request.handle in link.in_flight:
                raise StorageError("NBD: a handle that is in use")
            await link.wait(lambda: len(link.in_flight) < MAX_IN_FLIGHT)
            await self._limit.take(request.length if request.kind in (nbd.READ, nbd.WRITE) else 0)
            # From here to the end of the writes below nothing waits: the decision holds when the request leaves.
            if not self._may(link.name, request):
                link.front.write(nbd.reply(request.handle, nbd.EPERM))
                continue
            link.in_flight[request.handle] = request
            link.back.write(head)
            if data:
                link.back.write(data)
            await link.back.drain()

    async def _pass_replies(self, link: Link, back_reader: asyncio.StreamReader) -> None:
        name, front = link.name, link.front
        counters = self.counters[name.guest]
        try:
            while True:
                head = await back_reader.readexactly(nbd.REPLY.size)
                magic, error, handle = nbd.REPLY.unpack(head)
                request = link.in_flight.get(handle)
                if magic != nbd.REPLY_MAGIC or request is None:
                    raise StorageError("NBD: the image server sent no reply")
                data = b"" if error else await back_reader.readexactly(request.answer_bytes)
                del link.in_flight[handle]
                link.changed.set()
                if not error:
                    self._count(name, request, counters)
                if not front.is_closing():
                    front.write(head)
                    if data:
                        front.write(data)
                    with contextlib.suppress(OSError):
                        await front.drain()
        finally:
            front.close()  # ends _pass_requests too
            link.changed.set()

    def _count(self, name: nbd.ExportName, request: nbd.Request, counters: Counters) -> None:
        if request.kind == nbd.READ:
            counters.read_bytes += request.length
        elif request.kind == nbd.FLUSH:
            counters.flushes += 1
        elif request.kind in nbd.CHANGES:
            counters.written_bytes += request.length
            if name.guest in self._unwritten and name.generation == self.grants[name.guest].generation:
                self._unwritten.discard(name.guest)
                self._notify("storage_first_write", guest=name.guest, holder=name.holder, generation=name.generation)


def _server_of(writer: asyncio.StreamWriter) -> str:
    """Which process is at the other end of a Unix connection, for good: unix(7), SO_PEERCRED."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _uid, _gid = _CREDENTIALS.unpack(raw)
    return f"image server {pid}, started at tick {start_ticks(pid)}"


async def _go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Enter an image server's only export. :returns: its size in bytes and its transmission flags."""
    magic, option_magic, _flags = nbd.GREETING.unpack(await reader.readexactly(nbd.GREETING.size))
    if (magic, option_magic) != (nbd.MAGIC, nbd.OPTION_MAGIC):
        raise StorageError("NBD: the image server does not greet")
    writer.write(nbd.CLIENT_FLAGS.pack(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES) + nbd.option(nbd.OPT_EXPORT_NAME, b""))
    size_bytes, flags = nbd.EXPORT.unpack(await reader.readexactly(nbd.EXPORT.size))
    return int(size_bytes), int(flags)
