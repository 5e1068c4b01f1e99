"""The guest process: ``python -m bench.guest.process --socket PATH --events FILE --log FILE``.

Started in the hypervisor's network namespace. Serves a Unix socket (several connections at once; grammar:
:mod:`bench.host.channel`) and carries out commands on its :class:`~bench.guest.lifecycle.ProcessGuest`; their
arguments and answers are those of :class:`bench.guest.client.GuestControl`.

What closing a connection means (the dead man's switch):

- of the one that sent ``pause``, the guest still paused: reclaim the lease and run again, or die if that fails;
- of the one that configured a skeleton which has not taken over: die (before that it dies with the engine that forked
  it);
- of the one that switched tracking on, closed the door or throttled the vCPUs: undo that.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from bench.errors import BenchError, GuestError
from bench.guest.announcer import Announcement
from bench.guest.config import GuestConfig
from bench.guest.device_state import MAX_STATE_BYTES
from bench.guest.disk_commands import disk_command
from bench.guest.lifecycle import ProcessGuest
from bench.guest.loop import Loop
from bench.guest.states import State
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.kernel import set_parent_death_signal
from bench.host.timer import set_timer_slack_ns
from bench.memory.image import GuestMemory
from bench.memory.own import own_memory
from bench.timeline import Event

MAX_CONTROL_CONNECTIONS = 16
_SEND_TIMEOUT_S = 2  # a peer that does not read its answers is cut off

log = logging.getLogger("guest")

Answer = tuple[dict[str, Any], int | list[int]]
"""A reply's value, and the descriptors to send with it (they are closed afterwards), -1 for none."""


