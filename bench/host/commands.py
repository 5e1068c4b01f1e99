"""External commands: argument lists with deadlines, and long-lived children that are known by pid and start time.

Nothing here goes through a shell. A command runs in another network namespace when ``netns_pid`` names a process in it:
Mininet's ``mnexec -a PID`` is put before it, which enters that namespace and then becomes the command.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import bench
from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import CommandError, DeadlineError, HostError
from bench.host.channel import Channel
from bench.host.forking import Forked
from bench.host.kernel import start_ticks

MAX_OUTPUT_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16
_STDERR_LINES = 5
_STOP_NS = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended by itself. ``status`` is its exit status, or minus the signal that killed it."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    duration_ns: int


def in_netns(argv: Sequence[str], netns_pid: int | None) -> list[str]:
    """*argv* so that it runs in the network (and mount) namespace of process *netns_pid*."""
    return list(argv) if netns_pid is None else ["mnexec", "-a", str(netns_pid), *argv]


def describe_status(status: int) -> str:
    """``exit status 2`` or ``killed by SIGKILL``; *status* as in :class:`Completed`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def run(
    argv: Sequence[str],
    *,
    deadline: Deadline,
    input: str | bytes | None = None,  # noqa: A002  the name subprocess has for it
    netns_pid: int | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
) -> Completed:
    """Run a command to its end, with messages in English (``LC_ALL=C``).

    :param deadline: when it passes, the command and everything in its process group are killed.
    :param input: what it reads on standard input; None for /dev/null.
    :param env: added to this process's environment.
    :param check: raise when the exit status is not 0.
    :raises CommandError: it cannot be started, fails (with *check*), misses the deadline, or prints more than
        *max_output_bytes*. The message holds the arguments, the exit status and the last lines of standard error.
    """
    full = in_netns(argv, netns_pid)
    data = input.encode() if isinstance(input, str) else input
    began_ns = now_ns()
    with _start(
        full,
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
    ) as child:
        try:
            stdout, stderr, problem = _converse(child, data, deadline, max_output_bytes)
            if problem is None and not _exited(child, deadline):
                problem = f"not finished within {deadline.duration_ns / NS_PER_S:g} s"
        finally:
            if child.poll() is None:
                _signal_group(child.pid, signal.SIGKILL)
            child.wait()
    status = child.returncode
    texts = stdout.decode(errors="replace"), stderr.decode(errors="replace")
    if problem is None and check and status != 0:
        problem = describe_status(status)
    if problem is not None:
        raise CommandError(_failure(full, problem, texts[1] or texts[0]))
    return Completed(tuple(full), status, *texts, now_ns() - began_ns)


def _failure(argv: Sequence[str], problem: str, output: str) -> str:
    last = [line.strip() for line in output.splitlines() if line.strip()][-_STDERR_LINES:]
    text = f"{shlex.join(argv)[:600]}: {problem}"
    return f"{text}: {' | '.join(last)[:2000]}" if last else text


def _start(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(argv), start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]
    except OSError as error:
        raise CommandError(
            f"{argv[0]}: cannot be started: {error.strerror}",
            f"install the package that holds {argv[0]}; `bench doctor` names it" if error.errno == 2 else "",
        ) from error


def _converse(
    child: subprocess.Popen[bytes], data: bytes | None, deadline: Deadline, limit: int
) -> tuple[bytes, bytes, str | None]:
    """Feed and read a command until it ends or closes its output; returns both outputs and what went wrong.

    The end of the process counts, not only that of its output: a daemon that it left behind may hold the pipes open.
    """
    outputs: dict[int, bytearray] = {}
    view = memoryview(data or b"")
    total = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(child.pid)
        stack.callback(os.close, pidfd)
        selector.register(pidfd, selectors.EVENT_READ)
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            outputs[stream.fileno()] = bytearray()
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        open_outputs = len(outputs)
        ended = False
        problem = None
        while open_outputs and not ended and problem is None:
            ready = selector.select(deadline.remaining_s)
            if not ready and deadline.expired:
                problem = f"not finished within {deadline.duration_ns / NS_PER_S:g} s"
            ended = any(key.fd == pidfd for key, _events in ready)
            # once the process has ended, everything it wrote lies in the pipes: drain them all, ready or not
            for key in list(selector.get_map().values()) if ended else [key for key, _events in ready]:
                if key.fd in outputs:
                    more = _drain(key.fd, outputs[key.fd], limit - total)
                    total = sum(map(len, outputs.values()))
                    if total > limit:
                        problem = f"printed more than {limit} bytes"
                        break
                    if not more:
                        selector.unregister(key.fileobj)
                        open_outputs -= 1
                elif key.fd != pidfd and not ended:
                    view = _feed(key.fileobj, view, selector)  # type: ignore[arg-type]
    stdout, stderr = outputs.values()
    return bytes(stdout), bytes(stderr), problem


def _drain(fd: int, into: bytearray, room: int) -> bool:
    """Read what is there, up to a little over *room* bytes; False at end of file."""
    taken = 0
    while taken <= room:
        try:
            data = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        into += data
        taken += len(data)
    return True


