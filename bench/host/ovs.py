"""Open vSwitch as private daemons of a run, and the Mininet switch that uses them. The system's daemons stay untouched.

Database, sockets and pid files live in one directory of the run. ``ovs-vsctl``, ``ovs-ofctl`` and ``ovs-appctl`` find
them through ``OVS_RUNDIR`` (ovs-appctl(8)), which :meth:`OpenVSwitch.environment` puts into this process's environment
for Mininet's nodes, and takes out again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import CommandError, DeadlineError, HostError, MachineError
from bench.host.commands import Process, run, spawn

Datapath = Literal["kernel", "user"]

_START_NS = 15 * NS_PER_S
_COMMAND_NS = 15 * NS_PER_S
_CALL_NS = 5 * NS_PER_S
_MAX_REPLY_BYTES = 16 << 20
_PROBE_DATAPATH = "bench-probe"
_REMEDY = "install the package openvswitch-switch (`make setup` does)"


def kernel_datapath_problem() -> str:
    """Why the kernel datapath does not work here, found by creating one in this network namespace; "" when it works."""
    try:
        run(["ovs-dpctl", "add-dp", _PROBE_DATAPATH], deadline=Deadline(_COMMAND_NS))
    except CommandError as error:
        return error.message.rpartition(": ")[2]
    run(["ovs-dpctl", "del-dp", _PROBE_DATAPATH], deadline=Deadline(_COMMAND_NS), check=False)
    return ""


def ovs_version() -> str:
    """Such as ``"3.1.0"``. :raises CommandError: when ovs-vswitchd cannot be run."""
    text = run(["ovs-vswitchd", "--version"], deadline=Deadline(_COMMAND_NS)).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else "unknown"


class ControlSocket:
    """A connection to a daemon's control socket: JSON-RPC 1.0 without delimiters (``lib/unixctl.c``, ovs-appctl(8)).

    Kept open, so that a monitor can ask about a thousand times a second. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """:raises OSError: when nobody listens at *path*."""
        self.path = path
        self._decoder = json.JSONDecoder()
        self._next_id = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(_CALL_NS / NS_PER_S)
            self._sock.connect(str(path))
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def call(self, method: str, *params: str, deadline: Deadline | None = None) -> str:
        """The text that ``ovs-appctl METHOD PARAMS`` prints.

        :raises HostError: the daemon refused, is gone, or sent no JSON-RPC.
        :raises DeadlineError: no answer in time (5 s by default).
        """
        deadline = deadline or Deadline(_CALL_NS)
        self._next_id += 1
        request = {"id": self._next_id, "method": method, "params": list(params)}
        try:
            self._sock.settimeout(deadline.remaining_s or 1e-6)
            self._sock.sendall(json.dumps(request).encode())
            reply = self._receive(deadline)
        except TimeoutError as error:
            raise DeadlineError(f"{self.path.name}: {method}: no answer in time") from error
        except OSError as error:
            raise HostError(f"{self.path.name}: {method}: {error.strerror}") from error
        if reply.get("id") != self._next_id:
            raise HostError(f"{self.path.name}: {method}: answer to another question")
        if reply.get("error") is not None:
            raise HostError(f"{self.path.name}: {method}: {str(reply['error']).strip()[:1000]}")
        return str(reply.get("result") or "")

    def _receive(self, deadline: Deadline) -> dict[str, object]:
        buffer = b""
        while len(buffer) <= _MAX_REPLY_BYTES:
            self._sock.settimeout(deadline.remaining_s or 1e-6)
            data = self._sock.recv(1 << 16)
            if not data:
                raise HostError(f"{self.path.name}: the daemon closed its control socket")
            buffer += data
            if not buffer.rstrip().endswith(b"}"):
                continue  # cheap test first: decoding a long reply after every piece would cost a square
            try:
                reply = self._decoder.decode(buffer.decode())
            except ValueError:
                continue
            if isinstance(reply, dict):
                return reply
            break
        raise HostError(f"{self.path.name}: an answer that is no JSON object, or over {_MAX_REPLY_BYTES} bytes")