class GuestProcess:
    """The control socket and its commands."""

    def __init__(self, socket_path: Path, events_path: Path) -> None:
        self._path = socket_path
        self._loop = Loop()
        self._guest = ProcessGuest(self._loop, events_path, self._finish)
        self._channels: set[Channel] = set()
        # who is responsible for what: see the module
        self._creator: Channel | None = None
        self._pauser: Channel | None = None
        self._tracker: Channel | None = None
        self._doorkeeper: Channel | None = None
        self._throttler: Channel | None = None
        self._reason = ""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def run(self) -> None:
        """Serve until told to quit, or until nobody is left who answers for this guest."""
        self._listener.bind(str(self._path))
        self._listener.listen(MAX_CONTROL_CONNECTIONS)
        self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        wake, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._loop.watch(wake.fileno(), select.EPOLLIN, lambda _events: self._finish("SIGTERM"))
        try:
            self._loop.run()
        finally:
            self._guest.stop(self._reason or "error")
            self._path.unlink(missing_ok=True)

    def _finish(self, reason: str) -> None:
        self._reason = self._reason or reason
        log.info("ending: %s", reason)
        self._loop.stop()

    # connections

    def _accept(self, _events: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if len(self._channels) >= MAX_CONTROL_CONNECTIONS:
            sock.close()
            return
        channel = Channel(sock, "commander")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._channels.add(channel)
        self._loop.watch(channel.fileno(), select.EPOLLIN, lambda _events: self._receive(channel))

    def _receive(self, channel: Channel) -> None:
        try:
            for message in channel.receive_ready():
                self._carry_out(channel, message)
        except (BenchError, OSError) as error:
            if not isinstance(error, ChannelClosed):
                log.warning("a control connection is cut off: %s", error)
            self._gone(channel)

    def _gone(self, channel: Channel) -> None:
        """A control connection has closed."""
        if channel not in self._channels:
            return
        self._channels.discard(channel)
        self._loop.unwatch(channel.fileno())
        channel.close()
        if channel is self._pauser:
            self._pauser = None
            self._dead_man()
        if channel is self._creator and self._guest.state is not State.RUNNING:
            self._finish("the creator of the skeleton is gone")
        if channel is self._throttler:  # first: a vCPU that is held back answers late
            self._throttler = None
            self._undo("throttle", self._guest.release_throttle)
        if channel is self._tracker:
            self._tracker = None
            self._undo("tracking", self._guest.stop_tracking)
        if channel is self._doorkeeper:
            self._doorkeeper = None
            self._undo("door", self._guest.open_door)
        self._guest.flush()

    def _dead_man(self) -> None:
        """Whoever paused the guest is gone: exactly one of the two guests goes on, and the lease says which."""
        if self._guest.state is not State.PAUSED:
            return
        try:
            resumed = self._guest.resume()
        except BenchError:
            log.exception("the lease cannot be reclaimed")
            resumed = False
        if not resumed:
            self._finish("paused, and the lease belongs to another")

    def _undo(self, what: str, work: Any) -> None:
        try:
            work()
        except (BenchError, OSError):
            log.exception("%s cannot be switched off", what)

    # commands

    def _carry_out(self, channel: Channel, message: Message) -> None:
        """:raises HostError: when *message* is no command; the connection is cut off then."""
        name, command_id, args = message.get("command"), message.get("id"), message.get("args", {})
        count = message.get("fds", 0)
        if not isinstance(command_id, int) or not isinstance(args, dict) or not isinstance(count, int):
            raise GuestError(f"no command: {str(message)[:120]}")
        fds = channel.take_fds(count)
        answers: list[int] = []
        try:
            work = getattr(self, f"_do_{name}", None) if isinstance(name, str) else None
            if work is None:
                raise GuestError(f"unknown command {str(name)[:40]!r}")
            value, answer = work(channel, args, fds)
            answers = answer if isinstance(answer, list) else [answer] if answer >= 0 else []
            channel.send_reply(command_id, value, answers)
        except ChannelClosed:
            raise
        except (BenchError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s: %r", name, error)
            channel.send_error(command_id, error.message if isinstance(error, BenchError) else repr(error))
        finally:
            for fd in (*fds, *answers):
                os.close(fd)
        self._guest.flush()

    def _do_configure(self, channel: Channel, args: Message, fds: list[int]) -> Answer:
        config = GuestConfig.from_json(args)
        new = self._guest.state is State.NEW
        try:
            memory = GuestMemory.from_fd(os.dup(fds[0]), config.memory_bytes) if fds else None
            self._guest.configure(config, memory)
        except BaseException:
            if new:  # half a guest is of no use
                self._finish("configuration failed")
            raise
        if config.skeleton:
            self._creator = channel
            set_parent_death_signal(0)  # that connection tells it from now on
        gc.collect()
        gc.freeze()  # what exists now stays; collections during a switchover need not look at it
        own_memory()
        return {"pid": os.getpid()}, -1

    def _do_start(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        self._guest.start(Announcement.from_json(args.get("announce")))
        return {}, -1

    def _do_memory(self, _channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        memory = self._guest.memory
        return {"bytes": memory.size_bytes, "writers": self._guest.writers()}, os.dup(memory.fd)

    def _do_track(self, channel: Channel, args: Message, _fds: list[int]) -> Answer:
        writers = self._guest.track(bool(args["enable"]), str(args["method"]))
        self._tracker = channel if args["enable"] else None
        return {"writers": writers}, -1

    def _do_expect_pages(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        if not args["enable"]:
            self._guest.end_expecting()
            return {"writers": self._guest.writers()}, -1
        fds = self._guest.expect_pages()
        return {"writers": self._guest.writers()}, fds

    def _do_close_door(self, channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        self._doorkeeper = channel
        return {"embryonic": self._guest.close_door()}, -1

    def _do_open_door(self, _channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        self._guest.open_door()
        self._doorkeeper = None
        return {}, -1

    def _do_throttle(self, channel: Channel, args: Message, _fds: list[int]) -> Answer:
        self._throttler = channel
        return {"mechanism": self._guest.throttle(int(args["share_ppm"]), str(args["cgroup"]))}, -1

    def _do_cap_writes(self, channel: Channel, args: Message, _fds: list[int]) -> Answer:
        self._throttler = channel
        return {"writes": self._guest.cap_writes(int(args["writes_per_s"]))}, -1

    def _do_pause(self, channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        fd, value = self._guest.pause(lambda times: channel.send_event(Event.now("guest", "still", times=dict(times))))
        self._pauser = channel
        return value, fd

    def _do_resume(self, _channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        resumed = self._guest.resume()
        if resumed:
            self._pauser = None
        return {"resumed": resumed, "owner": self._guest.lease_owner()}, -1

    def _do_load(self, _channel: Channel, _args: Message, fds: list[int]) -> Answer:
        if len(fds) != 1:
            raise GuestError(f"load needs one descriptor, not {len(fds)}")
        return {"connections": self._guest.load(_read_all(fds[0]))}, -1

    def _do_take(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        announcement = Announcement.from_json(args.get("announce"))
        expect = args.get("expect") or {}
        value = self._guest.take(announcement, expect.get("owner"), expect.get("generation"))
        if value["taken"]:
            self._creator = None  # from now on it lives on its own
        return value, -1

    def _do_stats(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        return self._guest.stats(bool(args.get("check", False)), bool(args.get("quiet", False))), -1

    def _do_disks(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        return disk_command(self._guest.disks, self._guest.state.value, args), -1

    def _do_flows(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        outbound = self._guest.sockets.outbound
        if args["do"] == "start":
            outbound.start(list(args["flows"]))
        elif args["do"] == "stop":
            outbound.stop()
        return outbound.report(), -1

    def _do_least_timeout(self, _channel: Channel, args: Message, _fds: list[int]) -> Answer:
        address, port = args["remote"]
        return {"found": self._guest.sockets.set_least_timeout((str(address), int(port)), int(args["least_us"]))}, -1

    def _do_quit(self, _channel: Channel, _args: Message, _fds: list[int]) -> Answer:
        self._pauser = self._creator = None
        self._finish("quit")
        return {}, -1


def _read_all(fd: int) -> bytes:
    """A whole regular file or memfd, whatever its offset. :raises GuestError: when it is too large or none."""
    size = os.fstat(fd).st_size
    if not 0 < size <= MAX_STATE_BYTES:
        raise GuestError(f"a device state of {size} bytes")
    parts = []
    offset = 0
    while offset < size:
        part = os.pread(fd, size - offset, offset)
        if not part:
            raise GuestError(f"a device state that ended at byte {offset} of {size}")
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="bench.guest.process")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(arguments)
    fd = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, sys.stdout.fileno())  # the vCPUs' output goes the same way
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what stops when
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    set_timer_slack_ns(1)
    try:
        GuestProcess(options.socket, options.events).run()
    except Exception:
        log.exception("the guest process failed")
        status = 1
    else:
        status = 0
    logging.shutdown()
    # The kernel takes memory and sockets apart in one go, memory first: a control connection that reads end of file
    # knows that the guest's memory is gone.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
