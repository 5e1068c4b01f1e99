"""``python -m MODULE ARGUMENTS`` as a fork of this process: a child at once, where an interpreter takes 0.2 to 0.3 s
of a processor to start and to import what this one has imported already.

A guest's processes are made this way while its migration is being set up: three interpreters in a row were nine tenths
of that phase. The child has what :class:`subprocess.Popen` would have given it (descriptors, session, group, namespaces
and limits); only its memory begins as a copy of this one's. Fork while there is one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from bench.host.kernel import set_parent_death_signal

_ARG_START: Final = 45  # of /proc/PID/stat after the name, which ends with the last ")": fields 48 and 49 of proc(5)
_CRASHED: Final = os.EX_SOFTWARE


class Forked:
    """As much of :class:`subprocess.Popen` as the bench uses."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """:raises subprocess.TimeoutExpired: when it still runs after *timeout* seconds."""
        if self.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            finally:
                os.close(pidfd)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fork(
    main: Callable[[list[str]], int],
    arguments: Sequence[str],
    *,
    pass_fds: Iterable[int] = (),
    output: int | None = None,
    start_new_session: bool = False,
    dies_with_parent: bool = False,
) -> Forked:
    """A child that runs *main* of a module with *arguments* and ends with what that returns.

    :param pass_fds: descriptors that it inherits, under the same numbers; all others are closed in it.
    :param output: where its standard output and error go; None: where this process's go. Standard input: /dev/null.
    :param dies_with_parent: it is killed when this thread ends, until it asks for another signal, or for none.
    """
    parent = os.getpid()

    def run() -> int:
        if dies_with_parent:
            set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != parent:
                return _CRASHED
        return main(list(arguments))

    argv = [sys.executable, "-m", main.__module__, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        run_forked(run, argv, pass_fds, output, start_new_session=start_new_session)
    return Forked(pid, argv)


def run_forked(
    main: Callable[[], int | None],
    argv: Sequence[str],
    pass_fds: Iterable[int],
    output: int | None,
    *,
    start_new_session: bool,
) -> NoReturn:
    """In a fork: as :func:`fork`. What this copy holds of its parent's is never taken apart, only forgotten."""
    status: int | None = _CRASHED
    try:
        gc.freeze()
        if start_new_session:
            os.setsid()
        _take_descriptors({*pass_fds}, output)
        _reset()
        _retitle(argv)
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)


def keep_only(wanted: Container[int]) -> None:
    """Close all of this process's descriptors but these."""
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd not in wanted:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(fd)


def _take_descriptors(keep: set[int], output: int | None) -> None:
    faulthandler.disable()  # it keeps a descriptor of its own
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    keep_only({0, 1, 2, *keep})
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd in keep:
        os.set_inheritable(fd, True)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for this process's life
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115


def _reset() -> None:
    """What an exec would have reset: handlers of signals and of the log."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().handlers.clear()


def _retitle(argv: Sequence[str]) -> None:
    """Say in /proc/PID/cmdline what this process is, as far as there is room: over the arguments that this process's
    ancestor was started with, as setproctitle(3) of the BSDs does.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        begin, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
        room = end - begin
        if begin and room > 1 and len(Path("/proc/self/cmdline").read_bytes()) <= room:
            words = "\0".join(argv).encode()[: room - 1]
            ctypes.memmove(begin, words.ljust(room, b"\0"), room)
