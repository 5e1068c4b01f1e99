"""Both engines from the runner's side: start a migration, cancel it, wait for its end.

Events (``bench.timeline``) that the engines send, beside ``round_progress``, ``mirror_progress`` and
``storage_settling``, which go up the channel only:

- ``engine.source``: setup_begin, connected, setup_end, round_begin {round}, round_end {round, pages, zero_pages,
  bytes_sent, dirty_pages_after, start_ns, end_ns, paused}, switchover_decided {reason}, pause_begin, paused,
  final_pages_sent, device_state_sent {bytes}, storage_begin, storage_end, handover_sent, handover_confirmed,
  (with disks) mirror_begin {disks}, mirror_close {disks}, storage_settled {took_ns}, storage_flushed,
  mirror_end {disks}, storage_released,
  postcopy_listen {pages}, postcopy_begin {pages}, postcopy_paused {reason, pages_left},
  postcopy_recovered {pages_left}, postcopy_recover_failed {reason}, postcopy_end {the counts of ``cost``},
  source_gone, resumed_at_source (a roll-back), finished {outcome, reason, digest_source, digest_destination,
  identical, bytes_sent, connections, cost}; and, with levers that do so, throttle {percent, mechanism} and
  dirty_limit {writes_per_s, dirty_bytes_per_s}.
- ``engine.destination``: listening, accepted, skeleton_ready, streams_joined {streams} (of more than one),
  final_pages_received, device_state_received, device_state_loaded, storage_acquired, ownership_taken, resumed,
  port_wired, postcopy_begin {pages}, postcopy_paused {reason, pages_left}, postcopy_recovered {pages_left},
  postcopy_complete, finished {outcome, reason, cost}.

The ``cost`` of ``finished`` holds ``postcopy`` for a migration that came to it: pages (zero_pages among them),
pages_pushed, pages_on_demand, pages_requested, duplicates (pages that crossed twice: 0), faults, zero_faults (of pages
that never held anything), pauses and fault_latency as of :meth:`bench.memory.pager.FaultTimes.to_json`.
"""

from __future__ import annotations

import contextlib
import secrets
import select
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, DeadlineError, GuestError, HostError, MigrationError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.commands import Process, describe_status, spawn_child
from bench.host.lease import Lease
from bench.migration.carriers import NONE, load_carrier
from bench.timeline import Event

START_NS: Final = 20 * NS_PER_S
WAIT_NS: Final = 3600 * NS_PER_S
SETTLE_NS: Final = 5 * NS_PER_S  # for the other engine to end after the first did
UNMET_NS: Final = NS_PER_S // 4  # the same, when the other still waits at its door: it has nothing to tell
STOP_NS: Final = 2 * NS_PER_S
RECOVER_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Plan:
    """One migration, as the runner orders it.

    :param source_pid, destination_pid: a process in each hypervisor's network namespace; None for this one's own.
    :param source_host, destination_host: the hypervisors' names, which are the lease's owners.
    :param guest: the guest's ``configure`` dict as it runs at the source.
    :param guest_socket: of the guest at the source; *new_guest_…* are for the one to be made.
    :param address, port: where the destination engine listens; port 0 for a free one.
    :param migration: downtime_limit_ns (or "min"), max_rounds, max_time_ns, max_bandwidth_bps, on_no_convergence,
        verify, mode, precopy_rounds (of mode hybrid) and, if wanted, those of :class:`bench.migration.levers.Levers`,
        link_timeout_ns (nothing gets through) and answer_timeout_ns (the destination says nothing while the guest is
        paused).
    :param announce: ``{"frames": [{"kind", "hex"}], "offsets_ns": []}``.
    :param recover_every_ns: how often a post-copy whose network failed is told to recover; 0: only by
        :meth:`Migration.recover`.
    :param recover_for_ns: after which time it counts as failed, with its guest lost.
    :param vcpu_group: the control group at the destination that groups of the guest's vCPUs belong in; empty for none.
    :param tag: part of the engines' file names, unique within the run.
    """

    source_pid: int | None
    destination_pid: int | None
    source_host: str
    destination_host: str
    guest: Mapping[str, Any]
    guest_socket: Path
    new_guest_socket: Path
    new_guest_events: Path
    new_guest_log: Path
    bridge: str
    lease_path: Path
    address: str
    port: int
    migration: Mapping[str, Any]
    announce: Mapping[str, Any]
    events_directory: Path
    log_directory: Path
    tag: str = "1"
    recover_every_ns: int = 0
    recover_for_ns: int = RECOVER_NS
    vcpu_group: str = ""


