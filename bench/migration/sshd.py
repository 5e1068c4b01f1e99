"""A real sshd for one migration, our own child: own keys, own configuration, one address, one thing allowed.

It only forwards, to the destination engine's port, for whoever has the key that was made for this migration. It runs in
a mount namespace of its own whose /run is fresh: there are its privilege separation's directory, its host key and its
configuration, seen by nobody else and gone with it. No service of the machine is touched.

Run as ``python -m bench.migration.sshd FD``, where FD brings the files as JSON, this makes that namespace and becomes
the sshd.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError, MigrationError
from bench.host import kernel
from bench.host.commands import Process, python_environment, spawn
from bench.host.openssh import find_sshd

DIRECTORY: Final = Path("/run/migration")
READY_NS: Final = 20 * NS_PER_S
STOP_NS: Final = NS_PER_S
_MS_REC_PRIVATE: Final = (1 << 14) | (1 << 18)
_MS_BIND: Final = 1 << 12
_LISTENS: Final = "Server listening on"

CONFIGURATION: Final = """\
ListenAddress {address}
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
UseDNS no
AllowUsers root
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding local
PermitOpen {forward}
GatewayPorts no
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PermitTunnel no
PermitTTY no
PermitUserRC no
MaxSessions 0
LoginGraceTime 20
ClientAliveInterval 3
ClientAliveCountMax 3
MaxStartups 100
PerSourceMaxStartups 10
"""


class Sshd:
    """One sshd. :meth:`stop` is idempotent.

    :param forward: address and port of the one connection that it may make.
    :param credentials: host_key (PEM) and authorized (a public key).
    :param beside: a file beside which its log goes.
    :ivar port: where it listens.
    """

    def __init__(
        self, address: str, port: int, forward: tuple[str, int], credentials: Mapping[str, Any], beside: Path
    ) -> None:
        self.port = port or _free_port(address)
        self._address = address
        self._forward = f"{forward[0]}:{forward[1]}"
        self._credentials = credentials
        self._log = beside.with_name(f"sshd-{address}-{self.port}.log")
        self._process: Process | None = None

    def start(self) -> None:
        """:raises MigrationError: when it does not listen in time."""
        files = {
            "sshd_config": CONFIGURATION.format(
                address=self._address, port=self.port, directory=DIRECTORY, forward=self._forward
            ),
            "host_key": str(self._credentials.get("host_key", "")),
            "authorized_keys": f'restrict,port-forwarding,permitopen="{self._forward}" '
            f"{self._credentials.get('authorized', '')}\n",
        }
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(files).encode())
            self._log.touch()
            seen = self._log.stat().st_size
            process = self._process = spawn(
                [sys.executable, "-m", "bench.migration.sshd", find_sshd(), str(reading), str(os.getpid())],
                pass_fds=[reading],
                env=python_environment(),
                log=self._log,
                name="sshd",
            )
        finally:
            os.close(reading)

        def listens() -> bool:
            process.require_alive()
            with self._log.open("rb") as log:
                log.seek(seen)
                return _LISTENS.encode() in log.read(1 << 16)

        try:
            wait_until(listens, Deadline(READY_NS), "sshd listening", 10 * NS_PER_MS)
        except BenchError as error:
            raise MigrationError(f"the sshd for the migration did not start: {error.message}") from error

    def cpu_ns(self) -> int:
        """What it and its children have used so far."""
        if self._process is None or not self._process.alive:
            return 0
        family, found = {self._process.pid}, 0
        tick_ns = NS_PER_S // os.sysconf("SC_CLK_TCK")
        stats = _stats()
        grew = True
        while grew:
            grew = False
            for pid, (parent, _ticks) in stats.items():
                if parent in family and pid not in family:
                    family.add(pid)
                    grew = True
        for pid in family:
            found += stats.get(pid, (0, 0))[1] * tick_ns
        return found

    def stop(self) -> None:
        """End it. What it tunnels ends with the engines' connections."""
        if self._process is not None:
            self._process.stop(Deadline(STOP_NS))
            self._process = None


def _stats() -> dict[int, tuple[int, int]]:
    """Of every process: its parent, and its CPU time with that of children it waited for, in clock ticks (proc(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(fields[1]), sum(int(text) for text in fields[11:15]))
    return found


def _free_port(address: str) -> int:
    with socket.socket() as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            raise MigrationError(f"cannot listen for a migration on {address}: {error.strerror}") from error
        return int(sock.getsockname()[1])


def become_sshd(program: str, files: Mapping[str, str], parent: int) -> None:
    """Private mounts, the files, then the program. Does not return."""
    kernel.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, _MS_REC_PRIVATE)
    kernel.mount("tmpfs", "/run", "tmpfs", 0)
    os.umask(0o077)
    Path("/run/sshd").mkdir()
    Path("/run/sshd").chmod(0o755)
    Path("/run").chmod(0o755)
    DIRECTORY.mkdir()
    for name, text in files.items():
        (DIRECTORY / name).write_text(text, encoding="ascii")
    if Path("/etc/shadow").exists():  # a root account without a password is locked, which sshd without PAM refuses
        shadow = DIRECTORY / "shadow"
        shadow.write_text("root:*:19000:0:99999:7:::\nsshd:*:19000::::::\n", encoding="ascii")
        kernel.mount(str(shadow), "/etc/shadow", None, _MS_BIND)
    os.execv(program, [program, "-D", "-e", "-f", str(DIRECTORY / "sshd_config")])  # noqa: S606


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "rb") as source:
        given = json.loads(source.read(1 << 16))
    become_sshd(sys.argv[1], given, int(sys.argv[3]))
