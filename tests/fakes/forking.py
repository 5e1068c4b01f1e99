"""`python -m MODULE`, or `bench`, as a fork of this process: the same code, without the start of an interpreter.

A migration starts four Python processes, and their starting costs ten times what moving a small guest does; `bench run`
needs a second of a processor before it begins. Tests of many migrations or runs import the modules once and fork. The
child gets what :class:`subprocess.Popen` would have given it: its descriptors, environment, session and namespace; only
its memory begins as a copy of this process's.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.host.kernel import CLONE_NEWNET, setns

_Popen = subprocess.Popen


class Forked:
    """As much of :class:`subprocess.Popen` as the bench uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if timeout is not None:
                    _wait_for(pidfd, timeout, self.args)
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            finally:
                os.close(pidfd)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _wait_for(pidfd: int, timeout: float, args: Sequence[str]) -> None:
    import select

    if not select.select([pidfd], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired(list(args), timeout)


def popen(args: Sequence[str], **options: Any) -> Any:
    """:class:`subprocess.Popen`, or a fork when *args* are this Python with ``-m`` and nobody wants its output.

    ``mnexec`` or ``nsenter`` before it may name the network namespace.
    """
    words = [str(word) for word in args] if not isinstance(args, str) else []
    netns_pid = ""
    if words[:2] == ["mnexec", "-a"]:
        netns_pid, words = words[2], words[3:]
    elif words[:2] == ["nsenter", "--net"] and words[3:4] == ["--"]:
        netns_pid, words = words[2].removeprefix("--target="), words[4:]
    piped = subprocess.PIPE in (options.get("stdin"), options.get("stdout"), options.get("stderr"))
    if words[:2] != [sys.executable, "-m"] or piped:
        return _Popen(args, **options)

    def run() -> None:
        sys.modules.pop(words[2], None)  # as it is when an interpreter starts with it
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)

    return _forked(words[2:], run, options, netns_pid)


def start_bench(args: Sequence[str], **options: Any) -> Forked:
    """`bench` with these arguments; *options* are those of :class:`subprocess.Popen`, stdout and stderr given as files.

    Only ``/proc/PID/cmdline`` is another one, and that of what `bench` forks; what it executes has its own.
    """
    import bench.cli
    import bench.runner

    return _forked(["bench", *map(str, args)], bench.cli.main, options)


def _forked(argv: Sequence[str], run: Callable[[], None], options: dict[str, Any], netns_pid: str = "") -> Forked:
    pid = os.fork()
    if pid:
        return Forked(pid, argv)
    status = 70
    try:
        gc.freeze()  # what this copy holds of its parent's must not be taken apart here
        _become(netns_pid, options)
        sys.argv = list(argv)
        # pytest rewrites the modules of a package that brings a plugin, which ours does, and its loader has no code for
        # runpy; a new interpreter has no such thing.
        sys.meta_path[:] = [
            finder for finder in sys.meta_path if type(finder).__module__ != "_pytest.assertion.rewrite"
        ]
        warnings.resetwarnings()
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _become(netns_pid: str, options: dict[str, Any]) -> None:
    if options.get("start_new_session"):
        os.setsid()
    if netns_pid:
        fd = os.open(f"/proc/{netns_pid}/ns/net", os.O_RDONLY)
        setns(fd, CLONE_NEWNET)
    null = os.open(os.devnull, os.O_RDWR)
    output = {subprocess.DEVNULL: null, None: 1}
    stdout = options.get("stdout")
    target = output[stdout] if stdout in (None, subprocess.DEVNULL) else _fileno(stdout)
    stderr = options.get("stderr")
    errors = target if stderr == subprocess.STDOUT else 2 if stderr is None else _fileno(stderr)
    os.dup2(null, 0)
    target, errors = os.dup(target), os.dup(errors)
    os.dup2(target, 1)
    os.dup2(errors, 2)
    keep = sorted(options.get("pass_fds", ()))
    low = 3
    for fd in keep:
        os.closerange(low, fd)
        os.set_inheritable(fd, True)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if options.get("env") is not None:
        os.environ.clear()
        os.environ.update(options["env"])
    for path in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if path and path not in sys.path:
            sys.path.insert(0, path)
    logging.getLogger().handlers.clear()  # pytest's
    logging.disable(logging.NOTSET)
    for logger in logging.root.manager.loggerDict.values():  # what other tests' libraries did to them
        if isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fileno(file: Any) -> int:
    return file if isinstance(file, int) else int(file.fileno())


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Within, every process that the bench starts is a fork where it can be."""
    import bench.guest.process
    import bench.guest.vcpu
    import bench.migration.destination
    import bench.migration.source  # noqa: F401

    subprocess.Popen = popen  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        subprocess.Popen = _Popen  # type: ignore[misc]
