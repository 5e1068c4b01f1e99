"""``bench`` on another machine: by SSH, its result directory back by SFTP (paramiko).

The machine is known by its host key before anything is said to it: from a known_hosts file, or by the fingerprint that
the user gives. An unknown or a different key ends the attempt; nobody is asked to trust it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import paramiko

from bench.errors import HostError, ResultError

CONNECT_S: Final = 20.0
QUIET_S: Final = 30.0
MAX_FILES: Final = 20_000
MAX_BYTES: Final = 16 << 30
_CHUNK: Final = 1 << 15


@dataclass(frozen=True)
class Target:
    """Where to, and how that machine is known.

    :param known_hosts: a file in OpenSSH's format; not needed with *fingerprint*.
    :param fingerprint: ``SHA256:...`` as ``ssh-keygen -lf`` prints it.
    :param identity: a private key's file; without one the agent and the usual files are tried.
    """

    user: str
    host: str
    port: int = 22
    known_hosts: Path | None = None
    fingerprint: str = ""
    identity: Path | None = None

    @classmethod
    def parse(cls, text: str, **more: Any) -> Target:
        """``user@host`` or ``user@host:port``. :raises ValueError: it is neither."""
        user, at, place = text.rpartition("@")
        host, colon, port = place.rpartition(":") if place.count(":") == 1 else (place, "", "")
        if not at or not user or not host or (colon and not port.isdecimal()):
            raise ValueError("user@host or user@host:port")
        return cls(user, host, int(port) if port else 22, **more)


class _Pinned(paramiko.MissingHostKeyPolicy):
    """Accepts the one key that the user named; any other is refused."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def missing_host_key(self, _client: Any, hostname: str, key: Any) -> None:
        found = fingerprint_of(key)
        if found != self._fingerprint:
            wanted = f"not {self._fingerprint}" if self._fingerprint else "which is not known"
            raise HostError(
                f"{hostname}: its host key is {found}, {wanted}",
                "compare it on that machine (`ssh-keygen -lf` of its host key's .pub file) and name it by --host-key",
            )


def fingerprint_of(key: Any) -> str:
    """OpenSSH's SHA256 fingerprint of a public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


class Remote:
    """A connection to the machine; a context manager.

    :raises HostError: it is not reachable, its key is not the known one, or it lets nobody in.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._client = paramiko.SSHClient()

    def __enter__(self) -> Remote:
        target = self._target
        try:
            if target.known_hosts is not None and not target.fingerprint:
                self._client.load_host_keys(str(target.known_hosts))
            elif not target.fingerprint:
                self._client.load_system_host_keys()
            self._client.set_missing_host_key_policy(_Pinned(target.fingerprint))
            self._client.connect(
                target.host,
                port=target.port,
                username=target.user,
                key_filename=str(target.identity) if target.identity is not None else None,
                allow_agent=target.identity is None,
                look_for_keys=target.identity is None,
                timeout=CONNECT_S,
                banner_timeout=CONNECT_S,
                auth_timeout=CONNECT_S,
            )
        except paramiko.BadHostKeyException as error:
            self._client.close()
            found = fingerprint_of(error.key)
            raise HostError(
                f"{target.host}: its host key is {found}, not the known one", "find out why before going on"
            ) from None
        except (OSError, paramiko.SSHException) as error:
            self._client.close()
            raise HostError(f"{target.user}@{target.host}:{target.port}: {error}", "try it by `ssh` first") from None
        except HostError:
            self._client.close()
            raise
        transport = self._client.get_transport()
        if transport is not None:
            transport.set_keepalive(15)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def run(self, words: Sequence[str], tell: Callable[[bytes], None]) -> int:
        """Run a command with its output to *tell* as it comes; returns its exit code.

        :raises HostError: the connection was lost.
        """
        transport = self._client.get_transport()
        if transport is None:
            raise HostError(f"{self._target.host}: not connected")
        with contextlib.closing(transport.open_session(timeout=CONNECT_S)) as channel:
            channel.set_combine_stderr(True)
            channel.exec_command(shlex.join(words))  # SSH has no argument lists: each word is quoted
            channel.settimeout(QUIET_S)
            while True:
                try:
                    data = channel.recv(_CHUNK)
                except TimeoutError:
                    if transport.is_active():
                        continue
                    raise HostError(
                        f"{self._target.host}: the connection was lost", "the run there may go on"
                    ) from None
                if not data:
                    break
                tell(data)
            code = channel.recv_exit_status()
        if code < 0:
            raise HostError(f"{self._target.host}: the connection was lost", "the run there may go on")
        return int(code)

    @contextlib.contextmanager
    def directory(self) -> Iterator[PurePosixPath]:
        """A new directory on that machine, removed at the end."""
        said: list[bytes] = []
        if self.run(["mktemp", "-d", "/tmp/bench-remote.XXXXXXXX"], said.append) != 0:  # noqa: S108 - mktemp's own
            raise HostError(f"{self._target.host}: no directory can be made: {b''.join(said).decode(errors='replace')}")
        made = PurePosixPath(b"".join(said).decode().strip())
        try:
            yield made
        finally:
            with contextlib.suppress(HostError, OSError, paramiko.SSHException):
                self.run(["rm", "-rf", "--", str(made)], said.append)

    def put(self, local: Path, remote: PurePosixPath) -> None:
        """Send a file. :raises HostError: that failed."""
        try:
            with self._client.open_sftp() as sftp:
                sftp.put(str(local), str(remote))
        except (OSError, paramiko.SSHException) as error:
            raise HostError(f"{local}: cannot be sent to {self._target.host}: {error}") from None

    def get_tree(self, remote: PurePosixPath, local: Path) -> int:
        """Fetch a directory; returns the number of files. Links and devices are left there.

        :raises ResultError: it is too large. :raises HostError: the transfer failed.
        """
        try:
            with self._client.open_sftp() as sftp:
                return _get_tree(sftp, remote, local, [MAX_FILES, MAX_BYTES])
        except (OSError, paramiko.SSHException) as error:
            raise HostError(f"{remote} on {self._target.host}: cannot be fetched: {error}") from None


def _get_tree(sftp: Any, remote: PurePosixPath, local: Path, room: list[int]) -> int:
    local.mkdir(parents=True, exist_ok=True)
    count = 0
    for entry in sftp.listdir_attr(str(remote)):
        if entry.filename in ("", ".", "..") or "/" in entry.filename or "\0" in entry.filename:
            raise ResultError(f"{remote}: a file is called {entry.filename[:100]!r}")
        if stat.S_ISDIR(entry.st_mode or 0):
            count += _get_tree(sftp, remote / entry.filename, local / entry.filename, room)
        elif stat.S_ISREG(entry.st_mode or 0):
            room[0] -= 1
            room[1] -= entry.st_size or 0
            if min(room) < 0:
                raise ResultError(f"{remote}: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB")
            sftp.get(str(remote / entry.filename), str(local / entry.filename))
            count += 1
    return count