class _Side:
    """One engine process and the runner's end of its channel."""

    def __init__(self, name: str, plan: Plan, netns_pid: int | None) -> None:
        log = plan.log_directory / f"engine.{name}-{plan.tag}.log"
        events = plan.events_directory / f"engine.{name}-{plan.tag}.jsonl"
        self.name = name
        self.finished: Mapping[str, Any] | None = None
        self.open = True
        self.process: Process
        self.channel: Channel
        self.process, self.channel = spawn_child(
            f"bench.migration.{name}",
            peer=f"{name} engine",
            extra_args=["--events", str(events), "--log", str(log)],
            netns_pid=netns_pid,
            log=log,
        )

    @property
    def done(self) -> bool:
        """It has told its end, or died without."""
        return self.finished is not None or not self.open

    def stop(self) -> None:
        self.open = False
        self.channel.close()  # its end of file ends the engine; the signal is for one that hangs
        with contextlib.suppress(BenchError):
            self.process.wait(Deadline(STOP_NS))
        self.process.stop(Deadline(STOP_NS))


class PostCopyWatch:
    """What the events say of a migration's post-copy, and when it is to recover.

    :ivar incomplete: the destination may run the guest, and has not got all its pages.
    """

    def __init__(self, every_ns: int, for_ns: int) -> None:
        self.incomplete = False
        self._every_ns = every_ns
        self._for_ns = for_ns
        self._paused: Deadline | None = None  # when to give up
        self._next: Deadline | None = None

    def note(self, event: Event) -> None:
        if event.name == "postcopy_listen":
            self.incomplete = True
        elif event.name == "postcopy_complete":
            self.incomplete = False
        elif event.source == "engine.source" and self._every_ns:
            if event.name == "postcopy_paused":
                self._paused, self._next = Deadline(self._for_ns), Deadline(0)
            elif event.name == "postcopy_recover_failed":
                self._next = Deadline(self._every_ns)
            elif event.name == "postcopy_recovered":
                self._paused = self._next = None

    @property
    def given_up(self) -> bool:
        return self._paused is not None and self._paused.expired

    def recover_due(self) -> bool:
        """True once each time."""
        if self._next is None or not self._next.expired:
            return False
        self._next = None
        return True

    def wait_s(self) -> float:
        """How long nothing is due."""
        due = [item.remaining_s for item in (self._paused, self._next) if item is not None]
        return min(due, default=WAIT_NS / NS_PER_S)


