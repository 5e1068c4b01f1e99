"""Post-copy's parts that need no guest: frames as they trickle in, the push's window, orders, the driver's watch."""

import contextlib
import select
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import MigrationError, WireError
from bench.memory.bitmap import DirtyBitmap
from bench.migration import wire
from bench.migration.driver import PostCopyWatch
from bench.migration.modes import MODES, load_mode
from bench.migration.order import Order
from bench.migration.policy import Action, Limits, Progress, next_step
from bench.migration.postcopy import NEAR_AFTER, NEAR_BEFORE, PageServer, PushWindow
from bench.migration.reader import FrameReader
from bench.migration.transport import Connection, PeerClosed
from bench.migration.wire import Kind
from bench.timeline import Event

PAGES = 600
KINDS = (Kind.RUN, Kind.PAGES, Kind.ZERO, Kind.REQUEST, Kind.ROUND_END)


@contextlib.contextmanager
def trickle():
    """A socket to write to, and a reader of its other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs = Connection(listener.accept()[0])
    listener.close()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield ours, FrameReader(theirs, KINDS, PAGES)
    finally:
        ours.close()
        theirs.close()


def read_to_the_end(reader):
    while True:
        select.select([reader.connection], [], [], 5)
        list(reader.ready())


def stream():
    """Bytes of some frames, and what a reader must find."""
    rows = np.arange(3 * 512, dtype=np.uint64)
    indices = np.array([1, 5, 9], dtype=np.uint32)
    parts = [
        wire.encode_pages(indices) + rows.tobytes(),
        wire.encode_zero(np.array([[10, 20]], dtype=np.uint32)),
        wire.encode_run(7, 3) + rows.tobytes(),
        wire.encode_request(indices),
        wire.encode_round_end(1, 26),
    ]
    found = [
        (Kind.PAGES, 3, rows.tobytes()),
        (Kind.ZERO, 1, b""),
        (Kind.RUN, 3, rows.tobytes()),
        (Kind.REQUEST, 3, b""),
        (Kind.ROUND_END, 1, b""),
    ]
    return b"".join(parts), found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12))
def test_frames_are_found_however_they_are_cut(cuts):
    data, expected = stream()
    found = []
    with trickle() as (sock, reader):
        for size in [*cuts, len(data)]:
            piece, data = data[:size], data[size:]
            sock.sendall(piece)
            reader.connection.sock.setblocking(True)
            while piece:
                before = reader._end - reader._begin
                got = [(frame.kind, frame.count, bytes(payload)) for frame, payload in reader.ready()]
                found += got
                if got or reader._end - reader._begin != before:
                    break
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(PeerClosed):
            while True:
                found += [(frame.kind, frame.count, bytes(payload)) for frame, payload in reader.ready()]
    assert found == expected


def test_many_large_frames_fit_the_buffer():
    rows = np.arange(wire.MAX_FRAME_PAGES * 512, dtype=np.uint64).tobytes()
    with trickle() as (sock, reader):
        sock.setblocking(False)
        data = memoryview((wire.encode_run(0, wire.MAX_FRAME_PAGES) + rows) * 4)
        frames = 0
        while frames < 4:
            with contextlib.suppress(BlockingIOError):
                data = data[sock.send(data) :] if data else data
            for frame, payload in reader.ready():
                assert (frame.count, payload.nbytes) == (wire.MAX_FRAME_PAGES, len(rows))
                assert bytes(payload) == rows
                frames += 1


def test_a_frame_that_is_not_due_is_one_error():
    with trickle() as (sock, reader):
        sock.sendall(wire.encode_device(10))
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="DEVICE"):
            read_to_the_end(reader)


def test_the_end_of_the_stream_is_told_from_nothing_now():
    with trickle() as (sock, reader):
        assert list(reader.ready()) == []
        sock.close()
        with pytest.raises(PeerClosed):
            read_to_the_end(reader)


@given(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=8, unique=True), st.integers(1, 64))
def test_what_lies_around_the_latest_faults_is_pushed_first_and_every_page_once(faults, limit):
    pending = DirtyBitmap(PAGES, dirty=True)
    pending.clear_pages(np.array(faults))  # those were answered
    server = PageServer(SimpleNamespace(pending=pending))
    server._near.extend(faults)
    near = [set(range(max(0, page - NEAR_BEFORE), min(PAGES, page + NEAR_AFTER))) for page in reversed(faults)]
    left, pushed = set(range(PAGES)) - set(faults), []
    while len(pages := server._next_pages(limit).tolist()):
        first = next((around & left for around in near if around & left), left)
        assert set(pages) <= first
        left -= set(pages)
        pushed += pages
    assert sorted(pushed + faults) == list(range(PAGES))


def test_the_push_window_shrinks_with_the_queue_and_fills_an_empty_link():
    window = PushWindow()
    for _ in range(100):
        window.adapt(50 * NS_PER_MS, NS_PER_MS)
    assert window.bytes == PushWindow.LEAST
    for _ in range(100):
        window.adapt(NS_PER_MS, NS_PER_MS)
    assert window.bytes == PushWindow.MOST


def order(**changes):
    migration = {"downtime_limit_ns": 0, "max_rounds": 1, "max_time_ns": 1, "max_bandwidth_bps": 0, **changes}
    return Order.from_json(
        {"guest_socket": "s", "guest": {}, "address": "a", "port": 1, "announce": {}, "migration": migration}
    )


def test_orders_say_what_the_destination_prepares_for():
    assert order().post_copy == "never"
    assert order(mode="stop-and-copy").post_copy == "never"
    assert order(mode="postcopy").post_copy == "at-once"
    assert order(mode="hybrid").post_copy == "later"
    assert order(on_no_convergence="post-copy").post_copy == "later"
    assert order(downtime_limit_ns="min").limits.downtime_limit_ns is None


@pytest.mark.parametrize("changes", [{"mode": "postcopy"}, {"mode": "hybrid"}, {"on_no_convergence": "post-copy"}])
def test_comparing_memories_in_the_pause_is_refused_with_post_copy(changes):
    with pytest.raises(MigrationError, match="background"):
        order(verify="pause", **changes)


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_what_the_registry_calls_it(name):
    assert load_mode(name).name == name


def test_the_least_downtime_goes_on_as_long_as_rounds_shrink_the_rest():
    limits = Limits(None, max_rounds=30, max_time_ns=60 * NS_PER_S)
    left, least = [64 << 20, 20 << 20, 6 << 20, 2 << 20, 3 << 20], None
    actions = []
    for number, remaining in enumerate(left, 1):
        actions.append(next_step(Progress(remaining, 10**9, number, 0, least), limits).action)
        least = remaining if least is None else min(least, remaining)
    assert actions == [Action.ROUND] * 4 + [Action.SWITCHOVER]
    assert next_step(Progress(4096, 10**9, 1, 0, None), limits).action is Action.SWITCHOVER


def test_no_convergence_can_end_in_post_copy():
    limits = Limits(0, max_rounds=2, max_time_ns=60 * NS_PER_S, on_no_convergence="post-copy")
    assert next_step(Progress(4096, 10**9, 1, 0), limits).action is Action.ROUND
    assert next_step(Progress(4096, 10**9, 2, 0), limits).action is Action.POST_COPY


def test_the_driver_recovers_by_itself_only_when_asked_to():
    paused = Event(0, "engine.source", "postcopy_paused", {})
    watch = PostCopyWatch(0, NS_PER_S)
    watch.note(paused)
    assert not watch.recover_due()
    watch = PostCopyWatch(NS_PER_S, 0)
    assert not watch.recover_due()
    watch.note(paused)
    assert watch.recover_due()
    assert not watch.recover_due()
    assert watch.given_up
    watch.note(Event(0, "engine.source", "postcopy_recovered", {}))
    assert not watch.given_up


def test_a_guest_without_all_its_pages_is_incomplete():
    watch = PostCopyWatch(0, 0)
    watch.note(Event(0, "engine.source", "postcopy_listen", {}))
    assert watch.incomplete
    watch.note(Event(0, "engine.destination", "postcopy_complete", {}))
    assert not watch.incomplete
