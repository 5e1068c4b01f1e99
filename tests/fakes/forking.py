"""`python -m MODULE`, or `bench`, as a fork of this process: the same code, without the start of an interpreter.

A migration starts four Python processes, and their starting costs ten times what moving a small guest does; `bench run`
needs a second of a processor before it begins. Tests of many migrations or runs import the modules once and fork. The
child gets what :class:`subprocess.Popen` would have given it: its descriptors, environment, session and namespace; only
its memory begins as a copy of this process's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.host import forking as product
from bench.host.kernel import CLONE_NEWNET, setns

_Popen = subprocess.Popen


class Forked(product.Forked):
    """As much of :class:`subprocess.Popen` as the bench and its tests use."""

    stdin = stdout = stderr = None


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

    What it forks has no more room for its ``/proc/PID/cmdline`` than pytest had; what it executes has its own.
    """
    import bench.cli
    import bench.runner

    return _forked(["bench", *map(str, args)], bench.cli.main, options)


def _forked(argv: Sequence[str], run: Callable[[], None], options: dict[str, Any], netns_pid: str = "") -> Forked:
    def main() -> None:
        _undo_pytest()
        sys.argv = list(argv)
        run()

    pid = os.fork()
    if not pid:
        try:
            _become(netns_pid, options)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        session = bool(options.get("start_new_session"))
        title = [sys.executable, "-m", *argv]
        product.run_forked(main, title, options.get("pass_fds", ()), None, start_new_session=session)
    return Forked(pid, argv)


def _become(netns_pid: str, options: dict[str, Any]) -> None:
    if netns_pid:
        with Path(f"/proc/{netns_pid}/ns/net").open("rb") as place:
            setns(place.fileno(), CLONE_NEWNET)
    null = os.open(os.devnull, os.O_RDWR)
    stdout, stderr = options.get("stdout"), options.get("stderr")
    for target, file in ((1, stdout), (2, stdout if stderr == subprocess.STDOUT else stderr)):
        if file is not None:
            os.dup2(null if file == subprocess.DEVNULL else _fileno(file), target)
    if options.get("env") is not None:
        os.environ.clear()
        os.environ.update(options["env"])
    for path in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if path and path not in sys.path:
            sys.path.insert(0, path)


def _undo_pytest() -> None:
    """What a new interpreter would not have."""
    # pytest rewrites the modules of a package that brings a plugin, which ours does, and its loader has no code for
    # runpy.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_pytest.assertion.rewrite"]
    for name in ("memory.own", "guest.process", "guest.vcpu", "migration.arrival"):
        if module := sys.modules.get(f"bench.{name}"):
            module.own_memory = int  # type: ignore[attr-defined] - pytest's memory is ten times a guest process's
    warnings.resetwarnings()
    logging.disable(logging.NOTSET)
    for logger in logging.root.manager.loggerDict.values():  # what other tests' libraries did to them
        if isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


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
