"""Holding another process still for a moment, by ptrace.

Not SIGSTOP: if the holder dies, the kernel lets a ptraced process run on, while a stopped one would stay stopped.
Needs CAP_SYS_PTRACE. Source: ptrace(2), "PTRACE_SEIZE" and "PTRACE_INTERRUPT"; the numbers are those of all platforms.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from bench.errors import MemoryTrackingError

_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_WALL = 0x40000000  # __WALL: wait for threads too


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """No thread of the process runs inside this context. Enter and leave it from one and the same thread.

    :raises MemoryTrackingError: when the process is gone or may not be held.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace = libc.ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    threads: dict[int, int] = {}  # thread -> the signal to hand on when it is let go
    try:
        while new := sorted(_threads(pid) - threads.keys()):  # threads may start threads until all are held
            for thread in new:
                _stop(ptrace, thread, threads)
        yield
    finally:
        for thread, signal_number in threads.items():
            ptrace(_PTRACE_DETACH, thread, None, ctypes.c_void_p(signal_number or None))


def _threads(pid: int) -> set[int]:
    try:
        return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    except OSError as error:
        raise MemoryTrackingError(f"process {pid} cannot be held still: {error.strerror}") from error


def _stop(ptrace: ctypes._NamedFuncPointer, thread: int, threads: dict[int, int]) -> None:
    for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
        if ptrace(request, thread, None, None) < 0:
            code = ctypes.get_errno()
            if code == errno.ESRCH and request == _PTRACE_SEIZE:
                return  # the thread ended meanwhile
            raise MemoryTrackingError(
                f"thread {thread} of the guest cannot be held still: {os.strerror(code)}",
                "run as root (CAP_SYS_PTRACE), without another debugger",
            )
        threads[thread] = 0
    try:
        _, status = os.waitpid(thread, _WALL)
    except ChildProcessError as error:
        raise MemoryTrackingError(f"thread {thread} of the guest ended while it was held") from error
    if not os.WIFSTOPPED(status):
        raise MemoryTrackingError(f"thread {thread} of the guest ended while it was held")
    event = status >> 16
    if not event:  # stopped by a signal that was on its way, not by the interrupt: deliver it afterwards
        threads[thread] = os.WSTOPSIG(status)
