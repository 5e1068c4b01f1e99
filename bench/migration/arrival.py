"""One migration as its destination sees it: the connection, the skeleton, its memory and state, the take-over.

Before the ownership point (:mod:`bench.migration.session`) whatever fails here ends the skeleton; after it, nothing
here does.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import select
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, MigrationError, WireError
from bench.guest import process as guest_process
from bench.guest.client import GuestControl, guest_arguments
from bench.host.channel import Channel, ChannelClosed
from bench.host.commands import Process
from bench.host.forking import fork
from bench.host.lease import Lease
from bench.memory.hashes import PageHashes
from bench.memory.image import GuestMemory
from bench.memory.own import own_memory
from bench.memory.populate import Populating
from bench.migration import storage, wire
from bench.migration.carriers import Reception
from bench.migration.compression import NONE, load_codec
from bench.migration.door import Door, Entrant
from bench.migration.engine import Reporter, RunnerGone, log, reason_of, want
from bench.migration.levers import MAX_STREAMS
from bench.migration.modes import MODES
from bench.migration.order import MAX_HOLD_NS
from bench.migration.pages import PageReceiver, new_hashes
from bench.migration.place import Place
from bench.migration.postcopy_arrival import JOIN_NS, PostCopyArrival
from bench.migration.streams_arrival import Lanes
from bench.migration.transport import Connection, PeerLost
from bench.migration.wire import Frame, Kind

MAX_MEMORY_BYTES: Final = 1 << 40
SILENCE_NS: Final = 120 * NS_PER_S  # between two frames; a dead link is noticed far sooner
GUEST_LISTENS_NS: Final = 20 * NS_PER_S
LOAD_NS: Final = 60 * NS_PER_S
POPULATE_NS: Final = NS_PER_S // 2
"""For what a processor clears in so short a time a fast link need not wait; a slow one has time for the rest."""
STOP_NS: Final = 2 * NS_PER_S
ROUND_KINDS: Final = (*wire.TRANSFERS, Kind.ROUND_END, Kind.FINAL)
POST_COPY_KINDS: Final = (Kind.ADVISE, Kind.MISSING, Kind.LISTEN)

T = TypeVar("T")


class PeerCancelled(Exception):
    """The source cancelled; ``str()`` says why."""


class Arrival:
    """See this module."""

    def __init__(self, place: Place, reception: Reception, channel: Channel, report: Reporter) -> None:
        self.place = place
        self.report = report
        self.outcome = "failed"
        self.reason = ""
        self._channel = channel
        self._door = reception.door
        self._reception = reception
        self._carried: list[Connection] = []
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._door.close)
        self._taken = False
        self._connections = 0
        self._verify = "off"
        self._announce: Mapping[str, Any] = {}
        self._process: Process | None = None
        self._guest: GuestControl
        self._memory: GuestMemory
        self._populating: Populating | None = None
        self._hashes: PageHashes | None = None
        self._new_hashes: Callable[[], PageHashes]
        self._connection: Connection
        self._decoder: wire.Decoder
        self._receiver: PageReceiver
        self._lanes: Lanes | None = None
        self._postcopy: PostCopyArrival | None = None

    def run(self) -> None:
        """Serve the migration; its outcome is in :attr:`outcome` and :attr:`reason`. Only the end of the runner
        is raised.
        """
        with self._stack:
            try:
                self._make_skeleton(self._accept())
                self._receive()
                self._take_over()
                self.outcome = "completed"
            except PeerCancelled as cancelled:
                self.outcome, self.reason = "cancelled", str(cancelled)
            except (BenchError, OSError) as error:
                self._failed(error)
            finally:
                if not self._taken:
                    self._remove_skeleton()

    # setup

    def _accept(self) -> Frame:
        """Wait for the source, or for the end of the runner. :returns: its HELLO."""
        while (entrant := self._door.wait(Deadline(SILENCE_NS), self._channel.fileno(), self._serve_channel)) is None:
            pass
        self._door.kinds = (Kind.JOIN,)
        self._connection = self.admit(entrant)
        self._connection.watch(self._channel.fileno(), self._serve_channel)
        self._connection.watch(self._door.fileno(), self._door.serve)
        self._decoder = wire.Decoder(self._connection, wire.TO_DESTINATION)
        self.report("accepted", peer=entrant.peer)
        return entrant.frame

    def _make_skeleton(self, hello: Frame) -> None:
        guest = want(hello.fields, "guest", dict, "HELLO")
        memory_bytes = want(guest, "memory_bytes", int, "HELLO: guest")
        if not 0 < memory_bytes <= MAX_MEMORY_BYTES or memory_bytes % wire.PAGE_BYTES:
            raise WireError(f"HELLO: a guest of {memory_bytes} bytes is not a number of pages up to 1 TiB")
        codec = load_codec(str(hello.fields.get("compression", NONE)))  # a library that is missing is said now
        if hello.fields.get("mode") not in MODES:
            raise MigrationError(f"the source migrates by a mode unknown here: {str(hello.fields.get('mode'))[:80]!r}")
        self._verify = str(hello.fields.get("verify", "off"))
        self._announce = want(hello.fields, "announce", dict, "HELLO")
        postcopy = hello.fields.get("postcopy", "never")
        streams = hello.fields.get("streams", 1)
        if type(streams) is not int or not 1 <= streams <= MAX_STREAMS:
            raise WireError(f"HELLO: {str(streams)[:80]} streams are not 1 to {MAX_STREAMS}")
        if postcopy == "never" and streams == 1:
            self._close_door()
        place = self.place
        self._process = process = _start_guest(place)  # before a thread populates its memory
        self._make_memory(memory_bytes, populate=postcopy != "at-once", huge=guest.get("huge_pages") is True)
        self._guest = GuestControl.connect(
            place.guest_socket,
            deadline=Deadline(GUEST_LISTENS_NS),
            alive=lambda: process.alive,
            peer="destination guest",
        )
        self._stack.callback(self._guest.close)
        config = {
            **guest,
            "host": place.host,
            "bridge": place.bridge,
            "vcpu_group": place.vcpu_group,
            "lease": {"path": place.lease_path, "me": place.host},
            "image": None,
            "skeleton": True,
            "populate": self._populating is not None,
        }
        self._guest.configure(config, memory_fd=self._memory.fd)
        self._new_hashes = functools.partial(new_hashes, self._memory.page_count, str(postcopy))
        self._hashes = self._new_hashes() if self._verify == "background" else None
        self._receiver = PageReceiver(self._connection, self._memory, self._hashes, codec)
        self._decoder.memory_pages = self._memory.page_count
        if self._populating is not None:
            self._populating.wait(POPULATE_NS)
        own_memory()
        self.report("skeleton_ready")
        self._connection.send(wire.encode_json(Kind.SKELETON, {"memory_bytes": memory_bytes}))
        if streams > 1:
            self._join_streams(streams, more=postcopy != "never")

    def _close_door(self) -> None:
        """All of the migration's connections are there: nobody else gets in."""
        self._connection.unwatch(self._door.fileno())
        self._door.close()

    def _join_streams(self, streams: int, *, more: bool) -> None:
        """The source's other connections join; rounds arrive over all of them.

        :param more: further connections may join later.
        """
        connections = [self._connection]
        deadline = Deadline(JOIN_NS)
        while len(connections) < streams:
            entrant = self._door.wait(deadline, self._channel.fileno(), self._serve_channel)
            if entrant is None:
                raise MigrationError(f"{len(connections)} of {streams} streams joined within {JOIN_NS / NS_PER_S:g} s")
            if entrant.frame.fields.get("role") == "stream":
                connections.append(self.admit(entrant))
            else:
                entrant.connection.close()
        watched = {self._channel.fileno(): self._serve_channel}
        if more:
            watched[self._door.fileno()] = self._door.serve
        else:
            self._close_door()  # a descriptor that is closed would be readable for ever
        self._lanes = Lanes(connections, self._receiver, watched, SILENCE_NS)
        self.report("streams_joined", streams=streams)

    def _make_memory(self, memory_bytes: int, *, populate: bool, huge: bool) -> None:
        """It is populated while processes start and for :data:`POPULATE_NS`; the rest while pages arrive."""
        self._memory = GuestMemory.create(memory_bytes, huge=huge)
        self._stack.callback(self._memory.close)
        if populate:
            self._populating = Populating(self._memory)
            self._stack.callback(self._populating.stop)

    # memory and device state

    def _receive(self) -> None:
        """Rounds until the final one has ended, and the device state; READY tells the source."""
        final = False
        loading: int | None = None
        while True:
            others = POST_COPY_KINDS if not final else (Kind.DEVICE,) if loading is None else ()
            frame = self._expect(*ROUND_KINDS, *others)
            if self._populating is not None:
                self._populating.check()
            if frame.kind in POST_COPY_KINDS:
                if self._prepare_post_copy(frame):
                    break
            elif frame.kind is Kind.FINAL:
                if final:
                    raise WireError("a second FINAL frame")
                final = True
                self._connection.hurry()
            elif frame.kind is Kind.DEVICE:  # it is loaded while the last pages arrive
                loading = self._begin_load(frame)
            elif frame.kind is Kind.ROUND_END:
                self._receiver.end_round(frame)
                if final:
                    break
            else:
                self._receiver.place(frame)
        self._lanes = None  # everything that follows comes over the first connection
        self.report("final_pages_received")
        if loading is None:
            loading = self._begin_load(self._expect(Kind.DEVICE))
        self._end_load(loading)
        ready: dict[str, Any] = {"connections": self._connections, "unpacking": self._receiver.unpacking.to_json()}
        if self._verify == "pause":
            ready["digest"] = self._digest()
        self._connection.send(wire.encode_json(Kind.READY, ready))

    def _prepare_post_copy(self, frame: Frame) -> bool:
        """:returns: True when the guest is paused and the missing pages are known."""
        if frame.kind is Kind.ADVISE:
            if self._postcopy is not None or self._door.fileno() < 0:
                raise WireError("an ADVISE frame where none is due")
            if self._populating is not None:
                self._populating.stop()  # a page that it touched from now on would be asked for
            self._postcopy = PostCopyArrival(self)
            self._postcopy.arm()
            return False
        if self._postcopy is None:
            raise WireError(f"{frame.kind.name} frame before ADVISE")
        if frame.kind is Kind.MISSING:
            self._postcopy.miss(frame)
            return False
        self._postcopy.listen(frame)
        return True

    def _begin_load(self, frame: Frame) -> int:
        """The device state: from the stream into a memfd, from there into the skeleton. :returns: the command to it."""
        size = frame.value
        fd = os.memfd_create("device-state", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            if size:
                with mmap.mmap(fd, size) as blob, memoryview(blob) as view:
                    self._connection.read_into(view)
            self.report("device_state_received", bytes=size)
            return self._guest.begin_load(fd)
        finally:
            os.close(fd)

    def _end_load(self, command: int) -> None:
        beside = _at_once if self._postcopy is None else self._postcopy.beside
        self._connections = beside(lambda: self._guest.loaded(command, Deadline(LOAD_NS)))
        self.report("device_state_loaded", connections=self._connections)

    def _digest(self) -> str:
        if self._hashes is None:
            self._hashes = self._new_hashes()
            self._hashes.update_range(self._memory.words)
        return self._hashes.digest()

    # ownership

    def _take_over(self) -> None:
        handover = self._expect(Kind.HANDOVER)
        owner = want(handover.fields, "owner", str, "HANDOVER")
        generation = want(handover.fields, "generation", int, "HANDOVER")
        first = _at_once if self._postcopy is None else self._postcopy.beside
        first(lambda: storage.acquire(self.report, self._guest, handover.fields.get("storage")))
        self._hold(handover.fields.get("hold_ns", 0))
        beside = _at_once if self._postcopy is None else self._postcopy.take_beside
        taken = beside(lambda: self._guest.take(self._announce, owner, generation))
        if not taken.taken:
            reason = f"the lease belongs to {taken.owner!r} in another generation"
            self._connection.send(wire.encode_json(Kind.REFUSED, {"reason": reason}))
            raise MigrationError(f"take-over refused: {reason}")
        self._taken = True
        self.report("ownership_taken", taken.ownership_ns)
        self.report("resumed", taken.resumed_ns)
        if taken.port_wired_ns:  # 0: it will be wired late
            self.report("port_wired", taken.port_wired_ns)
        if self._postcopy is not None:
            self._postcopy.run(taken.resumed_ns)
            return
        try:
            self._connection.send(wire.encode_json(Kind.TAKEN, {"resumed_ns": taken.resumed_ns}))
            if self._verify == "background":
                self._connection.send(wire.encode_json(Kind.DIGEST, {"digest": self._digest()}))
        except MigrationError as error:  # the guest runs here all the same; the source learns it from the lease
            self.reason = f"the source could not be told: {reason_of(error)}"

    def _hold(self, hold_ns: object) -> None:
        """The stop, stretched: everything is here, and the guest stands still for so much longer.

        :raises MigrationError: the source went meanwhile, or did not wait.
        """
        if not isinstance(hold_ns, int) or not 0 <= hold_ns <= MAX_HOLD_NS:
            raise WireError(f"HANDOVER: a hold of {str(hold_ns)[:32]} ns")
        if not hold_ns:
            return
        self.report("held", for_ns=hold_ns)
        deadline = Deadline(hold_ns)
        try:
            self._connection.wait(select.POLLIN, deadline, "the hold before the resume")
        except PeerLost:
            if deadline.expired:
                return
            raise
        raise MigrationError("the source did not wait while the guest was held")

    # what post-copy uses

    @property
    def door(self) -> Door:
        return self._door

    def admit(self, entrant: Entrant) -> Connection:
        """Its connection, closed with this."""
        self._stack.callback(entrant.connection.close)
        self._carried.append(entrant.connection)
        return entrant.connection

    def cost(self) -> dict[str, int]:
        """What the carrier took at this side: cpu_ns, and refused, the number of strangers."""
        cpu_ns = sum(connection.cost().get("cpu_ns", 0) for connection in self._carried)
        return {"cpu_ns": cpu_ns + self._reception.cost().get("cpu_ns", 0), "refused": self._door.refused}

    @property
    def stack(self) -> contextlib.ExitStack:
        return self._stack

    @property
    def connection(self) -> Connection:
        return self._connection

    def use_connection(self, connection: Connection) -> None:
        """Go on over another one."""
        self._connection = connection

    @property
    def guest(self) -> GuestControl:
        return self._guest

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    @property
    def hashes(self) -> PageHashes | None:
        return self._hashes

    @property
    def channel_fd(self) -> int:
        return self._channel.fileno()

    def serve_channel(self) -> None:
        """The runner's channel is readable. :raises RunnerGone: when it has ended."""
        self._serve_channel()

    # ends

    def _failed(self, error: Exception) -> None:
        self.reason = reason_of(error)
        log(f"failed: {self.reason}")
        if hasattr(self, "_connection"):
            with contextlib.suppress(BenchError, OSError):
                self._connection.give_up = Deadline(NS_PER_S)
                self._connection.send(wire.encode_json(Kind.ERROR, {"reason": self.reason}))

    def _remove_skeleton(self) -> None:
        """End the skeleton, unless it runs the guest: a ``take`` whose answer was lost may have succeeded."""
        if hasattr(self, "_guest"):
            self._guest.close()  # its dead man's switch: a skeleton dies of this, a running guest does not
        if self._process is None:
            return
        with contextlib.suppress(BenchError):
            self._process.wait(Deadline(STOP_NS))
            return
        if not self._may_run():
            self._process.stop(Deadline(STOP_NS))

    def _may_run(self) -> bool:
        """Whether the lease says that the guest runs here."""
        try:
            return Lease(self.place.lease_path).read().owner == self.place.host
        except BenchError:
            return True  # better a guest too many to look at than none at all

    def _expect(self, *kinds: Kind) -> Frame:
        """The next frame. :raises PeerCancelled, MigrationError: when the source gave up; WireError: other kinds."""
        if self._lanes is not None:
            frame = self._lanes.next()
        else:
            self._connection.wait(select.POLLIN, Deadline(SILENCE_NS), "the source engine")
            frame = self._decoder.next()
        if frame.kind is Kind.CANCEL:
            raise PeerCancelled(str(frame.fields.get("reason", ""))[:1000])
        if frame.kind is Kind.ERROR:
            raise MigrationError(f"the source failed: {str(frame.fields.get('reason', ''))[:1000]}")
        if frame.kind not in kinds:
            raise WireError(f"{frame.kind.name} frame where {' or '.join(kind.name for kind in kinds)} was due")
        return frame

    def _serve_channel(self) -> None:
        try:
            for message in self._channel.receive_ready():
                self._channel.send_error(int(message.get("id", 0)), "this engine serves one migration")
        except ChannelClosed as error:
            raise RunnerGone from error


def _start_guest(place: Place) -> Process:
    arguments = guest_arguments(place.guest_socket, place.guest_events, place.guest_log)
    log_path = Path(place.guest_log)
    with log_path.open("ab", buffering=0) as output:
        child = fork(
            guest_process.main, arguments, output=output.fileno(), start_new_session=True, dies_with_parent=True
        )
    return Process(child, f"guest at {place.host}", log_path)


def _at_once(work: Callable[[], T]) -> T:
    return work()
