"""The userspace delay line: ``python -m bench.link.delayline --channel-fd N``.

For kernels without netem, and for what netem cannot do exactly (loss and jitter for each packet: netem sees TCP
segments of up to 64 KiB before they are cut up). A link is two tap devices, one in each end's namespace, named as the
link's interfaces; frames read from one are held until due and written to the other. They cross with their virtio-net
header, so unfinished checksums and large segments stay as they are: that is what makes it fast. Where a direction has
loss or jitter, segmentation offload of the tap it is read from is off, so that each frame is one packet.

A direction's rate is shaped by htb on the tap itself, before the delay. What the tap's own ring (1000 frames) cannot
take because this process is late is dropped by the kernel and counted as the interface's ``tx_dropped``.

Commands (grammar: :mod:`bench.host.channel`)::

    add    {name, ends: [{interface, pid|null}, {interface, pid|null}], forward, backward, seed} -> {}
    set    {name, forward, backward}          -> {}      while frames are under way
    remove {name}                             -> {}
    stats  {}                                 -> {scheduling, links: [{name, forward: {...}, backward: {...}}]}
    quit   {}                                 -> {}

``forward`` and ``backward`` are {delay_ns, jitter_ns, loss, limit_bytes}: see :class:`bench.link.holding.Held`.
The event ``link_down {link, error}`` says that a tap was removed behind our back. The process ends when its channel
ends; its taps go with it, so a channel that reaches end of file tells the owner that the links are down.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import select
import signal
import sys
from collections.abc import Mapping
from time import monotonic_ns
from typing import Any

from bench.errors import HostError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.timer import TimerFd
from bench.link import tap
from bench.link.holding import Held
from bench.timeline import Event

BATCH_FRAMES = 64
MAX_LINKS = 4096
MAX_AHEAD_NS = 100_000
"""At most so long before a frame is due does the process stop sleeping."""


def arrival_ns(asleep_ns: int, awake_ns: int, wake_ns: int) -> int:
    """When the frame came that ended a sleep from *asleep_ns* to *awake_ns*.

    Being woken took *wake_ns* on average lately, so half of that is believed; a frame that found us awake came now.
    """
    return max(asleep_ns, awake_ns - wake_ns // 2) if awake_ns - asleep_ns > 2 * wake_ns else awake_ns


class Wire:
    """One direction of a link: from tap *source* to tap *target*."""

    __slots__ = ("held", "link", "source", "target")

    def __init__(self, link: str, source: int, target: int, held: Held) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.held = held

    def set(self, parameters: Mapping[str, Any]) -> None:
        self.held.set(parameters)
        tap.set_offload(self.source, segmentation=not self.held.per_packet)

    def read(self, arrived_ns: int) -> None:
        """Take in what the tap has, at most a batch.

        :param arrived_ns: when the first frame came; the others may have come while it was read.
        :raises OSError: the tap is gone.
        """
        source, offer = self.source, self.held.offer
        for _ in range(BATCH_FRAMES):
            try:
                frame = os.read(source, tap.MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            offer(frame, arrived_ns)
            arrived_ns = monotonic_ns()

    def deliver(self, now_ns: int) -> int:
        """Write what is due. :returns: when the next frame is due, 0 when none is held."""
        held, target = self.held, self.target
        while (frame := held.take(now_ns)) is not None:
            try:
                os.write(target, frame)
            except OSError:  # noqa: PERF203  the other end's interface is down or full: as on a wire, it is lost
                held.dropped_write += 1
            else:
                held.frames += 1
                held.bytes += len(frame) - tap.VNET_HEADER_BYTES
        return held.queue[0][0] if held.queue else 0


class DelayLine:
    """All links of a run; one thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._links: dict[str, tuple[Wire, Wire]] = {}
        self._wires: dict[int, Wire] = {}
        self._busy: dict[int, Wire] = {}
        self._timer = TimerFd()
        self._armed_ns = 0
        self._wake_ns = 0  # how long after its time the timer wakes us, averaged
        self._epoll = select.epoll()
        self._epoll.register(self._timer.fileno(), select.EPOLLIN)
        self._epoll.register(channel.fileno(), select.EPOLLIN)
        self._scheduling = tap.be_punctual()
        self._running = True

    def run(self) -> None:
        """Until the channel ends or ``quit``."""
        timer_fd, channel_fd = self._timer.fileno(), self._channel.fileno()
        wires, busy = self._wires, self._busy
        timeout = -1
        while self._running:
            asleep_ns = monotonic_ns()
            ready = self._epoll.poll(timeout)
            awake_ns = monotonic_ns()
            arrived_ns = arrival_ns(asleep_ns, awake_ns, self._wake_ns)
            for fd, _ in ready:
                wire = wires.get(fd)
                if wire is not None:
                    try:
                        wire.read(arrived_ns)
                    except OSError as error:
                        self._lose(wire, error)
                        continue
                    if wire.held.queue:
                        busy[fd] = wire
                elif fd == timer_fd:
                    self._woken(awake_ns)
                elif fd == channel_fd:
                    self._serve()
            timeout = 0 if busy and self._deliver() else -1

    def _woken(self, awake_ns: int) -> None:
        """The timer fired: learn how late wake-ups are on this machine at the moment (idle processors take longer)."""
        self._timer.clear()
        late_ns = min(max(awake_ns - self._armed_ns, 0), MAX_AHEAD_NS)
        self._wake_ns += (late_ns - self._wake_ns) // 16
        self._armed_ns = 0

    def _deliver(self) -> bool:
        """Write what is due and arm the timer for the rest, ahead by what waking takes.

        :returns: True when the next frame is due so soon that the caller should look again instead of sleeping.
        """
        next_ns = 0
        now_ns = monotonic_ns()
        for fd, wire in list(self._busy.items()):
            due_ns = wire.deliver(now_ns)
            if not due_ns:
                del self._busy[fd]
            elif not next_ns or due_ns < next_ns:
                next_ns = due_ns
        if not next_ns:
            return False
        wake_ns = next_ns - self._wake_ns
        if wake_ns <= monotonic_ns():
            return True
        if wake_ns != self._armed_ns:
            self._timer.arm(wake_ns)
            self._armed_ns = wake_ns
        return False

    def close(self) -> None:
        for name in list(self._links):
            self._remove(name)
        self._epoll.close()
        self._timer.close()

    def _lose(self, wire: Wire, error: OSError) -> None:
        """A tap was removed behind our back: the link is down, and the owner hears of it once."""
        self._forget(wire.source)
        reason = os.strerror(error.errno) if error.errno else str(error)
        self._channel.send_event(Event.now("delay_line", "link_down", link=wire.link, error=reason))

    def _forget(self, fd: int) -> None:
        self._busy.pop(fd, None)
        if self._wires.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # commands

    def _serve(self) -> None:
        try:
            message = self._channel.receive()
            while True:
                self._answer(message)
                if not self._running or not self._channel.pending():
                    return
                message = self._channel.receive()
        except ChannelClosed:
            self._running = False

    def _answer(self, message: Message) -> None:
        command, number, args = message.get("command"), message.get("id"), message.get("args")
        if not isinstance(number, int) or not isinstance(args, dict):
            raise HostError("the owner of the delay line sent no command")
        value: dict[str, Any] = {}
        try:
            if command == "add":
                self._add(args)
            elif command == "set":
                self._set(args)
            elif command == "remove":
                self._remove(str(args.get("name")))
            elif command == "stats":
                value = self._stats()
            elif command == "quit":
                self._running = False
            else:
                raise ValueError(f"unknown command {command!r}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            self._channel.send_error(number, str(error) or type(error).__name__)
        else:
            self._channel.send_reply(number, value)

    def _add(self, args: Mapping[str, Any]) -> None:
        name = str(args["name"])
        if name in self._links:
            raise ValueError(f"{name}: there is such a link")
        if len(self._links) >= MAX_LINKS:
            raise ValueError(f"more than {MAX_LINKS} links")
        first, second = args["ends"]
        seed = int(args["seed"])
        fds: list[int] = []
        try:
            for end in (first, second):
                try:
                    fds.append(tap.open_tap(end["interface"], end["pid"]))
                except OSError as error:  # noqa: PERF203  two ends
                    reason = "the name is taken" if error.errno == errno.EBUSY else error.strerror or str(error)
                    raise ValueError(f"{name}: tap {end['interface']}: {reason}") from error
            forward = Wire(name, fds[0], fds[1], Held(2 * seed))
            backward = Wire(name, fds[1], fds[0], Held(2 * seed + 1))
            forward.set(args["forward"])
            backward.set(args["backward"])
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        self._links[name] = (forward, backward)
        for wire in (forward, backward):
            self._wires[wire.source] = wire
            self._epoll.register(wire.source, select.EPOLLIN)

    def _set(self, args: Mapping[str, Any]) -> None:
        forward, backward = self._link(str(args["name"]))
        for parameters in (args["forward"], args["backward"]):
            Held(0).set(parameters)  # both are checked before either changes
        forward.set(args["forward"])
        backward.set(args["backward"])

    def _remove(self, name: str) -> None:
        for wire in self._link(name):
            self._forget(wire.source)
            os.close(wire.source)
        del self._links[name]

    def _link(self, name: str) -> tuple[Wire, Wire]:
        if name not in self._links:
            raise ValueError(f"{name}: no such link")
        return self._links[name]

    def _stats(self) -> dict[str, Any]:
        links = [
            {"name": name, "forward": forward.held.stats(), "backward": backward.held.stats()}
            for name, (forward, backward) in self._links.items()
        ]
        return {"scheduling": self._scheduling, "links": links}


def main(arguments: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="bench.link.delayline")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's; it closes the channel when it is done
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    line = DelayLine(Channel.from_fd(options.channel_fd, "owner"))
    gc.freeze()
    gc.disable()  # the hot path makes no cycles; a collection would make frames late
    try:
        line.run()
    except ChannelClosed:
        pass
    finally:
        line.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
