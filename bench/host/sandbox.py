"""The sandbox of a run: namespaces of its own, which the kernel empties whatever ends the run, SIGKILL included.

::

    bench (outer)      waits, passes notices on; in the terminal's foreground process group
      +-- init         PID 1 of the new pid namespace: reaps orphans, passes notices on; leader of a session of its own
            +-- runner executes main()
                  +-- everything else of the run

The pid namespace dies with its PID 1: when init ends, for whatever reason, the kernel kills every process in it, and
with the last of them go the network namespaces with their interfaces and the mounts. Init ends when the runner does,
when the outer process does (PR_SET_PDEATHSIG, and the end of file of the pipe between them, which also covers a parent
that died before prctl), or by SIGKILL.

**Notices.** A notice asks the run to stop: SIGINT, SIGTERM or SIGHUP. Init's own session keeps the terminal's signals,
which go to the foreground process group, away from the runner and all its children; only the outer process gets them,
and writes the signal's number into the pipe to init, which sends it to the runner. So the runner gets exactly one
notice, as :class:`KeyboardInterrupt` (SIGINT) or its subclass :class:`Terminated`. One key press may reach the outer
process twice (from the terminal and from a wrapper such as timeout(1) or sudo): for :data:`SAME_NOTICE_NS` it counts as
one. A further notice kills the sandbox, and so does a tear-down that takes longer than its grace period; unless the
runner says that Ctrl-C was for something else and that it goes on (:func:`interrupt_answered`), as a command line does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

import bench.errors
from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, HostError, MachineError
from bench.host import kernel

SAME_NOTICE_NS = 300 * NS_PER_MS
GRACE_NS = 30 * NS_PER_S
OPEN_FILES = 65536

_MAX_REPORT_BYTES = 1 << 20
_NOTICES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCHED = (*_NOTICES, signal.SIGCHLD)
_REMEDY = "start the container with `docker run --privileged`, or run on a machine of your own"


class Terminated(KeyboardInterrupt):
    """The run was asked to stop by SIGTERM or SIGHUP (``signum``); handled wherever Ctrl-C is."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_status(notice: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (notice.signum if isinstance(notice, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def notices_held() -> Iterator[None]:
    """While the body runs notices wait; the first of them raises at its end. For work that must not end half done."""
    came: list[int] = []
    # Not a signal mask: another thread would take the signal, and Python would raise in this one all the same.
    former = {signum: signal.signal(signum, lambda signum, _frame: came.append(signum)) for signum in _NOTICES}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


_answer: Callable[[], None] | None = None  # in a runner


def interrupt_answered() -> None:
    """In a runner: whatever Ctrl-C was for has been done, and nothing is torn down. The next one is the first again.

    Idempotent, and without effect on a notice that asks for the end (SIGTERM, SIGHUP).
    """
    if _answer is not None:
        _answer()


def require_root() -> None:
    """:raises MachineError: when this process is not root's."""
    if os.geteuid() != 0:
        raise MachineError("the bench makes network namespaces and switches: it must run as root", "use `sudo`")


def run_in_sandbox(main: Callable[[], int], *, grace_ns: int = GRACE_NS) -> int:
    """Run *main* in a new sandbox and wait for it. Call it from the main thread.

    *main* runs in a fork of this process, in network, mount and pid namespaces of its own with a fresh /proc and /sys,
    loopback up and IPv6 off. It must stop what it started when it sees :class:`KeyboardInterrupt`; whatever is left is
    killed when it returns.

    :param grace_ns: how long the tear-down after a notice may take.
    :returns: what *main* returned; 130 (143, 129) when it ended by SIGINT's (SIGTERM's, SIGHUP's) exception;
        128 + the signal that killed the runner; 1 after an unexpected exception, whose traceback was printed.
    :raises BenchError: the one that *main* raised, of the same class.
    :raises MachineError: no root, or this machine does not let us make the namespaces.
    """
    require_root()
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(os.memfd_create("bench-report"), "r+b", buffering=0) as report:
        status = _Outer(main, report.fileno(), grace_ns).run()
        error = _read_report(report.fileno())
    if error is not None:
        raise error
    return status


def call_in_sandbox(function: Callable[[], Any], *, grace_ns: int = GRACE_NS) -> Any:
    """What *function*, run in a sandbox of its own, returned: anything that JSON can hold.

    :raises BenchError: as :func:`run_in_sandbox`.
    :raises HostError: when it did not return.
    """
    with os.fdopen(os.memfd_create("bench-value"), "r+b", buffering=0) as file:

        def main() -> int:
            file.write(json.dumps(function()).encode())
            return 0

        status = run_in_sandbox(main, grace_ns=grace_ns)
        if status >= 128:
            raise Terminated(status - 128) if status - 128 in _NOTICES else HostError(f"sandbox ended: status {status}")
        if status != 0:
            raise HostError(f"sandbox ended: status {status}")
        file.seek(0)
        return json.loads(file.read())


