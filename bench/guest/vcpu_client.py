"""The guest process's handle on its vCPU processes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, GuestError
from bench.guest import vcpu as vcpu_process
from bench.guest.workload import Parameters
from bench.host.channel import Channel
from bench.host.forking import Forked, fork

VCPU_NS = 2 * NS_PER_S  # for an answer that a vCPU has at once
_STOP_NS = 2 * NS_PER_S

Registers = Mapping[str, Any]
Populate: TypeAlias = Literal["first", "idle", "never"]


class Vcpu:
    """One vCPU process. Commands raise GuestError when refused, ChannelClosed when the process is gone.

    :ivar channel: becomes readable without a command outstanding only when the process died.
    :ivar pid: its process id; ``base`` the address of guest memory there. Together they are a *writer*.
    """

    def __init__(self, process: Forked, channel: Channel, index: int) -> None:
        self.process = process
        self.channel = channel
        self.index = index
        self.pid = process.pid
        self.base = 0

    @classmethod
    def spawn(cls, index: int) -> Vcpu:
        """Start the process; it has no memory yet (:meth:`start` and :func:`start_all` give it some)."""
        channel, theirs = Channel.pair("guest", f"vcpu{index}")
        try:
            number = theirs.fileno()
            process = fork(vcpu_process.main, ["--channel-fd", str(number)], pass_fds=[number])
        except OSError as error:
            channel.close()
            raise GuestError(f"vCPU {index} did not start: {error.strerror}") from error
        finally:
            theirs.close()
        return cls(process, channel, index)

    @classmethod
    def start(
        cls,
        memory_fd: int,
        memory_bytes: int,
        parameters: Parameters,
        *,
        registers: Registers | None = None,
        deadline: Deadline,
    ) -> Vcpu:
        """A paused vCPU on this memory; with *registers* it goes on where those were taken."""
        return start_all(memory_fd, memory_bytes, [parameters], registers=[registers], deadline=deadline)[0]

    @property
    def writer(self) -> tuple[int, int]:
        return self.pid, self.base

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def run(self, deadline: Deadline) -> None:
        self.channel.call("run", deadline=deadline)

    def pause(self, deadline: Deadline) -> dict[str, Any]:
        """Stop at a whole write. :returns: the registers; nothing is written after this."""
        return _registers(self.channel.call("pause", deadline=deadline))

    def track(self, enable: bool, method: str, deadline: Deadline) -> tuple[int, int]:
        """Arm or disarm write tracking. :returns: (pid, base), a writer for a tracker."""
        value = self.channel.call("track", {"enable": enable, "method": method}, deadline=deadline)
        return int(value["pid"]), int(value["base"])

    def expect(self, enable: bool, deadline: Deadline) -> int:
        """Switch waiting for missing pages on or off. :returns: its userfaultfd, which is the caller's; -1 if off."""
        self.channel.call("expect", {"enable": enable}, deadline=deadline)
        return self.channel.take_fds(1)[0] if enable else -1

    def throttle(self, share_ppm: int, writes_per_s: int, deadline: Deadline) -> int:
        """Have it write during this share of every 10 ms only (1,000,000 is always), and no more often than that (0 is
        as often as it wants).

        :returns: the writes done so far.
        """
        args = {"share_ppm": share_ppm, "writes_per_s": writes_per_s}
        return int(self.channel.call("throttle", args, deadline=deadline)["writes"])

    def stats(self, deadline: Deadline) -> dict[str, Any]:
        """{index, running, writes, missed_writes}."""
        return self.channel.call("stats", deadline=deadline)

    def check(self, deadline: Deadline, limit: int = 1 << 22) -> dict[str, Any]:
        """Whether memory holds the last write of every page, over the newest *limit* writes.

        :returns: {pages, wrong, first_wrong, position}. The workload stands still meanwhile (about 0.1 s per million).
        """
        return self.channel.call("check", {"limit": limit}, deadline=deadline)

    def quit(self) -> None:
        """End the process. Idempotent and bounded; it is killed if it does not end by itself."""
        try:
            if self.alive:
                self.channel.call("quit", deadline=Deadline(_STOP_NS))
        except BenchError:
            pass  # it is gone or hangs: what follows handles both
        self.channel.close()  # end of file also ends it
        try:
            self.process.wait(_STOP_NS / NS_PER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_all(
    memory_fd: int,
    memory_bytes: int,
    parameters: Sequence[Parameters],
    *,
    registers: Sequence[Registers | None] | None = None,
    deadline: Deadline,
    populate: Populate = "first",
) -> list[Vcpu]:
    """Paused vCPUs on this memory, started at the same time; all or none.

    :param registers: one for each, or None to begin at write 0.
    :param populate: when all memory is mapped: before this returns, while the vCPUs have nothing to do, or never.
    """
    vcpus: list[Vcpu] = []
    try:
        for part in parameters:
            vcpu = Vcpu.spawn(part.index)
            vcpus.append(vcpu)
        commands = []
        for vcpu, part, state in zip(vcpus, parameters, registers or [None] * len(vcpus), strict=True):
            args = {
                "memory_bytes": memory_bytes,
                "workload": part.to_json(),
                "registers": state and dict(state),
                "populate": populate,
            }
            commands.append(vcpu.channel.post("init", args, fds=[memory_fd]))
        for vcpu, command in zip(vcpus, commands, strict=True):
            value = _reply(vcpu, command, deadline)
            vcpu.pid, vcpu.base = int(value["pid"]), int(value["base"])
    except BaseException:
        for vcpu in vcpus:
            vcpu.quit()
        raise
    return vcpus


def pause_all(vcpus: Sequence[Vcpu], deadline: Deadline) -> list[dict[str, Any]]:
    """Pause them all at the same time; when it returns, none writes. :returns: their registers, in order."""
    commands = [vcpu.channel.post("pause") for vcpu in vcpus]
    return [_registers(_reply(vcpu, command, deadline)) for vcpu, command in zip(vcpus, commands, strict=True)]


@contextlib.contextmanager
def loading(vcpus: Sequence[Vcpu], registers: Sequence[Registers], deadline: Deadline) -> Iterator[None]:
    """While the body runs, they all get the *registers* to go on from at the next run; only while paused.

    :raises GuestError: (at the end) one refuses them. Every answer is read, also when the body fails.
    """
    pairs = zip(vcpus, registers, strict=True)
    commands = [(vcpu, vcpu.channel.post("load", {"registers": dict(state)})) for vcpu, state in pairs]
    with contextlib.ExitStack() as answers:
        for vcpu, command in commands:
            answers.callback(_reply, vcpu, command, deadline)
        yield


def _reply(vcpu: Vcpu, command: int, deadline: Deadline) -> dict[str, Any]:
    while True:
        message = vcpu.channel.receive(deadline)
        if message.get("reply") == command:
            break
    if "error" in message:
        raise GuestError(f"{vcpu.channel.peer}: {message['error']}")
    value = message.get("value")
    return value if isinstance(value, dict) else {}


def _registers(value: Mapping[str, Any]) -> dict[str, Any]:
    registers = value.get("registers")
    if not isinstance(registers, dict):
        raise GuestError("a vCPU paused without reporting its registers")
    return registers