class OpenVSwitch:
    """One private ``ovsdb-server`` and ``ovs-vswitchd``.

    :param directory: of the run, short (socket paths have 107 bytes); created if need be.
    :param datapath: ``auto`` takes the kernel datapath where it works, else the userspace datapath.
    :param beside_others: there are, or will be, other daemons' userspace datapaths in this network namespace.
    :param label: what distinguishes the names of its log files from others'.
    :ivar datapath: ``"kernel"`` or ``"user"``, known after :meth:`start`.
    :ivar datapath_note: why the kernel datapath is not used; "" when it is.
    :ivar version: of ovs-vswitchd, known after :meth:`start`.
    :ivar env: what programs need to find the daemons.
    """

    def __init__(
        self,
        directory: Path,
        datapath: Literal["auto", "kernel", "user"] = "auto",
        *,
        beside_others: bool = False,
        label: str = "",
    ) -> None:
        self.directory = directory
        self.datapath: Datapath = "user"
        self.datapath_note = "the scenario asks for the userspace datapath"
        self.version = ""
        self.env = {name: str(directory) for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")}
        self._wanted = datapath
        self._beside_others = beside_others
        self._label = label
        self._processes: list[Process] = []

    def __enter__(self) -> OpenVSwitch:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> OpenVSwitch:
        """Choose the datapath by trying, start the daemons, and return when both answer.

        :raises MachineError: Open vSwitch is missing, or the kernel datapath was asked for and does not work.
        :raises HostError: a daemon did not start; the message holds the end of its log.
        """
        try:
            self.version = ovs_version()
        except CommandError as error:
            raise MachineError(f"Open vSwitch does not run: {error.message}", _REMEDY) from error
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._choose_datapath()
        deadline = Deadline(_START_NS)
        run(["ovsdb-tool", "create", str(self.directory / "conf.db")], deadline=deadline)
        database = self.directory / "db.sock"
        self._daemon(["ovsdb-server", str(self.directory / "conf.db"), f"--remote=punix:{database}"], deadline)
        # Read once when vswitchd starts. Without it the userspace datapath loses large TCP segments.
        settings = [f"other_config:userspace-tso-enable={str(self.datapath == 'user').lower()}"]
        init = ["ovs-vsctl", "--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings]
        run(init, deadline=deadline, env=self.env)
        only = ["--disable-system"] if self.datapath == "user" else []
        if self.datapath_type == "dummy":
            only.append("--enable-dummy")
        self._daemon(["ovs-vswitchd", f"unix:{database}", *only], deadline)
        return self

    def _choose_datapath(self) -> None:
        if self._wanted == "user":
            return
        problem = kernel_datapath_problem()
        if not problem:
            self.datapath, self.datapath_note = "kernel", ""
        elif self._wanted == "kernel":
            raise MachineError(
                f"Open vSwitch's kernel datapath does not work here: {problem}",
                'load it with `modprobe openvswitch`, or set network.datapath = "auto"',
            )
        else:
            self.datapath_note = f"the kernel datapath does not work here: {problem}"

    def _daemon(self, argv: Sequence[str], deadline: Deadline) -> None:
        """Start one daemon and wait until it answers on its control socket."""
        logging = ["--no-chdir", "--pidfile", "-vconsole:info", "-vsyslog:off", "-vfile:off"]
        log = self.directory / f"{argv[0]}{self._label}.log"
        process = spawn([*argv, *logging], env=self.env, log=log, name=argv[0])
        self._processes.append(process)

        def answers() -> bool:
            process.require_alive()
            try:
                with self.control(argv[0]) as control:
                    return bool(control.call("version", deadline=deadline))
            except OSError:
                return False

        wait_until(answers, deadline, f"{argv[0]} answers", interval_ns=NS_PER_S // 1000)

    def stop(self) -> None:
        """Stop the daemons. Idempotent and bounded."""
        while self._processes:
            self._processes.pop().stop()

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """While the body runs, programs started by this process find the daemons (:attr:`env`)."""
        former = {name: os.environ.get(name) for name in self.env}
        os.environ.update(self.env)
        try:
            yield
        finally:
            for name, value in former.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    @property
    def datapath_type(self) -> str:
        """What a bridge's ``datapath_type`` has to be (ovs-vswitchd.conf.db(5)); see :mod:`bench.host.ovs_daemons` for
        ``dummy``.
        """
        if self.datapath == "kernel":
            return "system"
        return "dummy" if self._beside_others else "netdev"

    @property
    def processes(self) -> tuple[Process, ...]:
        """ovsdb-server and ovs-vswitchd."""
        return tuple(self._processes)

    def control(self, daemon: str = "ovs-vswitchd") -> ControlSocket:
        """A new connection to a daemon's control socket; the caller closes it.

        :raises OSError: when it does not listen.
        """
        return ControlSocket(self.control_path(daemon))

    def control_path(self, daemon: str = "ovs-vswitchd") -> Path:
        """Where a daemon's control socket is. :raises HostError: when it is not running."""
        process = next((process for process in self._processes if process.name == daemon), None)
        if process is None:
            raise HostError(f"{daemon} is not running")
        return self.directory / f"{daemon}.{process.pid}.ctl"

    def appctl(self, method: str, *params: str) -> str:
        """One question to ovs-vswitchd over a connection of its own; see :meth:`ControlSocket.call`."""
        with self.control() as control:
            return control.call(method, *params)

    def vsctl(self, *arguments: str) -> str:
        """Run ovs-vsctl; returns when ovs-vswitchd has done what the database says.

        :raises CommandError: when it fails.
        :raises HostError: when ovs-vswitchd could not set up an interface or a bridge.
        """
        done = run(
            ["ovs-vsctl", f"--timeout={_COMMAND_NS // NS_PER_S}", *arguments],
            deadline=Deadline(2 * _COMMAND_NS),
            env=self.env,
        )
        if "Error detected" in done.stderr:
            raise HostError(f"ovs-vsctl {' '.join(arguments)[:300]}: {done.stderr.strip()[:1000]}")
        return done.stdout

    def switch_class(self, controller_port: int | None = None, *, controller_target: str | None = None) -> type:
        """The Mininet switch class of these daemons: ``Mininet(topo, switch=ovs.switch_class())``.

        :param controller_port: of a controller at 127.0.0.1 that every switch connects to, besides those that Mininet
            knows of. Without any controller a switch learns by itself.
        :param controller_target: the same in Open vSwitch's words, such as ``unix:FILE``.
        """
        from bench.host.ovs_switch import BenchSwitch  # noqa: PLC0415  only here Mininet is needed

        target = f"tcp:127.0.0.1:{controller_port}" if controller_port is not None else controller_target
        members: dict[str, object] = {"daemons_of": staticmethod(lambda _switch: self), "isSetup": True}
        members["controller_target"] = target
        if controller_target is not None:  # nobody knows what it speaks
            members["default_protocols"] = "OpenFlow10,OpenFlow13"
        return type("BenchSwitch", (BenchSwitch,), members)