class _Outer:
    """The outer process's side."""

    def __init__(self, main: Callable[[], int], report_fd: int, grace_ns: int) -> None:
        self._main = main
        self._report_fd = report_fd
        self._grace_ns = grace_ns
        self._first_ns: int | None = None
        self._kill_at: Deadline | None = None
        self._interrupted = False  # all that was noticed so far was Ctrl-C

    def run(self) -> int:
        lifeline, self._notices = os.pipe2(os.O_CLOEXEC)
        self._answers, answers = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._notices)
            stack.callback(os.close, self._answers)
            with contextlib.closing(_Signals(_NOTICES)) as signals:
                # Job control would stop this process alone and leave the run going on unwatched.
                former = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
                stack.callback(signal.signal, signal.SIGTSTP, former)
                try:
                    pid = self._fork_init(lifeline, answers, signals)
                finally:
                    os.close(lifeline)
                    os.close(answers)
                self._pidfd = os.pidfd_open(pid)
                stack.callback(os.close, self._pidfd)
                try:
                    self._watch(signals)
                finally:  # nothing gets past here while the sandbox lives
                    self._kill()
                    _pid, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _fork_init(self, lifeline: int, answers: int, signals: _Signals) -> int:
        """Fork PID 1 of a new pid namespace; only children are moved into it, and later ones are not."""
        with contextlib.ExitStack() as stack:
            try:
                here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, here)
                kernel.unshare(kernel.CLONE_NEWPID)
            except OSError as error:
                raise _machine_error("a pid namespace", error) from error
            stack.callback(kernel.setns, here, kernel.CLONE_NEWPID)
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            pid = os.fork()
            if pid == 0:
                os.close(self._notices)  # else the pipe would never end
                os.close(self._answers)
                signals.forget()
                init = _Init(self._main, lifeline, answers, self._report_fd, mask)
                _exit_with(init.run, self._report_fd)
        return pid

    def _watch(self, signals: _Signals) -> None:
        """Until init ends: pass notices on."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(signals.fileno(), select.POLLIN)
        poll.register(self._answers, select.POLLIN)
        while True:
            timeout_ms = None if self._kill_at is None else self._kill_at.remaining_ns // NS_PER_MS + 1
            ready = dict(poll.poll(timeout_ms))
            if self._pidfd in ready:
                return
            if self._answers in ready and not self._read_answers():
                poll.unregister(self._answers)
            if self._kill_at is not None and self._kill_at.expired:
                print(f"bench: not torn down within {self._grace_ns / NS_PER_S:g} s: killed", file=sys.stderr)  # noqa: T201
                self._kill_at = None
                self._kill()
            for signum in signals.read():
                if signum in _NOTICES:
                    self._notice(signum)

    def _read_answers(self) -> bool:
        """The runner goes on after Ctrl-C. :returns: False when nothing more can come: it has ended."""
        said = os.read(self._answers, 64)
        if said and self._interrupted:
            self._first_ns = self._kill_at = None
        return bool(said)

    def _notice(self, signum: int) -> None:
        if self._first_ns is None:
            self._first_ns = now_ns()
            self._interrupted = signum == signal.SIGINT
            self._kill_at = Deadline(self._grace_ns)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._notices, bytes([signum]))
        elif now_ns() - self._first_ns > SAME_NOTICE_NS:
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class _Init:
    """PID 1 of the sandbox; sets it up, forks the runner, then reaps and passes notices on until the runner ends."""

    def __init__(
        self, main: Callable[[], int], lifeline: int, answers: int, report_fd: int, mask: Iterable[int]
    ) -> None:
        self._main = main
        self._lifeline = lifeline
        self._answers = answers
        self._report_fd = report_fd
        self._mask = mask

    def run(self) -> int:
        kernel.set_parent_death_signal(signal.SIGKILL)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.setsid()
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN)
        if any(events & select.POLLHUP for _fd, events in poll.poll(0)):
            return 1  # the outer process died before prctl
        _set_up_namespaces()
        _raise_limits()
        with contextlib.closing(_Signals(_WATCHED)) as signals:
            runner = os.fork()
            if runner == 0:
                signals.forget()
                os.close(self._lifeline)
                _exit_with(lambda: _run(self._main, self._answers, self._mask), self._report_fd)
            os.close(self._answers)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            kernel.set_process_name("bench-init")
            return self._watch(runner, signals)

    def _watch(self, runner: int, signals: _Signals) -> int:
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN)
        poll.register(signals.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll())
            notices = [signum for signum in signals.read() if signum in _NOTICES]
            if self._lifeline in ready:
                data = os.read(self._lifeline, 64)
                if not data:
                    return 1  # the outer process is gone
                notices += data
            code = _reap(runner)
            if code is not None:
                return code
            for signum in notices:  # not reaped: the runner's number is still its own
                os.kill(runner, signum)


def _reap(runner: int) -> int | None:
    """Reap whatever has ended; the runner's exit code if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == runner:
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code


