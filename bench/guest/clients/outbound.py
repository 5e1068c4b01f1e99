"""All flows that the guest runs as a client: started, looked at, frozen, moved and served together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.errors import BenchError, GuestError
from bench.flows.notes import NoteFile
from bench.flows.spec import FlowSpec
from bench.flows.tcp_options import check_supported, kernel_retries, set_retries2
from bench.guest.clients.base import Adopt, Means, OutboundFlow
from bench.guest.clients.bulk import DownloadFlow, UploadFlow
from bench.guest.clients.connect import ConnectFlow
from bench.guest.clients.datagrams import EchoFlow, OneWayFlow
from bench.guest.clients.library import HttpFlow, RedisFlow
from bench.guest.clients.request import IdleFlow, RequestFlow
from bench.guest.clients.stream import StreamFlow
from bench.guest.connection import Connection
from bench.guest.loop import Loop, Timer
from bench.guest.services.base import StreamService
from bench.records import SAMPLES_SUFFIX

MAX_FLOWS = 256
LOOK_NS = 10 * NS_PER_MS
FLUSH_NS = NS_PER_S // 4

KINDS: dict[str, type[OutboundFlow]] = {
    flow.kind: flow
    for flow in (
        *(RequestFlow, IdleFlow, HttpFlow, RedisFlow, DownloadFlow, UploadFlow),
        *(ConnectFlow, EchoFlow, OneWayFlow),
    )
}


class Outbound:
    """Make it in the guest's network namespace.

    :param notes: of this process; flushed here, four times a second and when the flows stop.
    :param adopt: makes a connection of the guest.
    """

    def __init__(
        self, ip: str, loop: Loop, notes: NoteFile, adopt: Adopt, event: Callable[..., None] = lambda *_a, **_k: None
    ) -> None:
        self._means = Means(ip, loop, notes, adopt, event)
        self._flows: dict[str, OutboundFlow] = {}
        self._timer: Timer | None = None
        self._flushed_ns = 0

    def __len__(self) -> int:
        return len(self._flows)

    # life

    def start(self, raw: Sequence[object]) -> None:
        """Begin these flows. :raises BenchError: one is refused; none is begun then."""
        specs = [FlowSpec.from_json(item) for item in raw]
        self._flows = {name: flow for name, flow in self._flows.items() if not flow.done}  # of a run before
        names = {*self._flows, *(spec.name for spec in specs)}
        if not len(self._flows) + len(specs) == len(names) <= MAX_FLOWS:
            raise GuestError(f"up to {MAX_FLOWS} flows, each with a name of its own")
        for spec in specs:
            check_supported(spec.tcp, spec.name)
        self._set_retries2(specs)
        made = [self._make(spec) for spec in specs]
        for flow in made:
            self._flows[flow.spec.name] = flow
            flow.start()
        self._arm()

    def _make(self, spec: FlowSpec) -> OutboundFlow:
        if spec.kind not in KINDS:
            raise GuestError(f"flow {spec.name}: a guest runs no {spec.kind!r} flow", f"one of {', '.join(KINDS)}")
        return KINDS[spec.kind](spec, self._means)

    @staticmethod
    def _set_retries2(specs: Sequence[FlowSpec]) -> None:
        wanted = {spec.tcp.retries2 for spec in specs} - {0}
        if len(wanted) > 1:
            raise GuestError(f"flows of one guest want tcp_retries2 {' and '.join(map(str, sorted(wanted)))}")
        for value in wanted:
            set_retries2(value)

    def stop(self) -> None:
        """Ask nothing more; :meth:`report` says when all is over."""
        for flow in self._flows.values():
            flow.note_end()
            flow.stop()

    def report(self) -> dict[str, Any]:
        """``flows``: of each its report; ``kernel``: what the namespace's settings are. Writes what was kept."""
        self._write()
        return {"flows": [flow.report() for flow in self._flows.values()], "kernel": kernel_retries()}

    def close(self) -> None:
        """Write what was kept. Idempotent."""
        self._disarm()
        self._write()
        self._means.notes.close()

    def _write(self) -> None:
        notes = self._means.notes
        with contextlib.suppress(OSError):  # a full disk ends no guest; that the notes are missing is seen
            notes.flush()
            for flow in self._flows.values():
                if isinstance(flow, StreamFlow) and len(flow.samples) and notes.path is not None:
                    flow.samples.save(samples_path(notes.path, flow.spec.name))

    # looking

    def _arm(self) -> None:
        if self._flows and self._timer is None:
            self._timer = self._means.loop.at(now_ns() + LOOK_NS, self._look)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = now_ns()
        for flow in self._flows.values():
            if not flow.done:
                flow.look(now)
        if now - self._flushed_ns > FLUSH_NS:
            self._flushed_ns = now
            with contextlib.suppress(OSError):
                self._means.notes.flush()
        self._arm()

    # connections

    def service(self, state: Mapping[str, Any]) -> StreamService:
        """What is at the guest's end of a connection that moved. :raises GuestError: nothing that is known."""
        flow = self._flows.get(str(state.get("flow")))
        try:
            if isinstance(flow, ConnectFlow):
                return flow.short(int(state["number"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            flow = None
        if not isinstance(flow, StreamFlow):
            raise GuestError(f"device state: a connection of no flow {str(state)[:80]}")
        return flow

    def restored(self, connection: Connection) -> None:
        """*connection* is that of what :meth:`service` gave."""
        restored = getattr(connection.service, "restored", None)
        if restored is not None:
            restored(connection)

    def over(self, connection: Connection) -> None:
        """*connection* of a flow is closed."""
        name = str(connection.service.export().get("flow"))
        flow = self._flows.get(name)
        if isinstance(flow, StreamFlow | ConnectFlow):
            flow.over(connection)

    # moving

    def freeze(self) -> None:
        self._disarm()
        for flow in self._flows.values():
            flow.freeze()

    def serve(self) -> None:
        """Begin, or go on after :meth:`freeze` or :meth:`restore`."""
        for flow in self._flows.values():
            if not flow.done:
                flow.serve()
        self._arm()

    def dump(self) -> tuple[Mapping[str, Any], ...]:
        """Each flow's state; the network is cut."""
        with contextlib.suppress(OSError):
            self._means.notes.flush()  # a hypervisor that dies now takes nothing of it along
        return tuple(flow.state() for flow in self._flows.values())

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Before the connections are. :raises GuestError: a state is none."""
        try:
            specs = [FlowSpec.from_json(state["spec"]) for state in states]
            self._set_retries2(specs)
            for spec, state in zip(specs, states, strict=True):
                flow = self._make(spec)
                flow.load(state)
                self._flows[spec.name] = flow
        except (BenchError, KeyError, TypeError, ValueError, OSError) as error:
            for flow in self._flows.values():
                flow.release()
            self._flows.clear()
            raise GuestError(f"device state: a flow of the guest's: {error!r}") from error


def prepare(kinds: Sequence[str]) -> None:
    """Ahead of flows of these kinds in this process, before time matters. Unknown ones are refused when they come."""
    for kind in kinds:
        if kind in KINDS:
            KINDS[kind].prepare()


def samples_path(notes: Path, flow: str) -> Path:
    """Where the samples of a flow's connection go, beside the notes of the same process."""
    return notes.with_name(f"{notes.name}.{flow}{SAMPLES_SUFFIX}")
