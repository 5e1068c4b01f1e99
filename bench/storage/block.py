"""The hypervisor's block layer for one guest: ``python -m bench.storage.block --channel-fd N``.

A process beside the guest, in the hypervisor's network namespace, as the device model of a real one. The guest's
requests come over a socket and a shared area (:mod:`bench.storage.ring`) and go to the storage servers over libnbd,
asynchronously. Commands (args -> value), one after the other::

    init     {guest, holder, servers: {name: [address, port]}, disks: [{name, server}]} + area, socket -> {}
    status   {} -> {servers: {name: grant}, mirrors: {server: generation}}
    take     {expect: {server: generation} | null, timeout_ns} -> {generations}
                                         raise the generation; null: whatever it is now
    open     {generations} -> {}         connect, so that a later take need not wait for it
    retake   {} -> {}                    after a roll-back: raise it again, in the background, until that works
    settle   {} -> {}                    begin to flush; what becomes of it settled tells
    settled  {} -> {over, problem, pending}
    flush    {timeout_ns} -> {}          everything that was done is on the disks
    release  {timeout_ns} -> {generations}    let go: the servers serve nobody until the generation is raised
    let_go   {timeout_ns} -> {generations, flushed_ns, mirrored_ns, released_ns, mirrors}
                                         flush, finish, release; a retake that is sent meanwhile ends the first two
    mirror   {disk, server, place} -> {}  begin to copy a local disk to that server
    mirrors  {} -> {disk: status}
    finish   {timeout_ns} -> {}          the copies are complete and on their disks
    unmirror {} -> {}
    stats    {} -> {disk: {pending, fenced, connected}}

A command that needs a server which is out of reach fails within some seconds; the requests of the guest wait instead.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, DeadlineError, StorageError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.kernel import set_parent_death_signal
from bench.host.timer import TimerFd, set_timer_slack_ns
from bench.storage import ring
from bench.storage.control import ANSWER_NS, Control
from bench.storage.export import FLUSH, WRITE, Export, Request
from bench.storage.guest_port import GuestPort
from bench.storage.mirror import Mirror
from bench.storage.sources import Alarm, Answers, Source

FLUSH_NS: Final = 10 * NS_PER_S  # unless it is told otherwise
CONNECT_NS: Final = 5 * NS_PER_S
RETAKE_NS: Final = 200 * NS_PER_MS
BACKGROUND_NS: Final = 5 * NS_PER_S  # for orders that nobody waits for
SOON_NS: Final = 10 * NS_PER_MS


class BlockLayer:
    """One guest's disks at one hypervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._timer = TimerFd()
        self._port: GuestPort | None = None
        self._guest = self._holder = ""
        self._places: dict[str, tuple[str, int]] = {}
        self._controls: dict[str, Control] = {}
        self._exports: list[Export] = []
        self._servers: list[str] = []  # of each disk
        self._generations: dict[str, int] = {}
        self._mirrors: dict[int, tuple[Mirror, Export, str]] = {}
        self._mirror_generations: dict[str, int] = {}
        self._mirroring: dict[int, str] = {}  # disk -> why it cannot be copied
        self._taking: set[str] = set()  # servers that are asked for room for copies
        self._unbegun: list[tuple[int, str]] = []  # copies of disks that are not connected
        self._begin_soon = Alarm(self._begin_unbegun)
        self._settling = Answers(0)
        self._retake = Alarm(self._try_again)
        self._retaking: set[str] = set()
        self._messages: list[Message] = []

    # the loop

    def run(self) -> None:
        """Until the channel ends."""
        while True:
            while not self._messages:
                self._turn(None)
            self._answer(self._messages.pop(0))

    def _sources(self) -> Iterator[Source]:
        if self._port is not None:
            yield self._port
        yield from self._exports
        for _mirror, export, _server in self._mirrors.values():
            yield export
        yield from self._controls.values()
        yield self._retake
        yield self._begin_soon

    def _turn(self, until_ns: int | None) -> None:
        """Wait for something to happen, or until then, and handle it."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._timer.fileno(), select.POLLIN)
        by_fd: dict[int, Source] = {}
        due_ns = until_ns
        for source in self._sources():
            fd = source.fileno()
            if fd >= 0:
                by_fd[fd] = source
                poll.register(fd, source.wants())
            due = source.due_ns()
            if due is not None:
                due_ns = due if due_ns is None else min(due, due_ns)
        self._timer.arm(due_ns)
        for fd, events in poll.poll():
            if fd == self._channel.fileno():
                self._messages += self._channel.receive_ready()
            elif fd == self._timer.fileno():
                self._timer.clear()
            elif by_fd[fd].fileno() == fd:  # what was ready before it may have dropped its connection
                by_fd[fd].ready(events)
        now = now_ns()
        for source in list(self._sources()):
            due = source.due_ns()
            if due is not None and due <= now:
                source.on_time()
        if self._port is not None:
            self._port.flush()

    def _wait(self, condition: Callable[[], bool], deadline: Deadline, what: str) -> None:
        """:raises DeadlineError: when it does not come true in time."""
        while not condition():
            if deadline.expired:
                raise DeadlineError(f"{what}: not within {deadline.duration_ns / NS_PER_S:g} s")
            self._turn(deadline.at_ns)

    def _submit(self, disk: int, request: Request) -> None:
        if disk >= len(self._exports):
            request.done(errno.EINVAL)
            return
        if disk in self._mirrors and request.kind == WRITE:
            mirror, done = self._mirrors[disk][0], request.done

            def marked(error: int) -> None:
                mirror.wrote(request.offset, request.length)
                done(error)

            request.done = marked
        self._exports[disk].submit(request)

    # commands

    def _answer(self, message: Message) -> None:
        number, name = int(message.get("id", 0)), str(message.get("command"))
        args = message.get("args", {})
        fds = self._channel.take_fds(int(message.get("fds", 0)))
        try:
            work = getattr(self, f"_do_{name}", None)
            if work is None or not isinstance(args, dict):
                raise StorageError(f"unknown command {name[:40]!r}")
            value = self._do_init(args, fds) if name == "init" else work(args)
            self._channel.send_reply(number, value)
        except ChannelClosed:
            raise
        except (BenchError, OSError, KeyError, TypeError, ValueError) as error:
            self._channel.send_error(number, error.message if isinstance(error, BenchError) else repr(error))

    def _do_init(self, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        area_fd, socket_fd = fds
        area = mmap.mmap(area_fd, ring.AREA_BYTES)
        os.close(area_fd)
        self._guest, self._holder = str(args["guest"]), str(args["holder"])
        self._places = {str(name): (str(place[0]), int(place[1])) for name, place in args["servers"].items()}
        for disk in args["disks"]:
            server = str(disk["server"])
            self._servers.append(server)
            self._exports.append(Export(self._places[server], self._guest, str(disk["name"]), self._holder))
        for server in self._servers:
            self._control(server).connect()
        self._port = GuestPort(socket.socket(fileno=socket_fd), memoryview(area), self._submit)
        return {}

    def _control(self, server: str) -> Control:
        if server not in self._controls:
            self._controls[server] = Control(server, *self._places[server])
        return self._controls[server]

    def _ask_all(
        self, orders: Mapping[str, Mapping[str, Any]], answer_ns: int = ANSWER_NS
    ) -> dict[str, Mapping[str, Any]]:
        """Send an order to each server at once, after those under way, and wait for all.

        :param answer_ns: for a server that is there and busy.
        :raises BenchError: the first that failed.
        """
        answers: dict[str, Mapping[str, Any]] = {}
        errors: list[StorageError] = []

        def receiver(server: str) -> Callable[[Mapping[str, Any], StorageError | None], None]:
            def receive(value: Mapping[str, Any], error: StorageError | None) -> None:
                answers[server] = value
                if error is not None:
                    errors.append(error)

            return receive

        whose = {"guest": self._guest, "holder": self._holder}
        for server, order in orders.items():
            self._free_control(server).ask({**whose, **order}, receiver(server), answer_ns)
        while len(answers) < len(orders):
            self._turn(None)  # a control fails by itself when no answer comes
        if errors:
            raise errors[0]
        return answers

    def _free_control(self, server: str) -> Control:
        """Once the order under way, of something in the background, is over. :raises DeadlineError: it never is."""
        control = self._control(server)
        self._wait(
            lambda: not control.busy,
            Deadline(BACKGROUND_NS + ANSWER_NS),
            f"the former order to storage server {server}",
        )
        return control

    def _do_status(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        servers = self._ask_all({server: {"do": "status"} for server in dict.fromkeys(self._servers)})
        return {"servers": servers, "mirrors": self._mirror_generations}

    def _do_take(self, args: Mapping[str, Any]) -> dict[str, Any]:
        expect = args.get("expect")
        if expect is None:
            found = self._do_status({})["servers"]
            expect = {server: int(grant["generation"]) for server, grant in found.items()}
        orders = {server: {"do": "raise", "generation": int(expect[server])} for server in dict.fromkeys(self._servers)}
        answers = self._ask_all(orders, int(args.get("timeout_ns", ANSWER_NS)))
        self._open({server: int(grant["generation"]) for server, grant in answers.items()})
        return {"generations": self._generations}

    def _open(self, generations: Mapping[str, int]) -> None:
        self._generations = dict(generations)
        for export, server in zip(self._exports, self._servers, strict=True):
            export.open(self._generations[server])

    def _do_open(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self._open({str(server): int(generation) for server, generation in args["generations"].items()})
        return {}

    def _do_wait(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Until every disk is connected."""
        del args
        self._wait(lambda: all(item.connected for item in self._exports), Deadline(CONNECT_NS), "the disks connected")
        return {"sizes": {export.disk: export.size_bytes for export in self._exports}}

    def _do_retake(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        self._retaking = set(self._servers)
        self._retake.set(now_ns())
        return {}

    def _try_again(self) -> None:
        """Ask every server that has not given the disks back yet; none of this waits."""
        for server in list(self._retaking):
            self._retaking_ask(server, "status", 0)

    def _retaking_ask(self, server: str, what: str, generation: int) -> None:
        def answered(value: Mapping[str, Any], error: StorageError | None) -> None:
            if error is not None:
                self._retake.set(now_ns() + RETAKE_NS)
            elif what == "status":
                self._retaking_ask(server, "raise", int(value["generation"]))
            else:
                self._retaking.discard(server)
                self._generations[server] = int(value["generation"])
                for export, its in zip(self._exports, self._servers, strict=True):
                    if its == server:
                        export.open(self._generations[server])

        order = {"do": what, "guest": self._guest, "holder": self._holder, "generation": generation}
        if self._control(server).busy:  # with an order that somebody waits for
            self._retake.set(now_ns() + RETAKE_NS)
        else:
            self._control(server).ask(order, answered, BACKGROUND_NS)

    def _flush_all(self) -> Answers:
        answers = Answers(len(self._exports))
        for export in self._exports:
            export.submit(Request(FLUSH, 0, 0, None, False, answers.done))
        return answers

    def _have(self, answers: Answers, args: Mapping[str, Any], what: str) -> None:
        """Wait for all of them. :raises BenchError: one failed, or it takes longer than ``timeout_ns`` of *args*."""
        self._wait(lambda: answers.over or self._wanted_back, Deadline(int(args.get("timeout_ns", FLUSH_NS))), what)
        if answers.error:
            raise StorageError(f"{what}: {os.strerror(answers.error)}")
        if not answers.over:
            raise StorageError(f"{what}: the guest goes on here")

    @property
    def _wanted_back(self) -> bool:
        """The guest's next command is to have its disks back: what is under way for a handover is of no use."""
        return any(message.get("command") == "retake" for message in self._messages)

    def _do_settle(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        self._settling = self._flush_all()
        return {}

    def _do_settled(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        settling = self._settling
        problem = os.strerror(settling.error) if settling.error else ""
        return {"over": settling.over, "problem": problem, "pending": sum(map(len, self._exports))}

    def _do_flush(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self._have(self._flush_all(), args, "the flush of the disks")
        return {}

    def _do_release(self, args: Mapping[str, Any]) -> dict[str, Any]:
        orders = {
            server: {"do": "release", "generation": self._generations[server]}
            for server in dict.fromkeys(self._servers)
        }
        self._ask_all(orders, int(args.get("timeout_ns", ANSWER_NS)))
        return {"generations": {**self._generations, **self._mirror_generations}}

    def _do_let_go(self, args: Mapping[str, Any]) -> dict[str, Any]:
        limit = Deadline(int(args["timeout_ns"]))
        times = {}
        value: dict[str, Any] = {}
        for step, ended in ((self._do_flush, "flushed"), (self._do_finish, "mirrored"), (self._do_release, "released")):
            value = step({"timeout_ns": max(ANSWER_NS, limit.remaining_ns)})
            times[f"{ended}_ns"] = now_ns()
        return {**value, **times, "mirrors": self._do_mirrors({})}

    # local disks

    def _do_mirror(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Begin; what becomes of it ``mirrors`` tells."""
        number = next(at for at, export in enumerate(self._exports) if export.disk == args["disk"])
        server = str(args["server"])
        self._places[server] = (str(args["place"][0]), int(args["place"][1]))
        self._mirroring[number] = ""
        if server in self._mirror_generations:
            self._begin_mirror(number, server)
        elif server not in self._taking:  # for another disk
            self._free_control(server)
            self._taking.add(server)
            self._ask_mirror(server, "status", 0)
        return {}

    def _ask_mirror(self, server: str, what: str, generation: int) -> None:
        """Become the holder of this guest's disks at the destination's server, until the destination does."""

        def answered(value: Mapping[str, Any], error: StorageError | None) -> None:
            if error is not None:
                self._taking.discard(server)
                self._mirroring = dict.fromkeys(self._mirroring, error.message)
            elif what == "status":
                self._ask_mirror(server, "raise", int(value["generation"]))
            else:
                self._taking.discard(server)
                self._mirror_generations[server] = int(value["generation"])
                for number in [number for number in self._mirroring if number not in self._mirrors]:
                    self._begin_mirror(number, server)

        order = {"do": what, "guest": self._guest, "holder": self._holder, "generation": generation}
        at_least = max(self._generations.values(), default=0)
        self._control(server).ask({**order, "at_least": at_least}, answered, BACKGROUND_NS)

    def _begin_mirror(self, number: int, server: str) -> None:
        source = self._exports[number]
        if not source.size_bytes:  # not connected yet, as just after the guest has come here
            self._unbegun.append((number, server))
            self._begin_soon.set(now_ns() + SOON_NS)
            return
        target = Export(self._places[server], self._guest, source.disk, self._holder)
        target.open(self._mirror_generations[server])
        mirror = Mirror(source, target, source.size_bytes)
        self._mirrors[number] = (mirror, target, server)
        mirror.begin()

    def _begin_unbegun(self) -> None:
        unbegun, self._unbegun = self._unbegun, []
        for number, server in unbegun:
            self._begin_mirror(number, server)

    def _do_mirrors(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        found: dict[str, Any] = {}
        for number, error in self._mirroring.items():
            disk = self._exports[number].disk
            if number not in self._mirrors:
                found[disk] = {"close": False, "problem": error, "rounds": [], "dirty_bytes": 0, "arrived_bytes": 0}
                continue
            mirror, target, server = self._mirrors[number]
            problem = os.strerror(mirror.error) if mirror.error else ""
            if target.connected and target.size_bytes < self._exports[number].size_bytes:
                problem = f"its copy at {server} has only {target.size_bytes} bytes"
            found[disk] = {**mirror.status(), "problem": problem}
        return found

    def _do_finish(self, args: Mapping[str, Any]) -> dict[str, Any]:
        answers = Answers(len(self._mirrors))
        for mirror, _export, _server in self._mirrors.values():
            mirror.finish(answers.done)
        self._have(answers, args, "the copies of the local disks")
        return {}

    def _do_unmirror(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        mirrors, self._mirrors = self._mirrors, {}
        for _mirror, export, _server in mirrors.values():
            export.close()
        self._mirroring = {}
        self._unbegun.clear()
        self._mirror_generations.clear()
        return {}

    def _do_stats(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        return {
            export.disk: {"pending": len(export), "fenced": export.fenced, "connected": export.connected}
            for export in self._exports
        }


def main(arguments: list[str] | None = None) -> int:
    """The process: serves the inherited channel until it ends."""
    parser = argparse.ArgumentParser(prog="bench.storage.block")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what stops when
    set_parent_death_signal(signal.SIGKILL)  # the device goes with its guest, whatever it is waiting for
    set_timer_slack_ns(1)
    with contextlib.suppress(ChannelClosed):
        BlockLayer(Channel.from_fd(options.channel_fd, "guest")).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
