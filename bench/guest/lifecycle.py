"""A process guest from configuration to the end: who may do what when, and in which order a switchover happens.

States, and the calls that lead from one to the other::

    new --configure--> ready ----start----------> running <--resume-- paused
     \\--configure--> skeleton --load--> loaded --take--^   --pause----^

Orders (why: the facts of TCP_REPAIR, see :mod:`bench.guest.tcp_repair`)::

    pause   stop reading, stop the vCPUs | drain | cut the network | accept what waits | memory stands still: tell |
            dump every socket
    resume  reclaim the lease | wire | leave repair | vCPUs run | serve
    load    neighbours, sockets (in repair), vCPU registers
    take    claim the lease | vCPUs run | wire | announce | leave repair, unsent bytes | serve

The vCPUs stop before the network is cut, and the sockets are dumped after it, so that nothing which the guest did after
its state was taken ever leaves it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, GuestError
from bench.flows.notes import SUFFIX, NoteFile
from bench.guest import device_state
from bench.guest.announcer import Announcement, Announcer, Chatter, Send
from bench.guest.cards import GuestCards
from bench.guest.clients.outbound import prepare
from bench.guest.config import GuestConfig
from bench.guest.device_parts import DeviceParts, decode_own
from bench.guest.device_state import DeviceState
from bench.guest.disks import GuestDisks, NoDisks
from bench.guest.journal import Journal
from bench.guest.loop import Loop
from bench.guest.namespace import own_network_namespace
from bench.guest.port import GUEST_INTERFACE
from bench.guest.services.base import Machine
from bench.guest.services.redis import replay
from bench.guest.sockets import Sockets, log_lost
from bench.guest.states import State
from bench.guest.stats import applied, guest_stats
from bench.guest.store import Store
from bench.guest.throttle import VcpuThrottle
from bench.guest.vcpu_client import VCPU_NS, Vcpu, pause_all, start_all
from bench.guest.vcpu_limits import VcpuLimits
from bench.guest.watched_memory import WatchedMemory
from bench.guest.workload import split
from bench.host.kernel import set_sysctls
from bench.host.lease import Lease
from bench.host.memfd import memfd_of
from bench.memory.image import PAGE_BYTES, GuestMemory

_VCPU_START_NS = 60 * NS_PER_S

log = logging.getLogger("guest")

_WITH_MEMORY = tuple(state for state in State if state not in (State.NEW, State.STOPPED))


class ProcessGuest:
    """The guest of this process: calling :meth:`configure` moves the process to a network namespace of its own.

    :param died: called when a vCPU process ended by itself: the guest is broken.
    """

    def __init__(self, loop: Loop, events_path: Path, died: Callable[[str], None]) -> None:
        self.state = State.NEW
        self._loop = loop
        self._events_path = events_path
        self._died = died
        self._config: GuestConfig
        self._lease: Lease
        self._memory: GuestMemory
        self._machine: Machine
        self._port: GuestCards | None = None
        self._announcer: Announcer | None = None
        self._chatter: Chatter | None = None
        self._sockets: Sockets | None = None
        self._prepared: Sockets  # of a skeleton
        self._vcpus: list[Vcpu] = []
        self._throttle: VcpuThrottle | None = None
        self._limits: VcpuLimits | None = None
        self._watched: WatchedMemory | None = None
        self._disks: NoDisks = NoDisks()
        self._generation = 0
        self._owner = ""
        self._journal: Journal | None = None

    # boot

    def configure(self, config: GuestConfig, memory: GuestMemory | None = None) -> None:
        """:param memory: what to run in; None: make it.
        :raises GuestError: when anything is refused; the process is of no use then.
        """
        self._need(State.NEW)
        self._config = config
        prepare(config.own_flows)
        self._journal = Journal(self._events_path, f"guest.{config.host}")
        self._lease = Lease(config.lease_path)
        self._port = GuestCards(config.name, config.bridge, config.cards)
        if config.disks is not None:  # in this network namespace, which is the hypervisor's
            owner = config.name, config.host
            self._disks = GuestDisks(self._loop, owner, config.disks, self._died, self._record)
        namespace = own_network_namespace()
        try:
            self._port.create(namespace, config.gateway, config.mtu, config.accepts_mtu)
            refused = set_sysctls(config.sysctls)
            if refused:
                raise GuestError(f"the guest's network stack refuses {', '.join(refused)}")
        finally:
            os.close(namespace)
        self._announcer = Announcer(self._port.interfaces, self._loop, self._announced)
        if config.chatter_ns:
            self._chatter = Chatter(GUEST_INTERFACE, self._loop, config.chatter_ns, config.ip)
        self._memory = memory or GuestMemory.create(config.memory_bytes, config.name, huge=config.huge_pages)
        if not config.skeleton:
            self._memory.populate()
            if config.image is not None:
                self._memory.load_image(config.image)
            else:
                self._memory.fill(config.content, config.seed)
            if config.huge_pages:
                self._memory.require_huge()
            self._sockets = self._open_sockets(self._make_machine(Store.format(self._store_region())))
        else:  # what load would do first, while there is time
            self._prepared = self._open_sockets(None)
            device_state.rehearse()
        parameters = split(config.workload, config.memory_bytes, config.store_bytes, config.vcpus)
        self._vcpus = start_all(
            self._memory.fd,
            config.memory_bytes,
            parameters,
            deadline=Deadline(_VCPU_START_NS),
            populate=("idle" if config.populate else "never") if config.skeleton else "first",
        )
        store_page = (config.memory_bytes - config.store_bytes) // PAGE_BYTES
        self._watched = WatchedMemory(self._memory, self._vcpus, store_page)
        label = f"{config.name}.{os.getpid()}"
        self._limits = VcpuLimits(config.vcpu_limits, self._vcpus, config.vcpu_group, label)
        self._throttle = VcpuThrottle(self._vcpus, label, self._limits)
        for vcpu in self._vcpus:
            self._watch(vcpu)
        self.state = State.SKELETON if config.skeleton else State.READY

    def start(self, announcement: Announcement) -> None:
        """:raises GuestError: when another hypervisor holds the lease."""
        self._need(State.READY)
        me = self._config.lease_me
        lease = self._lease.read()
        if lease.owner not in ("", me) or not self._lease.claim(me, lease.owner, lease.generation):
            raise GuestError(f"the guest runs at {self._lease.read().owner} already")
        replay(self._machine, self._disks.boot())
        self._run(announcement)

    # pre-copy

    @property
    def memory(self) -> GuestMemory:
        self._need(*_WITH_MEMORY)
        return self._memory

    def writers(self) -> list[dict[str, int]]:
        """Every process that writes guest memory; see :mod:`bench.guest.watched_memory`."""
        return self._watched_memory().writers()

    def track(self, enable: bool, method: str) -> list[dict[str, int]]:
        """:raises BenchError: when the kernel cannot; tracking is off then."""
        return self._watched_memory().track(enable, method)

    def stop_tracking(self) -> None:
        """Idempotent, in any state."""
        if self._watched is not None:
            self._watched.stop_tracking()

    def expect_pages(self) -> list[int]:
        """See :meth:`bench.guest.watched_memory.WatchedMemory.expect`."""
        self._need(State.SKELETON)
        return self._watched_memory().expect()

    def end_expecting(self) -> None:
        """Idempotent, in any state."""
        if self._watched is not None:
            self._watched.end_expecting()

    def close_door(self) -> int:
        """:returns: how many handshakes are under way."""
        sockets = self.sockets
        sockets.close_door()
        return sockets.embryonic()

    def open_door(self) -> None:
        """Idempotent, in any state."""
        if self._sockets is not None:
            self._sockets.open_door()

    def throttle(self, share_ppm: int, cgroup: str) -> str:
        """:returns: the mechanism."""
        self._need(State.RUNNING)
        assert self._throttle is not None
        return self._throttle.set_share(share_ppm, cgroup)

    def cap_writes(self, writes_per_s: int) -> int:
        """:returns: the writes that all vCPUs have done so far."""
        self._need(State.RUNNING)
        assert self._throttle is not None
        return self._throttle.set_writes(writes_per_s)

    def release_throttle(self) -> None:
        """Idempotent, in any state."""
        if self._throttle is not None:
            self._throttle.release()

    def pause(self, still: Callable[[Mapping[str, int]], object]) -> tuple[int, dict[str, Any]]:
        """Stop and hand out the device state; whatever fails, the guest runs on.

        :param still: called with the times so far when nothing writes memory any more, before sockets are dumped.
        :returns: a memfd with the state, which is the caller's, and the reply.
        """
        sockets = self.sockets
        times = {"pause_begin_ns": now_ns()}
        self._loop.hold_bulk()
        try:
            self._disks.quiesce()
            sockets.freeze()
            self.release_throttle()  # one that is held back could not stop until its next period
            registers = pause_all(self._vcpus, Deadline(VCPU_NS))
            times["vcpus_stopped_ns"] = now_ns()
            sockets.drain()
            self._wired_port().cut()
            times["net_cut_ns"] = now_ns()
            sockets.take_in()
            still(times)
            state = self._dump(sockets, registers)
            self._disks.let_go()
            fd, size = memfd_of("device-state", device_state.encode(state))
            times["dumped_ns"] = now_ns()
        except (BenchError, OSError) as error:
            log.exception("pause failed; the guest runs on")
            self._run_again()
            raise GuestError(f"pause failed, and the guest runs on: {error}") from error
        self.state = State.PAUSED
        for name in ("pause_begin", "vcpus_stopped", "net_cut", "dumped"):
            self._record(name, times[f"{name}_ns"])
        return fd, {
            "device_bytes": size,
            "connections": len(state.streams),
            "times": times,
            "owner": self._config.lease_me,
            "generation": self._generation,
            "embryonic": sockets.embryonic(),
        }

    def resume(self) -> bool:
        """Roll back. :returns: False, and nothing runs, when the lease belongs to another by now."""
        self._need(State.PAUSED)
        me = self._config.lease_me
        if not self._lease.claim(me, me, self._generation):
            return False
        self._run_again()
        self.state = State.RUNNING
        self._record("rolled_back", now_ns())
        return True

    def lease_owner(self) -> str:
        return self._lease.read().owner

    def _dump(self, sockets: Sockets, registers: list[dict[str, Any]]) -> DeviceState:
        lease, me = self._lease.read(), self._config.lease_me
        if lease.owner != me:
            raise GuestError(f"the lease belongs to {lease.owner!r}, not to {me!r}")
        self._generation = lease.generation
        return self._parts(sockets).dump(registers, lease.generation)

    def _run_again(self) -> None:
        """At the source, as if nothing had happened. Each step whatever became of the ones before it."""
        assert self._sockets is not None
        sockets = self._sockets
        self._attempt("wire", self._wired_port().wire)
        self._attempt("connections", lambda: log_lost(sockets.undo()))
        self._attempt("vcpus", self._run_vcpus)
        self._attempt("disks", self._disks.go_on)
        self._attempt("door", sockets.open_door)
        self._attempt("services", sockets.serve)
        self._loop.release_bulk()

    # switchover at the destination

    def load(self, blob: bytes) -> int:
        """Restore everything. Each page must have been there once; what it holds may still change until :meth:`take`.

        :returns: the number of connections.
        :raises GuestError: when the state is broken or not this guest's; nothing is restored then.
        """
        self._need(State.SKELETON)
        state = decode_own(blob, self._config)
        sockets = self._prepared
        sockets.machine = self._make_machine(Store.open(self._store_region()))
        try:
            self._parts(sockets).restore(state)
        except BaseException:
            sockets.close()
            self._prepared = self._open_sockets(None)
            raise
        self._sockets = sockets
        self._generation = state.generation
        self._owner = state.owner
        self.state = State.LOADED
        self._record("loaded", now_ns(), connections=len(state.streams))
        return len(state.streams)

    def take(self, announcement: Announcement, owner: str | None, generation: int | None) -> dict[str, Any]:
        """Claim the lease, THE point at which ownership passes, and run.

        :param owner: who must hold it now, and *generation* which it must be; None: as the device state says.
        :returns: taken, owner, and the times, 0 where it did not come to that.
        """
        self._need(State.LOADED)
        if not all(vcpu.alive for vcpu in self._vcpus):
            raise GuestError("a vCPU died before the guest took over")
        me = self._config.lease_me
        expected = self._generation if generation is None else generation
        times = dict.fromkeys(("ownership_ns", "resumed_ns", "port_wired_ns", "announce_ns"), 0)
        if not self._lease.claim(me, self._owner if owner is None else owner, expected):
            return {"taken": False, "owner": self.lease_owner(), **times}
        times["ownership_ns"] = now_ns()
        self._record("ownership_taken", times["ownership_ns"])
        times.update(self._run(announcement))
        return {"taken": True, "owner": me, **times}

    def _run(self, announcement: Announcement) -> dict[str, int]:
        """From here on this guest runs, whatever goes wrong on the way. :returns: when what happened."""
        assert self._sockets is not None
        assert self._announcer is not None
        assert self._journal is not None
        sockets, announcer, journal = self._sockets, self._announcer, self._journal
        journal.critical = True
        self.state = State.RUNNING
        self._attempt("vcpus", self._run_vcpus)
        resumed_ns = now_ns()
        self._attempt("disks", self._disks.run)
        wired_ns = announce_ns = 0
        if announcement.wire_after_ns:
            self._loop.at(resumed_ns + announcement.wire_after_ns, lambda: self._wire_late(announcement))
        else:
            self._attempt("wire", self._wired_port().wire)
            wired_ns = now_ns()
        if wired_ns or announcement.before_wiring:
            announce_ns = announcer.begin(announcement, wired_ns or resumed_ns)
        self._attempt("connections", lambda: log_lost(sockets.finish()))
        repair_off_ns = now_ns()
        self._attempt("services", sockets.serve)
        self._loop.release_bulk()
        journal.critical = False
        if self._chatter is not None:
            self._chatter.begin()
        self._record("resumed", resumed_ns)
        if wired_ns:
            self._record("port_wired", wired_ns)
        self._record("repair_off", repair_off_ns, connections=len(sockets))
        return {"resumed_ns": resumed_ns, "port_wired_ns": wired_ns, "announce_ns": announce_ns}

    def _wire_late(self, announcement: Announcement) -> None:
        """The hypervisor's port is bound only now, as was asked for."""
        if self.state is State.RUNNING and self._announcer is not None:
            self._attempt("wire", self._wired_port().wire)
            wired_ns = now_ns()
            self._record("port_wired", wired_ns, late=True)
            if not announcement.before_wiring:
                self._announcer.begin(announcement, wired_ns)
            self.flush()

    @property
    def disks(self) -> GuestDisks:
        """:raises GuestError: when the guest has none."""
        if not isinstance(self._disks, GuestDisks):
            raise GuestError("the guest has no disks")
        return self._disks

    @property
    def sockets(self) -> Sockets:
        """:raises GuestError: when the guest does not run."""
        self._need(State.RUNNING)
        assert self._sockets is not None
        return self._sockets

    # the end

    def stats(self, check: bool, quiet: bool = False) -> dict[str, Any]:
        """:param check: verify the memory that the vCPUs wrote; they and the services stand still meanwhile.

        :param quiet: end the disk workload, and wait until everything that was acknowledged is on its disk.
        """
        told = guest_stats(self.state, self._vcpus, self._sockets, self._disks, check=check, quiet=quiet)
        return {**told, "applied": applied(self._config.huge_pages, self._memory, self._vcpus, self._limits)}

    def stop(self, reason: str) -> None:
        """Die silently: the network first. Idempotent; nothing here keeps the rest from being done."""
        if self.state is State.STOPPED:
            return
        self.state = State.STOPPED
        self._loop.hold_bulk()
        if self._port is not None:
            self._attempt("cut", self._port.cut)
            self._attempt("remove", self._port.remove)
        for name, speaker in (("announcer", self._announcer), ("chatter", self._chatter)):
            if speaker is not None:
                self._attempt(name, speaker.close)
        if self._sockets is not None:
            self._attempt("flows", self._sockets.outbound.close)
        self.release_throttle()
        for vcpu in self._vcpus:
            self._loop.unwatch(vcpu.channel.fileno())
            self._attempt("vcpu", vcpu.quit)
        self._attempt("disks", self._disks.stop)
        for name, limit in (("throttle", self._throttle), ("limits", self._limits)):
            if limit is not None:
                self._attempt(name, limit.close)
        self._record("stopped", now_ns(), reason=reason)
        self.flush()

    def flush(self) -> None:
        """Write the events that were kept back while milliseconds counted."""
        if self._journal is not None:
            self._journal.flush()

    def _need(self, *states: State) -> None:
        if self.state not in states:
            allowed = ", ".join(state.value for state in State if state in states)
            raise GuestError(f"the guest is {self.state.value}; it must be {allowed} for that")

    def _watched_memory(self) -> WatchedMemory:
        self._need(*_WITH_MEMORY)
        assert self._watched is not None
        return self._watched

    def _wired_port(self) -> GuestCards:
        assert self._port is not None
        return self._port

    def _parts(self, sockets: Sockets) -> DeviceParts:
        return DeviceParts(self._config, self._wired_port(), sockets, self._vcpus, self._disks)

    def _store_region(self) -> memoryview:
        return self._memory.view[self._config.memory_bytes - self._config.store_bytes :]

    def _make_machine(self, store: Store) -> Machine:
        """Services read all memory, and write through the store alone: see :class:`WatchedMemory`."""
        self._machine = Machine(self._memory.view.toreadonly(), store, journal=self._disks.journal)
        return self._machine

    def _open_sockets(self, machine: Machine | None) -> Sockets:
        notes = NoteFile(self._events_path.with_suffix(SUFFIX))
        config = self._config
        what = config.ips, machine, self._loop, notes, self._record_now
        return Sockets(*what, card_of=config.card_of)

    def _run_vcpus(self) -> None:
        for vcpu in self._vcpus:
            vcpu.run(Deadline(VCPU_NS))

    def _watch(self, vcpu: Vcpu) -> None:
        self._loop.watch(vcpu.channel.fileno(), 1, lambda _events: self._died(f"vCPU {vcpu.index} ended by itself"))

    def _attempt(self, what: str, work: Callable[[], object]) -> None:
        """Do *work*; a failure is logged and does not keep a guest that owns its lease from going on."""
        try:
            work()
        except (BenchError, OSError):
            log.exception("%s failed", what)

    def _announced(self, kind: str, card: int, send: Send, number: int, times: tuple[int, int], error: str) -> None:
        detail: dict[str, Any] = {"error": error} if error else {}
        if card:
            detail["card"] = card
        due_ns, at_ns = times
        name = "announce_lost" if send.lost else "announce_sent"
        self._record(name, at_ns, kind=kind, sender=send.sender, n=number, due_ns=due_ns, **detail)
        if self._journal is not None and not self._journal.critical:
            self.flush()

    def _record(self, name: str, at_ns: int, **data: Any) -> None:
        if self._journal is not None:
            self._journal.note(name, at_ns, **data)

    def _record_now(self, name: str, **data: Any) -> None:
        self._record(name, now_ns(), **data)
