"""The client of a guest process' control socket: what engines and the runner use to command a guest.

Lean on purpose (the standard library and the channel only): migration engines import it. The commands and their order
are those of :mod:`bench.guest.process`. Not thread-safe: one :class:`GuestControl`, one thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import GuestError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.timeline import Event

CALL_NS = 10 * NS_PER_S
FILL_NS = 120 * NS_PER_S  # configuring fills or populates all memory


def guest_command(socket_path: Path | str, events: Path | str, log: Path | str) -> list[str]:
    """The argument list that starts a guest process; run it in the hypervisor's network namespace."""
    return [sys.executable, "-m", "bench.guest.process", *guest_arguments(socket_path, events, log)]


def guest_arguments(socket_path: Path | str, events: Path | str, log: Path | str) -> list[str]:
    """Those of :func:`bench.guest.process.main`."""
    return ["--socket", str(socket_path), "--events", str(events), "--log", str(log)]


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes guest memory: *base* is where it maps the whole memory (page 0), of which it writes pages
    from *first_page* on only.
    """

    pid: int
    base: int
    first_page: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """As :data:`bench.memory.tracker.Writer`."""
        return self.pid, self.base, self.first_page


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """All guest memory. *fd* is the memfd; the receiver owns it."""

    size_bytes: int
    writers: tuple[Writer, ...]
    fd: int


@dataclass(frozen=True, slots=True)
class Paused:
    """A paused guest's device state.

    :param fd: memfd with the device-state blob, offset 0; the receiver owns it.
    :param device_bytes: its length.
    :param connections: TCP connections in it.
    :param generation: the lease's generation at the pause: what ``take`` must expect.
    :param owner: the lease's owner at the pause.
    :param times: ``pause_begin_ns, vcpus_stopped_ns, net_cut_ns, dumped_ns`` (CLOCK_MONOTONIC).
    :param embryonic: connections half way through their handshake, which cannot move (0 when the door was closed for a
        round trip of each client).
    """

    fd: int
    device_bytes: int
    connections: int
    owner: str
    generation: int
    times: Mapping[str, int]
    embryonic: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to ``take``: *taken* says whether this guest runs now. Times are CLOCK_MONOTONIC, 0 if not reached."""

    taken: bool
    owner: str
    ownership_ns: int
    resumed_ns: int
    port_wired_ns: int
    announce_ns: int


class Pausing:
    """A guest that is being paused: first its memory stands still, then its device state is taken.

    What :meth:`GuestControl.pause` says of the dead man's switch holds from the beginning.
    """

    def __init__(self, control: GuestControl, deadline: Deadline) -> None:
        self._control = control
        self._deadline = deadline
        self._command = control.channel.post("pause")
        self._answer: Message | None = None

    def still(self) -> Mapping[str, int]:
        """Wait until nothing writes the guest's memory any more.

        :returns: of :attr:`Paused.times` what has happened so far, ``net_cut_ns`` included.
        :raises GuestError: the pause failed, and the guest runs on.
        """
        channel = self._control.channel
        said = channel.event_or_answer(self._command, "pause", self._deadline)
        if isinstance(said, Event):
            return times_of(said.data, channel.peer)
        self._answer = said
        return times_of(said, channel.peer)

    def done_within(self, duration_ns: int) -> bool:
        """Whether :meth:`finish` has nothing to wait for, now or before so much time has passed."""
        channel = self._control.channel
        return bool(
            self._answer is not None
            or channel.pending()
            or select.select([channel.sock], [], [], duration_ns / NS_PER_S)[0]
        )

    def finish(self) -> Paused:
        """Wait until the device state is taken. Errors as :meth:`still`."""
        channel = self._control.channel
        if self._answer is None:
            self._answer = channel.answer(self._command, "pause", deadline=self._deadline)
        return self._control.paused(self._answer)