def _feed(stream: IO[bytes], view: memoryview, selector: selectors.BaseSelector) -> memoryview:
    try:
        view = view[os.write(stream.fileno(), view[:_CHUNK_BYTES]) :]
    except BlockingIOError:
        return view
    except BrokenPipeError:
        view = view[len(view) :]  # it does not want to read the rest
    if not view:
        selector.unregister(stream)
        stream.close()
    return view


def _exited(child: subprocess.Popen[bytes] | Forked, deadline: Deadline) -> bool:
    """Wait for a child to end without reaping it; False when the deadline passes first."""
    if child.returncode is not None:
        return True
    pidfd = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ)
            return bool(selector.select(deadline.remaining_s))
    finally:
        os.close(pidfd)


def _signal_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


class Process:
    """A long-lived child: leader of a session and process group of its own.

    :ivar name: for messages.
    :ivar pid: valid as long as it is not reaped, which :meth:`wait`, :meth:`stop` and :attr:`alive` may do.
    :ivar start_ticks: start time as :func:`bench.host.kernel.start_ticks` tells it.
    :ivar log: where its standard output and error go.
    """

    def __init__(self, child: subprocess.Popen[bytes] | Forked, name: str, log: Path) -> None:
        self._child = child
        self.name = name
        self.log = log
        self.pid = child.pid
        self.start_ticks = start_ticks(child.pid) or 0

    def __repr__(self) -> str:
        return f"Process({self.name!r}, pid={self.pid})"

    @property
    def status(self) -> int | None:
        """Exit status, minus the signal that killed it, or None while it runs."""
        return self._child.poll()

    @property
    def alive(self) -> bool:
        return self.status is None

    def send_signal(self, signum: int) -> None:
        """To the process alone, if it is still there."""
        self._child.send_signal(signum)

    def wait(self, deadline: Deadline) -> int:
        """Its exit status (see :attr:`status`). :raises DeadlineError: when it still runs at the deadline."""
        if not _exited(self._child, deadline):
            raise DeadlineError(
                f"{self.name} (pid {self.pid}): still running after {deadline.duration_ns / NS_PER_S:g} s"
            )
        return self._child.wait()

    def stop(self, deadline: Deadline | None = None) -> int:
        """End it: SIGTERM, at the *deadline* (2 s by default) SIGKILL, and SIGKILL to what is left of its group.

        Idempotent. :returns: its exit status.
        """
        if self._child.returncode is None:
            self._child.send_signal(signal.SIGTERM)
            _exited(self._child, deadline or Deadline(_STOP_NS))
            # Not reaped yet, so its number cannot have become another group's.
            if self._child.returncode is None:
                _signal_group(self.pid, signal.SIGKILL)
        return self._child.wait()

    def last_lines(self, count: int = _STDERR_LINES) -> str:
        """The end of its log, for error messages."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _CHUNK_BYTES))
                lines = file.read(_CHUNK_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join([line.strip() for line in lines if line.strip()][-count:])

    def require_alive(self) -> None:
        """:raises HostError: when it has ended, with how it ended and the end of its log."""
        status = self.status
        if status is not None:
            raise HostError(f"{self.name} ended: {describe_status(status)}: {self.last_lines()}; log: {self.log}")


def spawn(
    argv: Sequence[str],
    *,
    netns_pid: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    log: Path,
    name: str | None = None,
) -> Process:
    """Start a long-lived child: its own session, standard input from /dev/null, output appended to *log*.

    It lives until it is stopped; whatever ends the run, the sandbox takes it along.

    :param pass_fds: descriptors that it inherits, under the same numbers.
    :param env: added to this process's environment.
    :raises CommandError: when it cannot be started.
    """
    with log.open("ab", buffering=0) as output:
        child = _start(
            in_netns(argv, netns_pid),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            env={**os.environ, **(env or {})},
        )
    return Process(child, name or Path(argv[0]).name, log)


def python_environment() -> dict[str, str]:
    """What a Python child needs to import this very ``bench``, wherever it is started.

    PYTHONSAFEPATH keeps the current directory, which is the user's, out of the module search path (Python 3.11 on).
    OPENBLAS_NUM_THREADS spares numpy, when it is imported, a thread for each processor: nobody here needs them, and to
    start them takes a third of a process's start.
    """
    root = str(Path(bench.__file__).resolve().parents[1])
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
    path = os.pathsep.join([root, *others])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}


def spawn_child(
    module: str,
    *,
    peer: str,
    extra_args: Sequence[str] = (),
    netns_pid: int | None = None,
    env: Mapping[str, str] | None = None,
    log: Path,
) -> tuple[Process, Channel]:
    """Start ``python -m MODULE --channel-fd N EXTRA_ARGS`` with a channel to it.

    :param peer: what to call it in messages.
    :returns: the process and this side of the channel, which the caller closes.
    """
    channel, other = Channel.pair("runner", peer)
    try:
        argv = [sys.executable, "-m", module, "--channel-fd", str(other.fileno()), *extra_args]
        environment = {**python_environment(), **(env or {})}
        process = spawn(argv, netns_pid=netns_pid, pass_fds=(other.fileno(),), env=environment, log=log, name=peer)
    except BaseException:
        channel.close()
        raise
    finally:
        other.close()
    return process, channel
