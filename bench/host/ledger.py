"""The run directory, and the ledger in it of everything that may outlive a run that is killed.

Most of a run dies with its sandbox. What can stay behind after SIGKILL are files and control groups; they are written
into ``ledger.json`` *before* they are created. Whoever cleans up removes what ledgers of dead runs hold, and nothing
else.

::

    /run/migration-bench/            0700, owned by the bench's user (root)
      3f9c01d2a4e8/                  0700, unpredictable: one run
        ledger.json                  locked (flock) by the outer process for as long as the run lives
        events/*.jsonl  logs/*

``ledger.json`` has the members schema, run, pid and start_ticks (of the outer process), pid_namespace (its inode),
boot_id, files, cgroups. One process at a time adds to it: the outer one, or the runner while there is one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import DeadlineError, HostError, MachineError
from bench.host.kernel import boot_id, start_ticks

RUNS = Path("/run/migration-bench")
SCHEMA = "migration-bench/ledger/1"
LEDGER = "ledger.json"
MAX_LEDGER_BYTES = 1 << 20
MAX_SOCKET_PATH_BYTES = 107  # sun_path, unix(7)

_RUN_ID = re.compile(r"[0-9a-f]{12}")
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_NS = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Ledger:
    """What ``ledger.json`` says: whose run this is and what it may leave behind, oldest first."""

    run: str
    pid: int
    start_ticks: int
    pid_namespace: int
    boot_id: str
    files: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()

    @classmethod
    def of_this_process(cls, run: str) -> Ledger:
        pid = os.getpid()
        return cls(run, pid, start_ticks(pid) or 0, _pid_namespace(), boot_id())

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, data: bytes) -> Ledger:
        """:raises HostError: when *data* is no ledger of this version, or names what no ledger may hold."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise HostError(f"not JSON: {error}") from None
        if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
            raise HostError(f"its schema is not {SCHEMA!r}")
        kinds: dict[str, type] = {"run": str, "pid": int, "start_ticks": int, "pid_namespace": int, "boot_id": str}
        if raw.keys() != {*kinds, "files", "cgroups"} or not all(isinstance(raw[key], kinds[key]) for key in kinds):
            raise HostError("members are missing, unknown or of the wrong type")
        lists: dict[str, tuple[str, ...]] = {}
        for key in ("files", "cgroups"):
            paths = raw.pop(key)
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise HostError(f"{key} is no list of paths")
            for path in paths:
                _check_path(Path(path), below=_CGROUPS if key == "cgroups" else None)
            lists[key] = tuple(paths)
        return cls(**raw, files=lists["files"], cgroups=lists["cgroups"])

    def owner_lives(self) -> bool:
        """True when the process that wrote this is still there: the same pid *and* start time, since the same boot.

        In another pid namespace pids say nothing; there only the lock on the ledger does (:func:`is_locked`).
        """
        if self.boot_id != boot_id() or self.pid_namespace != _pid_namespace():
            return False
        return start_ticks(self.pid) == self.start_ticks


