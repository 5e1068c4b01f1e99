"""One migration as its source sees it: what modes are written with.

Who runs the guest, step by step: until the pause the source's guest does. From the pause on nobody does, and the lease
still names the source. The destination's ``take`` moves the lease: **that is the ownership point.** Whatever fails
before it, here or there, ends in ``resume`` at the source, which first claims the lease itself, so that a ``take`` that
comes late fails. When that claim fails, the destination was faster: the migration is complete although its confirmation
was lost. In post-copy the source's guest then stays as it is, paused, until all its pages are there
(:mod:`bench.migration.postcopy`).
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from typing import Final, NoReturn

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.errors import BenchError, MigrationError
from bench.guest.client import Paused, Pausing
from bench.host.channel import Channel
from bench.memory.bitmap import DirtyBitmap
from bench.memory.image import GuestMemory
from bench.memory.populate import Populating
from bench.memory.tracker import probe
from bench.migration import storage, wire
from bench.migration.commands import Cancelled, Commands
from bench.migration.cost import added, unpacking
from bench.migration.departure import DepartingGuest
from bench.migration.ending import Ending
from bench.migration.engine import Reporter
from bench.migration.modes import load_mode
from bench.migration.order import Order, Outcome
from bench.migration.pages import PageSender, Sent
from bench.migration.peer import Peer, text
from bench.migration.policy import Step
from bench.migration.rounds import Rounds
from bench.migration.states import State, StateMachine
from bench.migration.transport import Connection
from bench.migration.wire import Frame, Kind

SKELETON_NS: Final = 120 * NS_PER_S
PAUSED_LINK_TIMEOUT_NS: Final = 3 * NS_PER_S  # while the guest stands still a dead link is given up sooner
DOOR_LEAST_NS: Final = 5 * NS_PER_MS
DOOR_MOST_NS: Final = NS_PER_S
AHEAD_NS: Final = 2 * NS_PER_MS  # for the device state to be taken before the last pages are sent


class Session:
    """See this module. Its parts: the guest that departs, the peer, the rounds, the runner's commands, the ending."""

    def __init__(self, order: Order, channel: Channel, report: Reporter) -> None:
        self.order = order
        self.report = report
        self.states = StateMachine()
        self.outcome = Outcome(State.FAILED)
        self._commands = Commands(channel, self.states)
        self._peer = Peer(order, self._commands)
        self._ending = Ending(order, self.states, self._commands, self._peer, self.outcome)
        self._unpacking: object = None
        self._guest: DepartingGuest
        self._storage: storage.SourceStorage
        self._rounds: Rounds | None = None
        self._senders: list[PageSender] = []  # all that ever sent pages

    # the whole

    def run(self) -> Outcome:
        """Migrate. Every way out leaves exactly one guest running; nothing is raised but the runner's end."""
        with contextlib.ExitStack() as stack:
            try:
                self.states.enter(State.SETUP)
                self._set_up(stack)
                self.states.enter(State.ACTIVE)
                load_mode(self.order.mode).run(self)
                self._ending.finish()
            except Cancelled as cancelled:
                self._ending.cancelled(str(cancelled))
            except (BenchError, OSError) as error:
                self._ending.failed(error)
            self.outcome.bytes_sent = self.bytes_sent
            self.outcome.cost |= self._peer.cost()
            if self._rounds is not None and self._guest.throttler is not None:
                cost = {
                    **added([sender.cost() for sender in self._senders]),
                    **self._guest.throttler.cost(),
                    **unpacking(self._unpacking),
                }
                self.outcome.cost |= cost
            delay_ns = self.order.levers.announce_delay_ns
            if delay_ns and self.outcome.state is State.COMPLETED:
                self.outcome.cost["announce_delay"] = {"time_ns": delay_ns}
        return self.outcome

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        order = self.order
        self.report("setup_begin")
        self._guest = self._ending.guest = stack.enter_context(DepartingGuest(order, self.report))
        stack.callback(Populating(self._guest.memory).stop)  # mapped here while the destination makes its skeleton
        control = self._guest.control
        self._storage = storage.SourceStorage(
            order.guest, control, order.destination_host, self.report, order.link_timeout_ns
        )
        self._storage.begin(self._commands, order.limits)
        stack.enter_context(self._peer)
        connection = self._peer.open()
        self.report("connected", rtt_ns=connection.info().rtt_ns)
        disks = storage.describe(order.guest, control)
        hello = {
            "guest": {**order.guest, "memory_bytes": self._guest.memory_bytes, **disks},
            "announce": order.announce,
            "verify": order.verify,
            "mode": order.mode,
            "postcopy": order.post_copy,
            "compression": order.levers.compression,
            "streams": order.levers.streams,
            "ticket": order.ticket,
        }
        connection.send(wire.encode_json(Kind.HELLO, hello))
        method = probe()  # while the destination makes its skeleton
        self._peer.receive(Kind.SKELETON, SKELETON_NS)
        self._rounds = Rounds(order, self._guest, self._peer, self._peer.open_outlet(), self.report)
        self._senders.append(self._rounds.sender)
        self._guest.track(method)
        self._peer.check()
        self._rounds.begin()
        self.report("setup_end", tracking=method)

    # what modes use

    def send_round(self) -> None:
        """Send everything that is pending, then collect what the guest wrote meanwhile."""
        self._all_rounds.send(paused=False)

    def decide(self) -> Step:
        """The policy's decision on where this migration stands now."""
        return self._all_rounds.decide()

    def cancel(self, reason: str) -> NoReturn:
        """:raises Cancelled: always."""
        raise Cancelled(reason)

    def approach_pause(self, reason: str) -> None:
        """Close the guest's door to new connections and go on sending for a round trip, while it runs on.

        Handshakes under way finish in that time; one that does not cannot move. It costs no downtime, as the pages
        sent meanwhile need not be sent in the pause.
        """
        self._peer.check()
        self._settle_disks()
        self.report("switchover_decided", reason=reason)
        self._guest.control.close_door()
        info = self.connection.info()
        until = Deadline(min(max(info.rtt_ns, DOOR_LEAST_NS), DOOR_MOST_NS))
        if len(self.pending):
            self._all_rounds.send(paused=False, until=until)
        else:
            self._all_rounds.drain()  # what waits in the socket would wait in the pause as well
        self.connection.wait(0, until, "handshakes of the guest's clients")
        self._peer.check()

    def _settle_disks(self) -> None:
        """Send pages while the disks are flushed, and the copies of local ones come close."""
        approach = self._storage.approach()
        while approach is not None and not approach.expired:
            if len(self.pending):
                self._all_rounds.send(paused=False, until=approach)
            self.connection.wait(0, approach.next_look, "the flush of the disks")
            self._peer.check()

    def switch_over(self, *, paced: bool = False) -> None:
        """Pause the guest, send the rest and the device state, hand over; returns when the destination runs it.

        The guest's memory stands still before its device state is taken, so what it wrote last is looked for meanwhile;
        and the state goes first, if it is ready then, so that the destination loads it while the last pages cross.

        :param paced: keep to the bandwidth limit; as in QEMU, it is not for the final copy.
        """
        pausing = self._begin_pause()
        if not paced:
            self._all_rounds.unpace()
        paused: Paused | None = None
        whole = self.rounds > 0  # each page has been there once

        def send_state_ahead() -> None:
            nonlocal paused
            if whole and pausing.done_within(AHEAD_NS):
                paused = self._end_pause(pausing)
                self.send_device_state(paused)

        self._all_rounds.send(paused=True, first=send_state_ahead)
        if paused is None:
            paused = self._end_pause(pausing)
            self.send_device_state(paused)
        if self.order.verify == "pause":
            self.outcome.digest_source = self._guest.digest()
        self.hand_over(paused)

    def pause_guest(self) -> Paused:
        """From here on the guest stands still, until the handover or a roll-back."""
        return self._end_pause(self._begin_pause())

    def _begin_pause(self) -> Pausing:
        self.states.enter(State.DEVICE)
        self._peer.expect_pause(min(PAUSED_LINK_TIMEOUT_NS, self.order.link_timeout_ns))
        return self._guest.begin_pause()

    def _end_pause(self, pausing: Pausing) -> Paused:
        paused = self._guest.end_pause(pausing)
        self.outcome.connections = paused.connections
        return paused

    def send_device_state(self, paused: Paused) -> None:
        """What is not memory."""
        self.connection.send(wire.encode_device(paused.device_bytes))
        if paused.device_bytes:
            with mmap.mmap(paused.fd, paused.device_bytes, prot=mmap.PROT_READ) as blob, memoryview(blob) as view:
                for begin in range(0, len(view), 1 << 20):
                    with view[begin : begin + (1 << 20)] as piece:
                        self.connection.send(piece)
        self.report("device_state_sent", bytes=paused.device_bytes)

    def hand_over(self, paused: Paused) -> None:
        """Wait until the destination is ready, then have it take the guest over; returns when it runs there."""
        ready = self.receive(Kind.READY)
        self._unpacking = ready.fields.get("unpacking")
        self._peer.close_outlet()
        if self.order.verify == "pause":
            self.outcome.digest_destination = text(ready, "digest")
            if self.outcome.digest_source != self.outcome.digest_destination:
                raise MigrationError("the destination's memory differs from the source's")
        disks = self._storage.hand_over()
        self._commands.handed_over = True
        expect = {
            "owner": paused.owner,
            "generation": paused.generation,
            "storage": disks,
            "hold_ns": self.order.hold_ns,
        }
        self.connection.send(wire.encode_json(Kind.HANDOVER, expect))
        self.report("handover_sent")
        answer = self.receive(Kind.TAKEN, Kind.REFUSED)
        if answer.kind is Kind.REFUSED:
            raise MigrationError(f"the destination could not take the guest over: {text(answer, 'reason')}")
        self.report("handover_confirmed")

    @property
    def pending(self) -> DirtyBitmap:
        """Pages that the destination does not have yet, as far as known."""
        return self._guest.pending

    # what post-copy uses beside that

    @property
    def connection(self) -> Connection:
        return self._peer.connection

    @property
    def memory(self) -> GuestMemory:
        return self._guest.memory

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return self._all_rounds.count

    @property
    def bytes_sent(self) -> int:
        """On all connections of this migration."""
        return self._peer.bytes_sent

    def collect(self) -> int:
        """Add to :attr:`pending` what the guest wrote since the last collect. :returns: how many pages that were."""
        return self._guest.collect()

    def receive(self, kind: Kind, *others: Kind) -> Frame:
        """The next frame of the destination; see :meth:`Peer.receive`."""
        return self._peer.receive(kind, self.order.answer_timeout_ns, *others)

    def connect(self, role: str) -> Connection:
        """A further connection to the destination. :raises PeerLost: when nobody answers there."""
        return self._peer.connect(role)

    def replace_connection(self, connection: Connection) -> None:
        """Go on over another one."""
        self._peer.replace(connection, self.memory.page_count)

    def count_sender(self, sender: PageSender) -> None:
        """It sends pages of this migration beside those of rounds: its levers count as well."""
        self._senders.append(sender)

    def count_bytes(self, connection: Connection) -> None:
        """A connection beside the first one is done with: keep what it sent in :attr:`bytes_sent`."""
        self._peer.count_bytes(connection)

    def tell_progress(self, number: int, begin_ns: int, sent: Sent, pages: int) -> None:
        """See :meth:`Rounds.tell_progress`."""
        self._all_rounds.tell_progress(number, begin_ns, sent, pages)

    def serve_after_loss(self, serve: Callable[[str], None]) -> None:
        """The destination could run the guest without all its pages from now on.

        :param serve: what to do, and with which reason, when it owns the guest and this side learns of it late.
        """
        self._ending.serve_pages = serve

    def wait_for_recover(self) -> None:
        """Wait until the runner asks for it. :raises RunnerGone: when it never will."""
        while not self._commands.recover_wanted:
            self._commands.wait()
        self._commands.recover_wanted = False

    @property
    def _all_rounds(self) -> Rounds:
        assert self._rounds is not None
        return self._rounds