class GuestControl:
    """One connection to a guest's control socket. Closing it may trip the guest's dead man's switch: see ``pause``.

    Every call raises :class:`GuestError` when the guest refuses or answers nonsense, :class:`ChannelClosed` when it is
    gone and :class:`bench.errors.DeadlineError` when it does not answer in time.
    """

    def __init__(self, sock: socket.socket, peer: str = "guest") -> None:
        self.channel = Channel(sock, peer)

    @classmethod
    def connect(
        cls,
        path: Path | str,
        *,
        deadline: Deadline | None = None,
        alive: Callable[[], bool] | None = None,
        peer: str = "guest",
    ) -> GuestControl:
        """Connect, waiting for a process that has only just been started to listen.

        :param alive: asked at each try; when it says False the guest is not waited for any longer.
        :raises GuestError: when the process died first.
        :raises DeadlineError: when nothing listens in time.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

        def connected() -> bool:
            try:
                sock.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                if alive is not None and not alive():
                    raise GuestError(f"{peer}: the process ended before it listened on {path}") from None
                return False
            return True

        try:
            wait_until(connected, deadline or Deadline(CALL_NS), f"{peer} listening on {path}")
        except BaseException:
            sock.close()
            raise
        return cls(sock, peer)

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> GuestControl:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # life

    def configure(
        self, config: Mapping[str, Any], deadline: Deadline | None = None, memory_fd: int | None = None
    ) -> int:
        """Give the guest its configuration: memory is filled (unless it is a ``skeleton``), its port exists, cut.

        :param memory_fd: a memfd that becomes its memory (it stays the caller's as well); None: it makes one.
        :returns: the pid of the guest process.
        """
        fds = () if memory_fd is None else (memory_fd,)
        return self._integer(self._call("configure", config, deadline or Deadline(FILL_NS), fds), "pid")

    def start(self, announce: Mapping[str, Any] | None = None, deadline: Deadline | None = None) -> None:
        """Boot: claim the lease, run vCPUs and services, wire the port, and announce if told how."""
        self._call("start", {"announce": announce} if announce else {}, deadline)

    def quit(self, deadline: Deadline | None = None) -> None:
        """Tell the guest to die silently and wait until its processes are gone. A guest already gone is fine."""
        deadline = deadline or Deadline(CALL_NS)
        try:
            self._call("quit", {}, deadline)
        except ChannelClosed:
            return
        self.wait_gone(deadline)

    def wait_gone(self, deadline: Deadline) -> None:
        """Wait until the guest process has ended: the kernel closes its end only after its memory was unmapped.

        :raises DeadlineError: when it lives on.
        """
        with contextlib.suppress(ChannelClosed):
            while True:
                self.channel.receive(deadline)

    def stats(self, deadline: Deadline | None = None, *, check: bool = False, quiet: bool = False) -> Message:
        """``{state, pages_written, connections, embryonic, datagrams, services, vcpus, self_check_errors, disks}``.

        :param check: verify what the vCPUs wrote to memory; the guest stands still for some 0.1 s meanwhile. Without
            it ``self_check_errors`` is 0.
        :param quiet: end the disk workload, and wait until everything that was acknowledged is on its disk.
        """
        return self._call("stats", {"check": check, "quiet": quiet}, deadline)

    def disks(self, what: str, deadline: Deadline | None = None, **args: Any) -> Message:
        """An order to the guest's disks, see :mod:`bench.guest.disk_commands`."""
        return self._call("disks", {"do": what, **args}, deadline)

    def flows(self, what: str, deadline: Deadline | None = None, **args: Any) -> Message:
        """The flows that the guest itself runs: ``start`` (with ``flows``), ``stop``, or just look.

        :returns: ``{flows: [report], kernel}``, see :meth:`bench.guest.clients.outbound.Outbound.report`.
        """
        return self._call("flows", {"do": what, **args}, deadline)

    def set_least_timeout(self, remote: tuple[str, int], least_us: int, deadline: Deadline | None = None) -> bool:
        """The least retransmission timeout of the guest's end of one connection. :returns: False: it has none such."""
        return bool(self._call("least_timeout", {"remote": list(remote), "least_us": least_us}, deadline).get("found"))

    # pre-copy

    def memory(self, deadline: Deadline | None = None) -> GuestMemory:
        value = self._call("memory", {}, deadline)
        size_bytes, writers = self._integer(value, "bytes"), self._writers(value)
        return GuestMemory(size_bytes, writers, self._descriptor("memory"))  # last: nobody else would close it

    def track(self, enable: bool, method: str, deadline: Deadline | None = None) -> tuple[Writer, ...]:
        """Switch dirty tracking in every writing process; it goes off by itself when this connection closes.

        :param method: ``pagemap-scan`` or ``soft-dirty``.
        """
        return self._writers(self._call("track", {"enable": enable, "method": method}, deadline))

    def close_door(self, deadline: Deadline | None = None) -> int:
        """Drop new SYNs, so that handshakes under way finish; at least one round trip before ``pause``.

        The door opens by itself when this connection closes.

        :returns: how many handshakes are under way.
        """
        return self._integer(self._call("close_door", {}, deadline), "embryonic")

    def open_door(self, deadline: Deadline | None = None) -> None:
        self._call("open_door", {}, deadline)

    # post-copy

    def expect_pages(self, deadline: Deadline | None = None) -> list[tuple[int, int]]:
        """Have a skeleton's processes wait for pages that are not there. Ends with the guest's death when the process
        that started the guest dies before :meth:`end_expecting`.

        :returns: userfaultfd and address of all memory for each; the descriptors are the caller's.
        """
        value = self._call("expect_pages", {"enable": True}, deadline)
        writers = self._writers(value)
        return [(fd, writer.base) for fd, writer in zip(self.channel.take_fds(len(writers)), writers, strict=True)]

    def end_expecting(self, deadline: Deadline | None = None) -> None:
        """Every page is there."""
        self._call("expect_pages", {"enable": False}, deadline)

    def throttle(self, share_ppm: int, cgroup: str = "", deadline: Deadline | None = None) -> str:
        """Leave each vCPU so many millionths of a processor; 1,000,000 ends it, and so do ``pause`` and the end of this
        connection.

        :param cgroup: a control group that groups with a quota can be made in; empty for none.
        :returns: how it is done: ``cgroup-v2``, ``cgroup-v1`` or ``loop``; empty when it never was.
        """
        return str(self._call("throttle", {"share_ppm": share_ppm, "cgroup": cgroup}, deadline).get("mechanism", ""))

    def cap_writes(self, writes_per_s: int, deadline: Deadline | None = None) -> int:
        """Let each vCPU write pages no more often than that; 0 ends it, and so does what ends ``throttle``.

        :returns: the writes that all vCPUs have done so far.
        """
        return self._integer(self._call("cap_writes", {"writes_per_s": writes_per_s}, deadline), "writes")

    # switchover

    def pause(self, deadline: Deadline | None = None) -> Paused:
        """Stop the guest, cut its network and take its device state.

        From here on a dead man's switch is armed: when this connection closes before ``resume`` or ``quit``, the guest
        reclaims the lease and goes on, or dies when it belongs to another.
        """
        return self.begin_pause(deadline).finish()

    def begin_pause(self, deadline: Deadline | None = None) -> Pausing:
        """As :meth:`pause`, in steps. No other call before its :meth:`Pausing.finish`, but for ``resume``."""
        return Pausing(self, deadline or Deadline(CALL_NS))

    def paused(self, value: Message) -> Paused:
        """The answer to ``pause``."""
        times = times_of(value, self.channel.peer)
        return Paused(
            device_bytes=self._integer(value, "device_bytes"),
            connections=self._integer(value, "connections"),
            owner=str(value.get("owner", "")),
            generation=self._integer(value, "generation"),
            times=times,
            embryonic=self._integer(value, "embryonic"),
            fd=self._descriptor("pause"),  # last: nobody else would close it
        )

    def resume(self, deadline: Deadline | None = None) -> tuple[bool, str]:
        """Roll back at the source. :returns: whether the guest runs here again, and who owns the lease."""
        value = self._call("resume", {}, deadline)
        return value.get("resumed") is True, str(value.get("owner", ""))

    def load(self, fd: int, deadline: Deadline | None = None) -> int:
        """Give a skeleton the device state (a descriptor of the blob; it stays the caller's).

        Each page must have been there once; what it holds may still change, up to :meth:`take`.

        :returns: the number of connections restored.
        """
        return self.loaded(self.begin_load(fd), deadline)

    def begin_load(self, fd: int) -> int:
        """As :meth:`load`, without waiting. :returns: what :meth:`loaded` needs; no other call before that."""
        return self.channel.post("load", {}, (fd,))

    def loaded(self, command: int, deadline: Deadline | None = None) -> int:
        """Wait until the device state is loaded. :returns: the number of connections restored."""
        answer = self.channel.answer(command, "load", deadline=deadline or Deadline(CALL_NS))
        return self._integer(answer, "connections")

    def take(
        self,
        announce: Mapping[str, Any] | None,
        expect_owner: str,
        expect_generation: int | None = None,
        deadline: Deadline | None = None,
    ) -> Taken:
        """Claim the lease and, if that succeeds, run: THE point at which ownership passes.

        :param announce: ``{"frames": [{"kind": "rarp", "hex": "…"}], "offsets_ns": [0, …]}`` or None.
        :param expect_generation: :attr:`Paused.generation`; None for the one that the device state carries.
        """
        expect = {"owner": expect_owner, "generation": expect_generation}
        value = self._call("take", {"announce": announce, "expect": expect}, deadline)
        stamps = [self._integer(value, key) for key in ("ownership_ns", "resumed_ns", "port_wired_ns", "announce_ns")]
        return Taken(value.get("taken") is True, str(value.get("owner", "")), *stamps)

    # plumbing

    def _call(
        self, command: str, args: Mapping[str, Any], deadline: Deadline | None, fds: Sequence[int] = ()
    ) -> Message:
        return self.channel.call(command, args, deadline=deadline or Deadline(CALL_NS), fds=fds)

    def _descriptor(self, command: str) -> int:
        if len(self.channel.fds) != 1:
            raise GuestError(f"{self.channel.peer}: {command}: {len(self.channel.fds)} descriptors came instead of one")
        return self.channel.take_fds(1)[0]

    def _integer(self, value: Message, key: str) -> int:
        number = value.get(key)
        if not isinstance(number, int):
            raise GuestError(f"{self.channel.peer}: the answer has no number {key!r}")
        return number

    def _writers(self, value: Message) -> tuple[Writer, ...]:
        raw = value.get("writers")
        try:
            items = cast("list[dict[str, Any]]", raw)
            return tuple(Writer(int(item["pid"]), int(item["base"]), int(item.get("first_page", 0))) for item in items)
        except (TypeError, KeyError, ValueError) as error:
            raise GuestError(f"{self.channel.peer}: the answer has no writers") from error


def times_of(value: Mapping[str, Any], peer: str) -> Mapping[str, int]:
    """The times in what a guest says of a pause. :raises GuestError: there are none."""
    times = value.get("times")
    if not isinstance(times, dict) or not all(isinstance(stamp, int) for stamp in times.values()):
        raise GuestError(f"{peer}: pause: no times in the answer")
    return times
