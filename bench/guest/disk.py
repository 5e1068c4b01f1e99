"""The guest's disk driver: requests to the block layer of its hypervisor, and their completions.

The block layer (:mod:`bench.storage.block`) is a process of the hypervisor: it is started here before the guest moves
to a network namespace of its own, and dies with the guest's process. Data lies in a shared area of slots, which is the
device's and no guest memory: while no request is under way nothing in it matters, so nothing of it moves.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import DeadlineError, GuestError
from bench.guest.loop import Loop
from bench.host.channel import Channel, Message
from bench.host.forking import Forked, fork
from bench.storage import ring
from bench.storage.export import FLUSH, READ, WRITE

CALL_NS: Final = 20 * NS_PER_S
STOP_NS: Final = 2 * NS_PER_S

Done = Callable[[int], None]
"""Called with 0 or an errno."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One of the guest's disks.

    :param number: its place among them.
    :param server: the storage server that has it; for a local disk the one of the hypervisor.
    """

    number: int
    name: str
    kind: str
    server: str
    size_bytes: int

    @property
    def local(self) -> bool:
        return self.kind == "local"


class DiskDriver:
    """All disks of a guest. Not thread-safe.

    :param died: called when the block layer ends by itself.
    """

    def __init__(self, loop: Loop, died: Callable[[str], None]) -> None:
        self._loop = loop
        self._died = died
        self._area: mmap.mmap
        self._view: memoryview
        self._free = list(range(ring.SLOTS))
        self._sock: socket.socket
        self._channel: Channel | None = None
        self._process: Forked | None = None
        self._answers: dict[int, Message | None] = {}  # of commands that are waited for
        self._under_way: dict[int, tuple[int, Done]] = {}
        self._next_id = 0
        self._waiting: list[Callable[[], None]] = []

    def start(self, guest: str, holder: str, servers: Mapping[str, Sequence[Any]], disks: Sequence[Disk]) -> None:
        """Start the block layer in this process's network namespace. :raises BenchError: when it does not."""
        from bench.storage import block  # noqa: PLC0415 - libnbd is there for guests with disks only

        self._channel, theirs = Channel.pair("guest", "block layer")
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (mine, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * ring.PACKET_BYTES)
        area_fd = os.memfd_create("disks", os.MFD_CLOEXEC)
        try:
            os.ftruncate(area_fd, ring.AREA_BYTES)
            self._area = mmap.mmap(area_fd, ring.AREA_BYTES)
            self._view = memoryview(self._area)
            number = theirs.fileno()
            self._process = fork(block.main, ["--channel-fd", str(number)], pass_fds=[number])
            args = {
                "guest": guest,
                "holder": holder,
                "servers": {name: list(place) for name, place in servers.items()},
                "disks": [{"name": disk.name, "server": disk.server} for disk in disks],
            }
            self._channel.call("init", args, deadline=Deadline(CALL_NS), fds=[area_fd, other.fileno()])
        except OSError as error:
            raise GuestError(f"the block layer did not start: {error.strerror}") from error
        finally:
            os.close(area_fd)
            theirs.close()
            other.close()
        mine.setblocking(False)
        self._sock = mine
        self._loop.watch(mine.fileno(), select.EPOLLIN, lambda _events: self._completed())

    def command(self, name: str, args: Mapping[str, Any] | None = None, deadline: Deadline | None = None) -> Any:
        """A command of the block layer. :raises GuestError: when it fails."""
        return self.wait(self.begin(name, args), deadline or Deadline(CALL_NS))

    def begin(self, name: str, args: Mapping[str, Any] | None = None) -> int:
        """Send a command. :returns: what to :meth:`wait` for; other commands may come between."""
        posted = self.post(name, args)
        self._answers[posted] = None
        return posted

    def post(self, name: str, args: Mapping[str, Any] | None = None) -> int:
        """Send a command whose answer nobody wants."""
        if self._channel is None:
            raise GuestError("the guest has no disks")
        return self._channel.post(name, args)

    def forget(self, begun: int) -> None:
        """Nobody waits for this command any more."""
        self._answers.pop(begun, None)

    def wait(self, begun: int, deadline: Deadline) -> Any:
        """Until a command of :meth:`begin` is done. :returns: its answer. :raises GuestError: when it failed."""
        channel, answers = self._channel, self._answers
        try:
            while channel is not None and (message := answers[begun]) is None:
                message = channel.receive(deadline)
                if message.get("reply") in answers:
                    answers[message["reply"]] = message
        finally:
            answers.pop(begun, None)
        if channel is None or message is None:
            raise GuestError("the guest has no disks")
        if "error" in message:
            raise GuestError(f"{channel.peer}: {message['error']}")
        return message.get("value", {})

    # requests

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def slot(self) -> int | None:
        """A slot of the area, which is the caller's until :meth:`give_back`; None when there is none."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def when_free(self, call: Callable[[], None]) -> None:
        """Have *call* called once a slot is given back."""
        self._waiting.append(call)

    def data(self, slot: int) -> memoryview:
        """The slot's bytes."""
        return self._view[slot * ring.SLOT_BYTES : (slot + 1) * ring.SLOT_BYTES]

    def write(self, disk: int, slot: int, offset: int, length: int, done: Done, *, fua: bool = False) -> None:
        """Write the first *length* bytes of a slot; with *fua* it is done when it is on the disk."""
        self._submit((WRITE, ring.FUA if fua else 0, disk, slot, offset, length), done)

    def read(self, disk: int, slot: int, offset: int, length: int, done: Done) -> None:
        self._submit((READ, 0, disk, slot, offset, length), done)

    def flush(self, disk: int, done: Done) -> None:
        self._submit((FLUSH, 0, disk, 0, 0, 0), done)

    def _submit(self, fields: tuple[int, int, int, int, int, int], done: Done) -> None:
        self._next_id += 1
        self._under_way[self._next_id] = (fields[3], done)
        packet = ring.REQUEST.pack(self._next_id, *fields)
        try:
            self._sock.send(packet)
        except BlockingIOError:  # cannot be: the area has fewer slots than the socket has room for
            self._finish(self._next_id, 11)
        except OSError as error:
            self._finish(self._next_id, error.errno or 5)

    def _completed(self) -> None:
        try:
            packet = self._sock.recv(ring.PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._loop.unwatch(self._sock.fileno())
            self._died("the block layer ended by itself")
            return
        for ident, error in ring.unpack_completions(packet):
            self._finish(ident, error)

    def _finish(self, ident: int, error: int) -> None:
        found = self._under_way.pop(ident, None)
        if found is not None:
            found[1](error)

    def drain(self, deadline: Deadline, most: int = 0) -> None:
        """Wait until no more than *most* requests are under way. :raises DeadlineError: when that takes longer."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while len(self._under_way) > most:
            if not poll.poll(deadline.remaining_s * 1000) and deadline.expired:
                seconds = deadline.duration_ns / NS_PER_S
                raise DeadlineError(f"{len(self._under_way)} disk requests are not done within {seconds:g} s")
            self._completed()

    def stop(self) -> None:
        """End the block layer; what is under way is forgotten. Idempotent."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if hasattr(self, "_sock"):
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
        if self._channel is not None:
            self._channel.close()  # its end of file ends it
        try:
            process.wait(STOP_NS / NS_PER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
