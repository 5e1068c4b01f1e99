"""The guest's own flows as state machines: whatever moment they are moved at, their server notices nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bench.errors import GuestError
from bench.flows.notes import NoteFile, load_notes, records_of
from bench.flows.pattern import pattern_slice
from bench.flows.spec import FlowSpec
from bench.guest.clients.base import Means
from bench.guest.clients.bulk import DownloadFlow, UploadFlow
from bench.guest.clients.library import HttpFlow, RedisFlow
from bench.guest.clients.outbound import KINDS, Outbound
from bench.guest.clients.request import RequestFlow
from bench.guest.clients.stream import StreamFlow
from bench.guest.loop import Loop
from bench.guest.services.base import Machine, StreamService
from bench.guest.services.http import HttpStream
from bench.guest.services.redis import RedisStream
from bench.guest.services.simple import ChargenStream, EchoStream
from bench.guest.store import Store
from bench.records import STATUS_CORRUPT, StructuredArray

MACHINE = Machine(memoryview(bytearray(0)), cast("Store", None))


class Bed:
    """A flow whose connection is this class: bytes go to a service and back, a few at a time, and it is moved."""

    def __init__(self, directory: Path, kind: type[StreamFlow], **spec: Any) -> None:
        self.directory = directory
        self.loop = Loop()
        self.processes = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.flow = kind(FlowSpec("own", kind.kind, address="192.0.2.1", **spec), self._means())
        self.flow.opened()

    def _means(self) -> Means:
        self.processes += 1
        self.notes = NoteFile(self.directory / f"{self.processes}.flows")
        return Means(
            "192.0.2.9", Loop(), self.notes, self._adopt, lambda name, **data: self.events.append((name, data))
        )

    def _adopt(self, sock: Any, service: StreamService) -> Any:
        raise AssertionError

    def move(self) -> None:
        state = json.loads(json.dumps(self.flow.state()))
        self.notes.close()
        former = self.flow
        self.flow = type(former)(FlowSpec.from_json(state["spec"]), self._means())
        self.flow.load(state)

    def exchange(self, server: StreamService, turns: int, piece: int, *, moving: bool) -> None:
        for turn in range(turns):
            out = bytes(self.flow.output(piece))
            self.flow.sent(len(out))
            server.received(out)
            back = bytes(server.output(piece))
            server.sent(len(back))
            if back:
                self.flow.received(back)
            if moving and turn % 3 == 0:
                self.move()

    def close(self) -> None:
        self.notes.close()
        self.loop.close()

    def records(self) -> StructuredArray:
        self.notes.close()
        return records_of(load_notes(sorted(self.directory.glob("*.flows"))), "own")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bed]]:
    made: list[Bed] = []

    def bed(kind: type[StreamFlow], **spec: Any) -> Bed:
        made.append(Bed(tmp_path, kind, **spec))
        return made[-1]

    yield bed
    for one in made:
        one.close()


@pytest.fixture
def outbound() -> Iterator[Outbound]:
    loop = Loop()

    def adopt(sock: Any, service: StreamService) -> Any:
        raise AssertionError

    yield Outbound("192.0.2.9", loop, NoteFile(None), adopt)
    loop.close()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_requests_are_answered_and_verified_wherever_the_guest_is(
    make: Callable[..., Bed], piece: int, moving: bool
) -> None:
    bed = make(RequestFlow, think_ns=0, size=64)
    bed.exchange(EchoStream(), 300, piece, moving=moving)
    records = bed.records()
    assert len(records) == bed.flow.count > 300 * min(piece, 64) // 64 - 4
    assert list(records["seq"]) == list(range(len(records)))
    assert (records["received_ns"] >= records["sent_ns"]).all()
    assert not records["status"].any()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("piece", [5, 64, 5000])
@pytest.mark.parametrize("kind", [HttpFlow, RedisFlow])
def test_a_library_s_answers_are_read_wherever_the_guest_is(
    make: Callable[..., Bed], kind: type[StreamFlow], piece: int, moving: bool
) -> None:
    memory = memoryview(bytearray(1 << 20))
    machine = Machine(memory, Store.format(memory))
    bed = make(kind, think_ns=0, size=40)
    bed.exchange(HttpStream(machine) if kind is HttpFlow else RedisStream(machine), 400, piece, moving=moving)
    records = bed.records()
    assert len(records) == bed.flow.count > 3
    assert not records["status"].any()
    assert not bed.flow.closing


@pytest.mark.parametrize("kind", [HttpFlow, RedisFlow])
def test_what_a_library_does_not_understand_ends_the_flow(make: Callable[..., Bed], kind: type[StreamFlow]) -> None:
    bed = make(kind, think_ns=0, size=40)
    bed.flow.sent(len(bed.flow.output(1000)))
    bed.flow.received(b"?nonsense\r\n\r\n")
    assert bed.flow.closing


def test_a_wrong_answer_is_noted(make: Callable[..., Bed]) -> None:
    bed = make(RequestFlow, think_ns=0, size=16)
    request = bytes(bed.flow.output(100))
    bed.flow.sent(len(request))
    bed.flow.received(request[:-1] + b"?")
    assert list(bed.records()["status"]) == [STATUS_CORRUPT]


def test_what_is_outstanding_when_it_ends_is_lost(make: Callable[..., Bed]) -> None:
    bed = make(RequestFlow, think_ns=0, size=16)
    bed.flow.sent(len(bed.flow.output(100)))
    bed.move()
    bed.flow.finish()
    assert list(bed.records()["received_ns"]) == [0]
    assert bed.flow.closing


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("rate_bps", [0, 10**12])
def test_a_download_is_verified_to_the_byte(make: Callable[..., Bed], moving: bool, rate_bps: int) -> None:
    bed = make(DownloadFlow, rate_bps=rate_bps)
    server: Any = HttpStream(MACHINE) if rate_bps else ChargenStream()
    bed.exchange(server, 200, 700, moving=moving)
    records = bed.records()
    assert bed.flow.report()["bytes"] == records["bytes"].sum() > 700
    assert not (records["status"] & STATUS_CORRUPT).any()
    bed.flow.received(b"\0" + bytes(pattern_slice(5, 10)))
    assert bed.records()["status"][-1] & STATUS_CORRUPT


@pytest.mark.parametrize("moving", [False, True])
def test_an_upload_ends_with_what_the_server_says_of_it(make: Callable[..., Bed], moving: bool) -> None:
    bed = make(UploadFlow, rate_bps=0)
    server: Any = HttpStream(MACHINE)
    bed.exchange(server, 60, 9000, moving=moving)
    bed.flow.stopping = bed.flow._ended = True  # type: ignore[attr-defined]
    bed.flow._unsent += b"0\r\n\r\n"  # type: ignore[attr-defined]
    bed.exchange(server, 60, 9000, moving=moving)
    assert bed.flow.done
    assert bed.flow.alive
    assert not [event for event in bed.events if event[0] == "upload_mismatch"]
    assert not (bed.records()["status"] & STATUS_CORRUPT).any()


def test_flows_are_refused_as_a_whole(outbound: Outbound) -> None:
    with pytest.raises(GuestError, match="no 'command' flow"):
        outbound.start([{"name": "a", "kind": "command"}])
    with pytest.raises(GuestError, match="a name of its own"):
        outbound.start([{"name": "a", "kind": "udp-echo"}, {"name": "a", "kind": "udp-echo"}])
    assert len(outbound) == 0


@pytest.mark.parametrize("broken", [{}, {"spec": {}}, {"spec": {"name": "a", "kind": "tcp-request"}}])
def test_a_state_that_is_none_is_refused(outbound: Outbound, broken: dict[str, Any]) -> None:
    with pytest.raises(GuestError, match="device state"):
        outbound.restore([broken])
    with pytest.raises(GuestError, match="of no flow"):
        outbound.service({"flow": "a"})
    assert set(KINDS) == {
        *("tcp-request", "tcp-idle", "tcp-download", "tcp-upload", "tcp-connect", "udp-echo", "udp-stream"),
        *("http", "redis"),
    }