def _check_path(path: Path, below: Path | None) -> None:
    """:raises HostError: for a path that a ledger must not hold: relative, with "..", or not *below* a directory."""
    if not path.is_absolute() or ".." in path.parts or (below is not None and below not in path.parents):
        raise HostError(f"a ledger must not hold the path {str(path)[:200]!r}")


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _open_base(base: Path, *, create: bool) -> int:
    """A descriptor of the directory that holds the runs.

    :raises MachineError: when it is a symbolic link, another user's, or writable by others.
    :raises FileNotFoundError: when it is not there and *create* is False.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            base.mkdir(mode=0o700)
    try:
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:  # a symbolic link, too
        raise MachineError(f"{base} is not a directory", f"remove {base}") from None
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise MachineError(f"{base} belongs to another user or others may write to it", f"remove {base}")
    return fd


class RunDirectory:
    """The directory of one run with its ledger. Create it in the *outer* process, before the sandbox.

    A context manager; leaving it, or :meth:`close`, removes everything that the ledger holds and the directory. A fork
    of the process that created it may record but does not close.

    :ivar path: the directory.
    :ivar run_id: its name.
    """

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.run_id = path.name
        self._ledger = ledger
        self._owner = os.getpid()
        self._lock_fd = -1

    @classmethod
    def create(cls, base: Path = RUNS) -> RunDirectory:
        """:raises MachineError: when *base* cannot be made or cannot be trusted."""
        try:
            base_fd = _open_base(base, create=True)
        except OSError as error:
            raise MachineError(f"{base}: {error.strerror}", "run as root on a machine with a writable /run") from error
        try:
            while True:
                run_id = secrets.token_hex(6)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(run_id, 0o700, dir_fd=base_fd)
                    break
        finally:
            os.close(base_fd)
        run = cls(base / run_id, Ledger.of_this_process(run_id))
        run._write()
        for part in (run.events, run.logs):
            part.mkdir(mode=0o700)
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def socket(self, name: str) -> Path:
        """The path of a Unix socket in this run. :raises HostError: when it is too long for one."""
        path = self.path / name
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise HostError(f"{path}: longer than the {MAX_SOCKET_PATH_BYTES} bytes of a Unix socket's path")
        return path

    def record_file(self, path: Path) -> Path:
        """Note a file outside of the run directory that is about to be created and goes when the run does."""
        _check_path(path, below=None)
        self._ledger = replace(self._ledger, files=(*self._ledger.files, str(path)))
        self._write()
        return path

    def record_cgroup(self, path: Path) -> Path:
        """Note a control group that is about to be created; parents first, since they are removed in reverse."""
        _check_path(path, below=_CGROUPS)
        self._ledger = replace(self._ledger, cgroups=(*self._ledger.cgroups, str(path)))
        self._write()
        return path

    def _write(self) -> None:
        """Replace the ledger as a whole; the new file is locked before it gets its name."""
        fresh = self.path / f"{LEDGER}.{secrets.token_hex(4)}"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, self._ledger.to_json().encode())
        fresh.replace(self.path / LEDGER)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = fd

    def close(self) -> None:
        """Remove everything. Idempotent. :raises HostError: naming what could not be removed, after trying all."""
        if os.getpid() != self._owner or self._lock_fd < 0:
            return
        # A fork (the sandbox's runner) may have added to the ledger: what counts is the file.
        problems = remove_run(self.path)
        os.close(self._lock_fd)
        self._lock_fd = -1
        if problems:
            raise HostError(f"run {self.run_id}: not removed: {'; '.join(problems)}", "`bench clean` tries again")


def read_ledger(run: Path) -> Ledger:
    """The ledger of a run directory. :raises HostError: missing, too large, or broken; the message names it."""
    path = run / LEDGER
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise HostError(f"{path}: not a regular file")
            data = file.read(MAX_LEDGER_BYTES + 1)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_LEDGER_BYTES:
        raise HostError(f"{path}: more than {MAX_LEDGER_BYTES} bytes")
    try:
        ledger = Ledger.from_json(data)
    except HostError as error:
        raise HostError(f"{path}: {error.message}") from None
    if ledger.run != run.name:
        raise HostError(f"{path}: it is the ledger of another run")
    return ledger


def is_locked(run: Path) -> bool:
    """True while the process that made this run, or one of its sandbox, lives. :raises OSError: without a ledger."""
    fd = os.open(run / LEDGER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def run_directories(base: Path = RUNS) -> Iterator[Path]:
    """The directories in *base* that are named like runs. :raises MachineError: when *base* cannot be trusted."""
    try:
        fd = _open_base(base, create=False)
    except FileNotFoundError:
        return
    try:
        names = sorted(entry.name for entry in os.scandir(fd) if entry.is_dir(follow_symlinks=False))
    finally:
        os.close(fd)
    yield from (base / name for name in names if _RUN_ID.fullmatch(name))


def remove_run(run: Path) -> list[str]:
    """Remove what a run's ledger holds, then its directory; returns what could not be removed.

    The directory, and with it the ledger, stays when something did, so that the next try finds it.

    :raises HostError: when the ledger is missing or broken; nothing is removed then.
    """
    ledger = read_ledger(run)
    problems = []
    for remove, paths in ((_remove_file, ledger.files), (_remove_cgroup, ledger.cgroups)):
        for path in reversed(paths):
            problem = remove(Path(path))
            if problem:
                problems.append(f"{path}: {problem}")
    if not problems:
        try:
            shutil.rmtree(run)
        except OSError as error:
            problems.append(f"{error.filename or run}: {error.strerror}")
    return problems


def _remove_file(path: Path) -> str:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _remove_cgroup(path: Path) -> str:
    """rmdir of it and the groups below it, for a moment again and again: the last processes may still be on their way
    out.
    """

    def gone() -> bool:
        try:
            for below, _directories, _files in os.walk(path, topdown=False):
                Path(below).rmdir()
            path.rmdir()
        except OSError:
            return not path.exists()
        return True

    try:
        wait_until(gone, Deadline(_CGROUP_NS), f"{path} is empty")
    except DeadlineError as error:
        return error.message
    return ""
