"""The guests of a testbed: booting them, and speaking to each of them wherever it is.

Everything that belongs to one guest is named after it: control sockets, events, logs, the lease.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bench.announcing import announcement
from bench.clock import NS_PER_S, Deadline
from bench.disks import Storage
from bench.errors import BenchError, DeadlineError, GuestError, HostError
from bench.guest.client import GuestControl, guest_command
from bench.host.cgroup import FULL_PPM
from bench.host.commands import Process, describe_status, python_environment, spawn
from bench.memory.trace import load_trace
from bench.plan import Plan
from bench.scenario import GuestSpec, Scenario

BRIDGE: Final = "br0"
CONNECT_NS: Final = 30 * NS_PER_S
BOOT_NS: Final = 120 * NS_PER_S
QUIT_NS: Final = 5 * NS_PER_S


class Housed(Protocol):
    """What must be known of a hypervisor: a process in its network namespace."""

    @property
    def pid(self) -> int: ...


@dataclass
class RunningGuest:
    """A guest where it is now: *control* speaks to the process that runs it."""

    spec: GuestSpec
    host: str
    control: GuestControl
    socket_path: Path
    process: Process | None = None
    lost: str = ""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def alive(self) -> bool:
        """False when the process that runs it has ended: its end of the control connection is closed."""
        return not self.control.channel.peer_closed()

    def death(self) -> str:
        """That it died, and how if that is known."""
        process = self.process
        how = f": {describe_status(process.status)}" if process is not None and process.status is not None else ""
        return f"guest {self.name} on {self.host} died{how}"


class Guests:
    """All guests of a run, by name, in the scenario's order. Iterating gives those that were booted.

    :param directory: the run directory.
    :param stack: of the testbed: what is started here is registered there first.
    :ivar place: puts a process under the limits of its hypervisor; *vcpu_group*: where groups of vCPUs belong there.
    :ivar limited: the hypervisors that had limits before their guests booted.
    """

    def __init__(
        self, scenario: Scenario, plan: Plan, directory: Path, stack: contextlib.ExitStack, storage: Storage
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.directory = directory
        self.storage = storage
        self._stack = stack
        self._running: dict[str, RunningGuest] = {}
        self._boots = 0
        self.limited: set[str] = set()
        self.place: Callable[[str, int], None] = lambda _host, _pid: None
        self.vcpu_group: Callable[[str], str] = lambda _host: ""

    def __iter__(self) -> Iterator[RunningGuest]:
        return iter(self._running.values())

    def __getitem__(self, name: str) -> RunningGuest:
        """:raises HostError: when it does not run."""
        if name not in self._running:
            raise HostError(f"guest {name} does not run")
        return self._running[name]

    def places(self) -> dict[str, str]:
        """Guest -> host, of those that are not lost."""
        return {guest.name: guest.host for guest in self if not guest.lost}

    # what is named after a guest

    def lease_path(self, name: str) -> Path:
        return self.directory / f"{name}.lease"

    def paths(self, name: str, host: str) -> tuple[Path, Path, Path]:
        """Socket, events file and log of the next process of a guest on *host*."""
        self._boots += 1
        label = f"{name}.{host}.{self._boots}"
        return (
            self.directory / f"{label}.sock",
            self.directory / "events" / f"guest.{label}.jsonl",
            self.directory / "logs" / f"guest.{label}.log",
        )

    def configuration(self, name: str, host: str, *, skeleton: bool = False) -> dict[str, Any]:
        """What a process of this guest is told by ``configure``."""
        guest = self.scenario.guest_named(name)
        workload = guest.workload
        return {
            "name": guest.name,
            "host": host,
            "memory_bytes": guest.memory,
            "vcpus": guest.vcpus,
            "store_bytes": guest.store_memory,
            "content": guest.content.model_dump(),
            "image": str(Path(guest.image).resolve()) if guest.image else None,
            "seed": workload.seed,
            "mac": guest.mac,
            "address": f"{guest.address}/{self.plan.prefix_length}",
            "address6": guest.address6,
            "vlan": self._tag(guest.vlan, host),
            "cards": [
                {
                    "mac": card.mac,
                    "address": card.address,
                    "address6": card.address6,
                    "vlan": self._tag(card.vlan, host),
                }
                for card in guest.all_cards[1:]
            ],
            "bridge": BRIDGE,
            "workload": {
                "pattern": workload.pattern,
                "rate_bytes_per_s": workload.rate,
                "working_set_bytes": workload.working_set,
                "hot_share": workload.hot_share,
                "write_bytes": workload.write_bytes,
                "seed": workload.seed,
                **_trace(workload.trace),
            },
            "own_flows": sorted(
                {
                    flow.kind
                    for flows in self.plan.flows_of(name).values()
                    for flow in flows
                    if flow.direction == "from-guest"
                }
            ),
            "storage": self.storage.configuration(guest),
            "skeleton": skeleton,
            "lease": {"path": str(self.lease_path(name)), "me": host},
            "chatter_ns": guest.chatter,
            "mtu": self.plan.guest_mtu,
            "accepts_mtu": self.plan.uplink_mtu,
            "huge_pages": guest.huge_pages,
            "vcpu_limits": {"share_ppm": round(guest.vcpu_cpu * 10**6) or FULL_PPM, "cores": list(guest.vcpu_cores)},
            "vcpu_group": self.vcpu_group(host),
            "keep_unread": guest.keep_unread,
            "gateway": guest.gateway or self.plan.gateway,
            "sysctls": for_interface(self.scenario.network.guest_sysctls, "eth0"),
        }

    def _tag(self, vlan: int, host: str) -> int:
        """What a card's port puts on its frames: nothing where the hypervisor's own port has the VLAN."""
        return 0 if self.scenario.network.vlans.get(host, 0) == vlan else vlan

    def announcement(self, name: str, delay_ns: int = 0, *, faulty: bool = False) -> dict[str, Any]:
        """Frames and times of a guest's announcement, as its ``start`` and ``take`` want them.

        :param delay_ns: how much later than scheduled it begins.
        :param faulty: with the faults that the scenario asks for: those of a migration, not of the boot.
        """
        return announcement(self.scenario.announce, self.scenario.guest_named(name), delay_ns, faulty=faulty)

    # life

    def boot_all(self, hypervisors: Mapping[str, Housed], notify: Callable[[str], None]) -> None:
        """Start every guest on its host. :raises BenchError: with the end of its log when one does not start."""
        spawned = []
        for guest in self.scenario.guests:
            host = self.plan.homes[guest.name]
            notify(f"booting {guest.name} on {host}")
            spawned.append((guest, host, *self._spawn(guest, host, hypervisors[host].pid)))
        for guest, host, process, socket_path in spawned:
            self._configure(guest, host, process, socket_path)

    def _spawn(self, guest: GuestSpec, host: str, netns_pid: int) -> tuple[Process, Path]:
        socket_path, events, log = self.paths(guest.name, host)
        process = spawn(
            guest_command(socket_path, events, log),
            netns_pid=netns_pid,
            env=python_environment(),
            log=log,
            name=f"guest {guest.name} on {host}",
        )
        self._stack.callback(process.stop)
        self.place(host, process.pid)  # before it has any memory, so that this counts as the hypervisor's
        return process, socket_path

    def _configure(self, guest: GuestSpec, host: str, process: Process, socket_path: Path) -> None:
        try:
            control = GuestControl.connect(
                socket_path, deadline=Deadline(CONNECT_NS), alive=lambda: process.alive, peer=process.name
            )
            self._stack.callback(control.close)
            control.configure(self.configuration(guest.name, host), Deadline(BOOT_NS))
            control.start(self.announcement(guest.name), Deadline(CONNECT_NS))
        except BenchError as error:
            if not process.alive:
                raise HostError(f"{process.name} died: {process.last_lines()}") from error
            raise
        self._running[guest.name] = RunningGuest(guest, host, control, socket_path, process)

    def follow(self, name: str, host: str, socket_path: Path) -> None:
        """After a migration: speak to the process that runs it now. :raises BenchError: when it is not there."""
        former = self[name]
        former.control.close()
        control = GuestControl.connect(socket_path, deadline=Deadline(CONNECT_NS), peer=f"guest {name} on {host}")
        self._stack.callback(control.close)
        self._running[name] = RunningGuest(former.spec, host, control, socket_path)

    def quit(self) -> None:
        """End all of them, wherever they are."""
        for guest in self:
            with contextlib.suppress(BenchError):
                guest.control.quit(Deadline(QUIT_NS))

    def forget_all(self) -> None:
        """Once they have ended: nothing of them or of their disks is left that a guest of the same name could find."""
        for name in (guest.name for guest in self.scenario.guests):
            for left in (f"{name}.*.sock", f"{name}.lease", f"events/guest.{name}.*", f"events/engine.*-{name}.*"):
                for path in self.directory.glob(left):
                    path.unlink(missing_ok=True)
        self._running.clear()
        self.storage.forget()

    # looking at them

    def require_alive(self) -> None:
        """Not for use during a migration, at whose end the guest's process at the source ends.

        :raises GuestError: when a guest's process has ended that is not known to be lost.
        """
        for guest in self:
            if not guest.lost and not guest.alive:
                raise GuestError(guest.death())

    def stats(self, *, quiet: bool = True) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """What each guest says of itself, and why some say nothing.

        :param quiet: end their disk workloads, with everything on the disks.
        """
        told: dict[str, dict[str, Any]] = {}
        problems: list[str] = []
        for guest in self:
            answer = _stats(guest, quiet)
            if isinstance(answer, BenchError):
                which = f" {guest.name}" if len(self._running) > 1 else ""
                problems.append(f"guest{which}: it does not answer at the end of the run: {answer.message}")
            else:
                told[guest.name] = answer
        return told, problems


def _stats(guest: RunningGuest, quiet: bool) -> dict[str, Any] | BenchError:
    try:
        return dict(guest.control.stats(quiet=quiet))
    except (HostError, GuestError, DeadlineError) as error:
        return error


@functools.lru_cache(maxsize=64)
def _trace(name: str | None) -> dict[str, str]:
    """A workload's trace, and the file's digest, so that every hypervisor replays the same."""
    if name is None:
        return {}
    path = Path(name).resolve()
    return {"trace": str(path), "trace_digest": load_trace(path).digest}


def for_interface(sysctls: Mapping[str, str | int], interface: str) -> dict[str, str | int]:
    """Kernel parameters by name, ``{dev}`` in a name replaced."""
    return {name.replace("{dev}", interface): value for name, value in sysctls.items()}