def _run(main: Callable[[], int], answers: int, mask: Iterable[int]) -> int:
    """The runner: notices become exceptions, then *main*. Signals are blocked until now; *mask* was the outer's."""
    global _answer  # noqa: PLW0603 - of this process, which is this runner and nothing else
    noticed = 0

    def notice(signum: int, _frame: FrameType | None) -> None:
        nonlocal noticed
        if noticed:
            return  # the tear-down is under way; the outer process kills the sandbox when asked again
        noticed = signum
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(signum)

    def answer() -> None:
        nonlocal noticed
        if noticed == signal.SIGINT:
            noticed = 0
            with contextlib.suppress(OSError):  # the outer process is gone
                os.write(answers, b"!")

    _answer = answer
    for signum in _NOTICES:
        signal.signal(signum, notice)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return main()


def _set_up_namespaces() -> None:
    """New network and mount namespaces for this process; see :func:`run_in_sandbox` for what they hold.

    /sys is mounted afresh because the old one shows the old namespace's interfaces; what lies under /sys/fs/cgroup is
    carried over.
    """
    try:
        kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
    except OSError as error:
        raise _machine_error("network and mount namespaces", error) from error
    guarded = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("proc", "/proc", "proc", guarded)
        with _held("/sys/fs/cgroup") as cgroups:
            kernel.mount("sysfs", "/sys", "sysfs", guarded)
            if cgroups is not None:
                kernel.mount(f"/proc/self/fd/{cgroups}", "/sys/fs/cgroup", None, kernel.MS_BIND | kernel.MS_REC)
        kernel.set_interface_up("lo")
    except OSError as error:
        raise _machine_error("a sandbox", error) from error
    kernel.switch_ipv6_off()


@contextlib.contextmanager
def _held(path: str) -> Iterator[int | None]:
    """A descriptor that keeps a directory reachable when something is mounted over it; None when there is none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _raise_limits() -> None:
    """What Mininet's fixLimits (which we never call: it changes the whole system) does and a run needs.

    Every Mininet node holds three descriptors of the runner, every switch port some of Open vSwitch's; both inherit.
    Locked memory: some kernels count packet rings and maps. Where raising is not allowed, what there is has to do.
    """
    for kind, wanted in ((resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)):
        _soft, hard = resource.getrlimit(kind)
        above = hard if hard == resource.RLIM_INFINITY or hard > wanted >= 0 else wanted
        for limit in (above, hard):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (limit, limit))
                break


def _machine_error(what: str, error: OSError) -> MachineError:
    remedy = _REMEDY
    if error.errno == errno.ENOSPC:
        remedy = "raise the limits under /proc/sys/user/max_*_namespaces"
    elif error.errno == errno.EINVAL:
        remedy = "use a kernel with network, mount and pid namespaces (CONFIG_NET_NS, CONFIG_PID_NS)"
    return MachineError(f"this machine does not let us make {what}: {error.strerror}", remedy)


class _Signals:
    """Signals as bytes on a descriptor that poll understands, instead of interrupting whatever runs.

    Restores the former handlers when closed; in a fork, :meth:`forget` resets them to the kernel's defaults.
    """

    def __init__(self, signums: tuple[signal.Signals, ...]) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._former_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._former = {signum: signal.signal(signum, lambda _signum, _frame: None) for signum in signums}

    def fileno(self) -> int:
        return self._read_fd

    def read(self) -> bytes:
        """The numbers of the signals that came since the last call."""
        try:
            return os.read(self._read_fd, 256)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for signum, former in self._former.items():
            signal.signal(signum, former if former is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._former_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for signum in self._former:
            signal.signal(signum, signal.SIG_DFL)
        os.close(self._read_fd)
        os.close(self._write_fd)


def _exit_with(body: Callable[[], int], report_fd: int) -> NoReturn:
    """End a forked process with what *body* returns, without running the exit handlers it inherited."""
    code = 1
    try:
        code = body()
    except KeyboardInterrupt as notice:
        code = exit_status(notice)
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    except BenchError as error:
        _write_report(report_fd, error)
    except BaseException as error:  # the last frame of the process
        full = bench.errors.of_full_disk(error) if isinstance(error, OSError) else None
        if full is not None:
            _write_report(report_fd, full)
        else:
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code & 0xFF)


def _write_report(fd: int, error: BenchError) -> None:
    limit = _MAX_REPORT_BYTES // 16  # a character may take 12 bytes in JSON
    report = {"class": type(error).__name__, "message": error.message[:limit], "remedy": error.remedy[:limit]}
    os.pwrite(fd, json.dumps(report).encode(), 0)


def _read_report(fd: int) -> BenchError | None:
    """The error that ended the runner or init; an unknown class becomes :class:`BenchError`."""
    data = os.pread(fd, _MAX_REPORT_BYTES, 0)
    if not data:
        return None
    raw = json.loads(data)
    kind = getattr(bench.errors, raw["class"], HostError)
    error: BenchError = kind.__new__(kind)
    BenchError.__init__(error, raw["message"], raw["remedy"])  # a subclass may take other arguments
    return error
