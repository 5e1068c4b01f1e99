"""The source engine: ``python -m bench.migration.source --channel-fd N --events FILE --log FILE``.

Commands: ``migrate`` (once), ``cancel`` and ``recover`` (a post-copy whose network failed); see
:class:`bench.migration.order.Order` for the arguments. The events it sends, and what ``finished`` says, are listed in
:mod:`bench.migration.driver`.

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
import os
import select
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import BenchError, MigrationError
from bench.guest.client import GuestControl, Paused
from bench.host.channel import Channel, ChannelClosed, Message
from bench.memory.bitmap import DirtyBitmap
from bench.memory.hashes import PageHashes
from bench.memory.image import GuestMemory
from bench.memory.tracker import DirtyTracker, open_tracker, probe
from bench.migration import policy, storage, wire
from bench.migration.cost import unpacking
from bench.migration.engine import Engine, Reporter, RunnerGone, engine_main, log, reason_of
from bench.migration.modes import load_mode
from bench.migration.order import Order, Outcome
from bench.migration.packing import make_sender
from bench.migration.pages import PageSender, Sent
from bench.migration.policy import Progress, Step
from bench.migration.states import State, StateMachine
from bench.migration.throttle import Throttler
from bench.migration.transport import Connection, Pacer, chunk_pages
from bench.migration.wire import Frame, Kind

CHUNK_NS: Final = 10 * NS_PER_MS  # how long sending one piece may take: a cancel waits for no more
PROGRESS_NS: Final = 200 * NS_PER_MS
CONNECT_NS: Final = 10 * NS_PER_S
SKELETON_NS: Final = 120 * NS_PER_S
CANCEL_GRACE_NS: Final = NS_PER_S  # for the frame under way, then the connection is reset
PAUSED_LINK_TIMEOUT_NS: Final = 3 * NS_PER_S  # while the guest stands still a dead link is given up sooner
DOOR_LEAST_NS: Final = 5 * NS_PER_MS
DOOR_MOST_NS: Final = NS_PER_S
QUIT_NS: Final = 10 * NS_PER_S
BACKGROUND_NICE: Final = 10  # hashing after the switchover leaves the processors to the guest and its clients


class Cancelled(Exception):
    """The migration ends here, the guest stays; ``str()`` says why."""


class Session:
    """One migration as its source sees it: what modes are written with.

    :ivar pending: pages that the destination does not have yet, as far as known.
    :ivar token: what further connections of this migration show.
    :ivar recover_wanted: the runner asked for it; only in ``postcopy-paused``.
    :ivar serve_pages: set once the destination could run the guest without all its pages: what to do, and with which
        reason, when it owns the guest and this side learns of it late.
    """

    def __init__(self, order: Order, channel: Channel, report: Reporter) -> None:
        self.order = order
        self.report = report
        self.states = StateMachine()
        self.outcome = Outcome(State.FAILED)
        self.cancel_reason = ""
        self.token = ""
        self.recover_wanted = False
        self.serve_pages: Callable[[str], None] | None = None
        self._channel = channel
        self._stack = contextlib.ExitStack()
        self._estimate = policy.BandwidthEstimate()
        self._rounds = 0
        self._began_ns = 0
        self._progress_ns = 0
        self._handed_over = False
        self._least_bytes: int | None = None
        self._bytes_elsewhere = 0
        self._tracking = False
        self.pending: DirtyBitmap
        self._guest: GuestControl
        self._memory: GuestMemory
        self._connection: Connection
        self._decoder: wire.Decoder
        self._sender: PageSender
        self._throttler: Throttler
        self._unpacking: object = None
        self._tracker: DirtyTracker | None = None

    # the whole

    def run(self) -> Outcome:
        """Migrate. Every way out leaves exactly one guest running; nothing is raised but the runner's end."""
        with self._stack:
            try:
                self.states.enter(State.SETUP)
                self._set_up()
                self.states.enter(State.ACTIVE)
                load_mode(self.order.mode).run(self)
                self._finish()
            except Cancelled as cancelled:
                self._cancelled(str(cancelled))
            except (BenchError, OSError) as error:
                self._failed(error)
            if hasattr(self, "_connection"):
                self.outcome.bytes_sent = self.bytes_sent
            if hasattr(self, "_throttler"):
                self.outcome.cost |= {**self._sender.cost(), **self._throttler.cost(), **unpacking(self._unpacking)}
        return self.outcome

    def _set_up(self) -> None:
        order = self.order
        self.report("setup_begin")
        self._guest = GuestControl.connect(order.guest_socket, deadline=Deadline(CONNECT_NS), peer="source guest")
        self._stack.callback(self._guest.close)
        memory = self._guest.memory()
        self._memory = GuestMemory.from_fd(memory.fd, memory.size_bytes, writable=False)
        self._stack.callback(self._memory.close)
        self.pending = DirtyBitmap(self._memory.page_count)
        self._connection = Connection.connect(order.address, order.port, Deadline(CONNECT_NS), order.link_timeout_ns)
        self._stack.callback(self._connection.close)
        self._connection.watch(self._channel.fileno(), self._serve_channel)
        self.report("connected", rtt_ns=self._connection.info().rtt_ns)
        self._decoder = wire.Decoder(self._connection, wire.TO_SOURCE)
        pacer = Pacer(order.limits.max_bandwidth_bps)
        self._sender = make_sender(self._connection, self._memory, pacer, order.levers)
        hello = {
            "guest": {**order.guest, "memory_bytes": memory.size_bytes},
            "announce": order.announce,
            "verify": order.verify,
            "mode": order.mode,
            "postcopy": order.post_copy,
            "compression": order.levers.compression,
        }
        self._connection.send(wire.encode_json(Kind.HELLO, hello))
        self.token = _text(self._await(Kind.SKELETON, SKELETON_NS), "token")
        method = probe()
        writers = self._guest.track(True, method)
        self._tracking = True
        self._tracker = open_tracker(method, [(writer.pid, writer.base) for writer in writers], memory.size_bytes)
        self._stack.callback(self._tracker.close)
        self._check_cancel()
        self._throttler = Throttler(self._guest, order.levers, self.report, order.guest.get("vcpus", 1))
        self._began_ns = now_ns()
        self.report("setup_end", tracking=method)

    # what modes use

    def send_round(self) -> None:
        """Send everything that is pending, then collect what the guest wrote meanwhile."""
        self._round(paused=False, until=None)

    def decide(self) -> Step:
        """The policy's decision on where this migration stands now."""
        remaining = self._sender.expected_bytes(len(self.pending)) + self._connection.info().queued_bytes
        elapsed_ns = now_ns() - self._began_ns
        bandwidth_bps = self._estimate.bps
        if not len(self.pending):
            remaining = 0 if bandwidth_bps is None else remaining
        progress = Progress(remaining, bandwidth_bps, self._rounds, elapsed_ns, self._least_bytes)
        self._least_bytes = min(remaining, remaining if self._least_bytes is None else self._least_bytes)
        return self._throttler.decided(policy.next_step(progress, self.order.limits))

    def cancel(self, reason: str) -> NoReturn:
        """:raises Cancelled: always."""
        raise Cancelled(reason)

    def approach_pause(self, reason: str) -> None:
        """Close the guest's door to new connections and go on sending for a round trip, while it runs on.

        Handshakes under way finish in that time; one that does not cannot move. It costs no downtime, as the pages
        sent meanwhile need not be sent in the pause.
        """
        self._check_cancel()
        self.report("switchover_decided", reason=reason)
        self._guest.close_door()
        info = self._connection.info()
        until = Deadline(min(max(info.rtt_ns, DOOR_LEAST_NS), DOOR_MOST_NS))
        if len(self.pending):
            self._round(paused=False, until=until)
        self._connection.wait(0, until, "handshakes of the guest's clients")
        self._check_cancel()

    def switch_over(self, *, paced: bool = False) -> None:
        """Pause the guest, send the rest and the device state, hand over; returns when the destination runs it.

        :param paced: keep to the bandwidth limit; as in QEMU, it is not for the final copy.
        """
        paused = self.pause_guest()
        if not paced:
            self._sender.pacer = Pacer(0)
        self._round(paused=True, until=None)
        self.send_device_state(paused)
        if self.order.verify == "pause":
            self.outcome.digest_source = self._digest()
        self.hand_over(paused)

    def pause_guest(self) -> Paused:
        """From here on the guest stands still, until the handover or a roll-back."""
        self.states.enter(State.DEVICE)
        self._connection.set_link_timeout(min(PAUSED_LINK_TIMEOUT_NS, self.order.link_timeout_ns))
        paused = self._guest.pause()
        self._stack.callback(os.close, paused.fd)
        self.report("pause_begin", paused.times.get("pause_begin_ns"))
        self.report("paused", paused.times.get("vcpus_stopped_ns"), connections=paused.connections)
        self.outcome.connections = paused.connections
        self._throttler.ended(now_ns())
        return paused

    def hand_over(self, paused: Paused) -> None:
        """Wait until the destination is ready, then have it take the guest over; returns when it runs there."""
        ready = self._await(Kind.READY, self.order.answer_timeout_ns)
        self._unpacking = ready.fields.get("unpacking")
        if self.order.verify == "pause":
            self.outcome.digest_destination = _text(ready, "digest")
            if self.outcome.digest_source != self.outcome.digest_destination:
                raise MigrationError("the destination's memory differs from the source's")
        storage.hand_over(self.report)
        self._handed_over = True
        expect = {"owner": paused.owner, "generation": paused.generation}
        self._connection.send(wire.encode_json(Kind.HANDOVER, expect))
        self.report("handover_sent")
        answer = self._await(Kind.TAKEN, self.order.answer_timeout_ns, Kind.REFUSED)
        if answer.kind is Kind.REFUSED:
            raise MigrationError(f"the destination could not take the guest over: {_text(answer, 'reason')}")
        self.report("handover_confirmed")

    # what post-copy uses beside that

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return self._rounds

    @property
    def bytes_sent(self) -> int:
        """On all connections of this migration."""
        return self._connection.sent_bytes + self._bytes_elsewhere

    def collect(self) -> int:
        """Add to :attr:`pending` what the guest wrote since the last collect. :returns: how many pages that were."""
        assert self._tracker is not None
        return self._tracker.collect(self.pending)

    def receive(self, kind: Kind, *others: Kind) -> Frame:
        """The next frame of the destination; see :meth:`_await`."""
        return self._await(kind, self.order.answer_timeout_ns, *others)

    def connect(self, role: str) -> Connection:
        """A further connection to the destination. :raises PeerLost: when nobody answers there."""
        order = self.order
        connection = Connection.connect(order.address, order.port, Deadline(CONNECT_NS), order.link_timeout_ns)
        self._stack.callback(connection.close)
        connection.send(wire.encode_json(Kind.JOIN, {"token": self.token, "role": role}))
        return connection

    def replace_connection(self, connection: Connection) -> None:
        """Go on over another one."""
        self.count_bytes(self._connection)
        self._connection = connection
        self._connection.watch(self._channel.fileno(), self._serve_channel)
        self._decoder = wire.Decoder(self._connection, wire.TO_SOURCE, self._memory.page_count)

    def count_bytes(self, connection: Connection) -> None:
        """A connection beside the first one is done with: keep what it sent in :attr:`bytes_sent`."""
        self._bytes_elsewhere += connection.sent_bytes

    def wait_for_command(self) -> None:
        """Serve the runner's next command. :raises RunnerGone: when there will be none."""
        select.select([self._channel], [], [])
        self._serve_channel()

    # rounds

    def _round(self, *, paused: bool, until: Deadline | None) -> None:
        """One round of what is pending, or as much of it as fits before *until*, and the collect that ends it.

        While paused the collect comes first: from then on nothing writes.
        """
        self._rounds += 1
        self._sender.begin_round(self._rounds)
        begin_ns = now_ns()
        if paused:
            self.collect()
            self._connection.send(wire.encode_final(self._rounds))
        else:
            self.report("round_begin", begin_ns, round=self._rounds)
        acked_bytes = self._connection.info().acked_bytes
        sent = Sent()
        pages = self.pending.pages()
        self.pending.clear()
        while sent.pages < len(pages) and not (until and until.expired):
            self._sender.send(pages[sent.pages : sent.pages + self._chunk_pages()], sent)
            self._connection.check()
            if not paused:
                self._check_cancel()
                self._throttler.during_round(self._tracker)
            self.tell_progress(self._rounds, begin_ns, sent, len(pages))
        self._sender.end_round()
        self.pending.set_pages(pages[sent.pages :])
        sent.sent_bytes += self._connection.send(wire.encode_round_end(self._rounds, sent.pages))
        if paused:
            self.report("final_pages_sent", pages=sent.pages)
        self._account(acked_bytes, begin_ns)
        queued_bytes = self._connection.info().queued_bytes
        if not paused:
            dirty_pages = self.collect()
            self._throttler.after_round(dirty_pages * wire.PAGE_BYTES, sent.sent_bytes, now_ns())
        self.report(
            "round_end",
            round=self._rounds,
            pages=sent.pages,
            zero_pages=sent.zero_pages,
            bytes_sent=sent.sent_bytes,
            dirty_pages_after=len(self.pending),
            start_ns=begin_ns,
            end_ns=now_ns(),
            paused=paused,
            bandwidth_bps=self._estimate.bps,
            queued_bytes=queued_bytes,
        )

    def _account(self, acked_bytes: int, begin_ns: int) -> None:
        """Feed the bandwidth estimate with what was delivered since the round began.

        By the wall clock: what this engine's own work costs, it will cost in the final copy as well.
        """
        self._estimate.add(self._connection.info().acked_bytes - acked_bytes, now_ns() - begin_ns)

    def _chunk_pages(self) -> int:
        """So many pages that neither the link nor the pacing holds them for longer than :data:`CHUNK_NS`."""
        rate = self._estimate.bps or self._early_rate()
        limit = self.order.limits.max_bandwidth_bps
        if limit:
            rate = min(rate or limit, limit)
        return self._sender.batch_pages(chunk_pages(rate, CHUNK_NS, wire.PAGE_BYTES, wire.MAX_FRAME_PAGES))

    def _early_rate(self) -> int | None:
        """What the first round has reached so far."""
        elapsed_ns = now_ns() - self._began_ns
        if elapsed_ns < CHUNK_NS:
            return None
        return max(1, self._connection.sent_bytes * 8 * NS_PER_S // elapsed_ns)

    def tell_progress(self, number: int, begin_ns: int, sent: Sent, pages: int) -> None:
        """Now and then: how far round *number* is, of which *pages* were to be sent."""
        now = now_ns()
        if now - self._progress_ns < PROGRESS_NS:
            return
        self._progress_ns = now
        self.report.progress(
            "round_progress",
            round=number,
            pages_left=pages - sent.pages,
            bytes_sent=self.bytes_sent,
            rate_bps=sent.sent_bytes * 8 * NS_PER_S // max(1, now - begin_ns),
        )

    # the peer

    def send_device_state(self, paused: Paused) -> None:
        self._connection.send(wire.encode_device(paused.device_bytes))
        if paused.device_bytes:
            with mmap.mmap(paused.fd, paused.device_bytes, prot=mmap.PROT_READ) as blob, memoryview(blob) as view:
                for begin in range(0, len(view), 1 << 20):
                    with view[begin : begin + (1 << 20)] as piece:
                        self._connection.send(piece)
        self.report("device_state_sent", bytes=paused.device_bytes)

    def _await(self, kind: Kind, duration_ns: int, *others: Kind) -> Frame:
        """The next frame, which must be of *kind* (or one of *others*). :raises MigrationError: when it is an ERROR."""
        self._connection.wait(select.POLLIN, Deadline(duration_ns), f"{kind.name} from the destination")
        frame = self._decoder.next()
        if frame.kind is Kind.ERROR:
            raise MigrationError(f"the destination failed: {_text(frame, 'reason')}")
        if frame.kind is not kind and frame.kind not in others:
            raise MigrationError(f"the destination sent {frame.kind.name} instead of {kind.name}")
        return frame

    def _serve_channel(self) -> None:
        try:
            messages = self._channel.receive_ready()
        except ChannelClosed as error:
            raise RunnerGone from error
        for message in messages:
            self.serve(message)

    def serve(self, message: Message) -> None:
        """A command of the runner while the migration runs."""
        number = int(message.get("id", 0))
        if message.get("command") == "recover":
            self.recover_wanted = self.states.state is State.POSTCOPY_PAUSED
            self._channel.send_reply(number, {"accepted": self.recover_wanted})
            return
        if message.get("command") != "cancel":
            self._channel.send_error(number, "a migration is running: only 'cancel' and 'recover' now")
            return
        accepted = self.states.cancellable and not self._handed_over
        self._channel.send_reply(number, {"accepted": accepted})
        if accepted and not self.cancel_reason:
            self.cancel_reason = "cancelled by command"
            self._connection.give_up = Deadline(CANCEL_GRACE_NS)
            if self.states.state in (State.SETUP, State.DEVICE):  # nothing to finish first, or a guest that waits
                raise Cancelled(self.cancel_reason)

    def _check_cancel(self) -> None:
        self._connection.check()
        if self.cancel_reason:
            raise Cancelled(self.cancel_reason)

    # the ends

    def _finish(self) -> None:
        """The destination runs the guest: compare memories, then end the source's guest."""
        with contextlib.suppress(OSError):
            os.nice(BACKGROUND_NICE)
        if self.order.verify == "background":
            try:
                self.outcome.digest_source = self._digest()
                self.outcome.digest_destination = _text(
                    self._await(Kind.DIGEST, self.order.answer_timeout_ns), "digest"
                )
            except (BenchError, OSError) as error:  # too late to fail: the guest runs there
                self.outcome.reason = f"memory could not be compared: {reason_of(error)}"
        try:
            self._end_guest()
        except (BenchError, OSError) as error:  # its dead man's switch ends it: the lease is not its own any more
            self.outcome.reason = f"the source's guest did not quit by itself: {reason_of(error)}"
        self._completed(self.outcome.reason)

    def _completed(self, reason: str) -> None:
        self.states.enter(State.COMPLETED)
        self.outcome.state = State.COMPLETED
        self.outcome.reason = reason

    def _end_guest(self) -> None:
        self._close_tracker()
        self._guest.quit(Deadline(QUIT_NS))
        self.report("source_gone")

    def _close_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def _digest(self) -> str:
        hashes = PageHashes(self._memory.page_count)
        hashes.update_range(self._memory.words)
        return hashes.digest()

    def _cancelled(self, reason: str) -> None:
        if self.states.state is State.DEVICE and not self._roll_back():
            self.states.enter(State.FAILED)
            self.outcome.reason = f"{reason}, but the guest could not be resumed at the source"
            return
        self._tell_peer(Kind.CANCEL, reason)
        self._let_guest_be()
        self.states.enter(State.CANCELLED)
        self.outcome.state = State.CANCELLED
        self.outcome.reason = reason

    def _failed(self, error: Exception) -> None:
        reason = reason_of(error)
        log(f"failed in state {self.states.state.value}: {reason}")
        if self.cancel_reason and not self._handed_over:  # a cancel that a stuck link did not let finish nicely
            self._cancelled(self.cancel_reason)
            return
        if self.states.state is not State.DEVICE:
            self._tell_peer(Kind.ERROR, reason)
            self._let_guest_be()
        elif self._resume_or_concede(reason):
            return
        self.states.enter(State.FAILED)
        self.outcome.state = State.FAILED
        self.outcome.reason = reason

    def _resume_or_concede(self, reason: str) -> bool:
        """After the pause: have the guest run here again, unless the destination has it already.

        :returns: True when the destination has it.
        """
        try:
            resumed, owner = self._guest.resume()
        except (BenchError, OSError) as error:
            log(f"resume: {reason_of(error)}")
            return False
        if resumed:
            self.report("resumed_at_source")
            self._tell_peer(Kind.ERROR, reason)
            self._let_guest_be()
            return False
        if self.serve_pages is not None:
            try:
                self.serve_pages(reason)
                self._finish()
            except (BenchError, OSError) as error:
                self._failed(error)
            return True
        with contextlib.suppress(BenchError):
            self._end_guest()
        self._completed(f"{owner} took the guest over, its confirmation was lost: {reason}")
        return True

    def _roll_back(self) -> bool:
        """Have the paused guest run here again; nobody else was given the right to it yet."""
        try:
            resumed, _owner = self._guest.resume()
        except (BenchError, OSError) as error:
            log(f"resume: {reason_of(error)}")
            return False
        if resumed:
            self.report("resumed_at_source")
        return resumed

    def _let_guest_be(self) -> None:
        """The guest stays: nothing of the migration remains in it."""
        self._close_tracker()
        if not hasattr(self, "_guest"):
            return
        with contextlib.suppress(BenchError, OSError):
            self._guest.open_door()
            if hasattr(self, "_throttler"):
                self._throttler.release()
            if self._tracking:
                self._guest.track(False, "pagemap-scan")

    def _tell_peer(self, kind: Kind, reason: str) -> None:
        """Tell the destination, if the connection still works and is between two frames; reset it if not."""
        if not hasattr(self, "_connection"):
            return
        if self._connection.broken:
            self._connection.abort()
            return
        with contextlib.suppress(BenchError, OSError):
            self._connection.give_up = Deadline(CANCEL_GRACE_NS)
            self._connection.send(wire.encode_json(kind, {"reason": reason}))


def _text(frame: Frame, key: str) -> str:
    return str(frame.fields.get(key, ""))[:1000]


class SourceEngine(Engine):
    """Serves ``migrate``, ``cancel`` and ``recover``."""

    name = "source"

    def run(self) -> None:
        while True:
            command, args = self.first_command("migrate")
            try:
                order = Order.from_json(args)
            except MigrationError as error:
                self.channel.send_error(command, error.message)
                continue
            break
        self.channel.send_reply(command)
        outcome = Session(order, self.channel, self.report).run()
        self.report("finished", **outcome.to_json())
        self.drain(self._after)

    def _after(self, message: Message) -> None:
        if message.get("command") in ("cancel", "recover"):
            self.channel.send_reply(int(message.get("id", 0)), {"accepted": False})
        else:
            self.refuse(message, "the migration has ended")


if __name__ == "__main__":
    sys.exit(engine_main(SourceEngine, "source"))