class Migration:
    """One migration from start to outcome. Use as a context, or call :meth:`stop`; both are idempotent."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._sides: dict[str, _Side] = {}
        self._listening: Mapping[str, Any] = {}
        self._ticket = ""
        self._credentials: Mapping[str, Any] = {}
        self._met = False  # the destination has let the source in
        self._settle: Deadline | None = None
        self._post_copy = PostCopyWatch(plan.recover_every_ns, plan.recover_for_ns)
        self._events: list[Event] = []  # seen while waiting for a reply, not yet handed on

    def __enter__(self) -> Migration:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self, deadline: Deadline | None = None) -> None:
        """:meth:`prepare` and :meth:`begin`."""
        deadline = deadline or Deadline(START_NS)
        self.prepare(deadline)
        self.begin(deadline)

    def spawn(self) -> None:
        """Start both engines, which load their modules meanwhile. Idempotent.

        :raises MigrationError: when one cannot be started; both are stopped then.
        """
        with self._starting():
            for name, pid in (("destination", self.plan.destination_pid), ("source", self.plan.source_pid)):
                if name not in self._sides:
                    self._sides[name] = _Side(name, self.plan, pid)

    def prepare(self, deadline: Deadline | None = None) -> None:
        """Have the engines ready and the destination's listening, so that several migrations can begin at once.

        :raises MigrationError: when an engine does not start or refuses its orders; both are stopped then.
        """
        plan = self.plan
        deadline = deadline or Deadline(START_NS)
        self.spawn()
        with self._starting():
            destination = self._sides["destination"]
            both = {key: plan.migration[key] for key in ("link_timeout_ns", "security") if key in plan.migration}
            here, there = load_carrier(plan.migration.get("security", NONE)).credentials()
            self._ticket = secrets.token_hex(16)
            self._listening = destination.channel.call(
                "listen",
                {
                    "address": plan.address,
                    "port": plan.port,
                    "host": plan.destination_host,
                    "guest_socket": str(plan.new_guest_socket),
                    "guest_events": str(plan.new_guest_events),
                    "guest_log": str(plan.new_guest_log),
                    "bridge": plan.bridge,
                    "vcpu_group": plan.vcpu_group,
                    "lease_path": str(plan.lease_path),
                    "ticket": self._ticket,
                    "credentials": there,
                    **both,
                },
                deadline=deadline,
                on_event=self._events.append,
            )
            self._credentials = {**here, **self._listening["hints"]}

    def begin(self, deadline: Deadline | None = None) -> None:
        """Begin the migration that was prepared; returns at once, before the first page.

        :raises MigrationError: when the source refuses its orders; both engines are stopped then.
        """
        plan = self.plan
        deadline = deadline or Deadline(START_NS)
        with self._starting():
            self._sides["source"].channel.call(
                "migrate",
                {
                    "guest_socket": str(plan.guest_socket),
                    "guest": dict(plan.guest),
                    "address": plan.address,
                    "port": self._listening["port"],
                    "destination_host": plan.destination_host,
                    "migration": dict(plan.migration),
                    "announce": dict(plan.announce),
                    "ticket": self._ticket,
                    "credentials": self._credentials,
                },
                deadline=deadline,
                on_event=self._events.append,
            )

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (GuestError, HostError) as error:
            self.stop()
            raise MigrationError(f"the migration could not be started: {error.message}", error.remedy) from error
        except BaseException:
            self.stop()
            raise

    def cancel(self, deadline: Deadline | None = None) -> bool:
        """Ask for a cancel. :returns: whether it was accepted; False when it is too late or the engine is gone."""
        return self._ask("cancel", deadline)

    def recover(self, deadline: Deadline | None = None) -> bool:
        """Have a post-copy whose network failed go on over new connections.

        Whether that worked, the event ``postcopy_recovered`` or ``postcopy_recover_failed`` of the source says; after
        the latter it can be asked for again.

        :returns: whether it was accepted; False unless the source is in ``postcopy-paused``.
        """
        return self._ask("recover", deadline)

    def _ask(self, command: str, deadline: Deadline | None) -> bool:
        source = self._sides.get("source")
        if source is None or not source.open or source.finished is not None:
            return False
        try:
            reply = source.channel.call(command, deadline=deadline or Deadline(START_NS), on_event=self._events.append)
        except BenchError:
            return False
        return reply.get("accepted") is True

    def wait(self, on_event: Callable[[Event], None] | None = None, deadline: Deadline | None = None) -> dict[str, Any]:
        """Wait until both engines have ended their part.

        :param on_event: called with every event, progress included, as it comes; it may call :meth:`cancel`.
        :returns: the ``finished`` dict of the source; when that engine died, one made up here: ``outcome`` by who holds
            the lease, ``reason`` naming what died.
        :raises DeadlineError: when they are not done in time; it may be called again.
        """
        deadline = deadline or Deadline(WAIT_NS)
        while (outcome := self.poll(on_event)) is None:
            if deadline.expired:
                raise DeadlineError(f"the migration has not ended within {deadline.duration_ns / NS_PER_S:g} s")
            channels = self.waits_for()
            if channels:
                select.select(channels, [], [], min(deadline.remaining_s, self.wait_s()))
        return outcome

    def poll(self, on_event: Callable[[Event], None] | None = None) -> dict[str, Any] | None:
        """As :meth:`wait`, but without waiting: None when it goes on."""
        source, destination = self._sides["source"], self._sides["destination"]
        while True:
            self._read()
            while self._events:
                event = self._events.pop(0)
                self._note(event)
                if on_event is not None:
                    on_event(event)
                self._read()
            if source.done and destination.done:
                break
            if self._post_copy.recover_due():
                self.recover()
            lost = self._post_copy.given_up or (self._post_copy.incomplete and not destination.open)
            if (source.done or lost) and self._settle is None:
                # The source decides; the destination only gets a last moment.
                self._settle = Deadline(SETTLE_NS if self._met else UNMET_NS)
            if self._settle is not None and self._settle.expired:
                break
            if not self._events:  # a command's reply brings some
                return None
        return self._outcome(source, destination)

    def waits_for(self) -> list[Channel]:
        """The engines that have not ended: something to do for :meth:`poll` when one can be read."""
        return [side.channel for side in self._sides.values() if not side.done]

    def wait_s(self) -> float:
        """How long :meth:`poll` has nothing to do if none of them can be read."""
        settle_s = WAIT_NS / NS_PER_S if self._settle is None else self._settle.remaining_s
        return min(settle_s, self._post_copy.wait_s())

    def pids(self) -> dict[str, int]:
        """The engines that are there, ``source`` and ``destination``, and their process ids."""
        return {name: side.process.pid for name, side in self._sides.items() if side.process.alive}

    def stop(self) -> None:
        """End both engines. The guests are not theirs: whoever runs one goes on."""
        for side in self._sides.values():
            side.stop()

    # events

    def _note(self, event: Event) -> None:
        self._post_copy.note(event)
        if event.name == "accepted":
            self._met = True
        elif event.name == "finished":
            for side in self._sides.values():
                if event.source == f"engine.{side.name}":
                    side.finished = event.data

    def _read(self) -> None:
        """Move what has arrived on the channels to the events, without waiting."""
        for side in self._sides.values():
            if not side.open:
                continue
            try:
                while side.channel.pending():  # left over from a command's reply
                    self._keep(side.channel.receive())
                if select.select([side.channel], [], [], 0)[0]:
                    for message in side.channel.receive_ready():
                        self._keep(message)
            except ChannelClosed:
                side.open = False

    def _keep(self, message: Message) -> None:
        if "event" in message:
            self._events.append(Event.from_json(message["event"]))

    def _outcome(self, source: _Side, destination: _Side) -> dict[str, Any]:
        if source.finished is not None:
            outcome = dict(source.finished)
            security = dict(outcome.get("cost", {})).get("security")
            if security and destination.finished is not None:
                security["destination"] = destination.finished.get("cost", {})
            if outcome.get("outcome") == "failed" and destination.finished is None and not destination.open:
                with contextlib.suppress(DeadlineError):  # it closed its channel and hangs: stop() will kill it
                    how = describe_status(destination.process.wait(Deadline(STOP_NS)))
                    outcome["reason"] = f"the destination engine died ({how}); source: {outcome.get('reason')}"
            return outcome
        if source.open:
            died = "the destination engine died" if not destination.open else "the network did not come back"
        else:
            died = f"the source engine died ({describe_status(source.process.wait(Deadline(STOP_NS)))})"
        owner = Lease(self.plan.lease_path).read().owner
        completed = owner == self.plan.destination_host
        if completed and self._post_copy.incomplete:
            completed = False
            died += " in post-copy: the guest is lost"
        if destination.finished is not None and destination.finished.get("reason"):
            died += f"; destination: {destination.finished['reason']}"
        return {
            "outcome": "completed" if completed else "failed",
            "reason": f"{died}; the lease says that {owner or 'nobody'} runs the guest",
            "digest_source": None,
            "digest_destination": None,
            "identical": None,
            "bytes_sent": 0,
            "connections": 0,
            "cost": {},
        }
