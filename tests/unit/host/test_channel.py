from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.errors import DeadlineError, GuestError, HostError
from bench.host.channel import MAX_MESSAGE_BYTES, Channel, ChannelClosed, serve_worker
from bench.timeline import Event


@pytest.fixture
def ends():
    here, there = Channel.pair("here", "there")
    other = Channel(there, "here")
    yield here, other
    here.close()
    other.close()


def test_a_command_gets_its_reply_and_events_in_between(ends):
    here, there = ends
    events: list[Event] = []

    def serve() -> None:
        message = there.receive(Deadline(10**9))
        there.send_event(Event(1, "there", "working"))
        there.send_reply(message["id"], {"echo": message["args"]["x"]})

    thread = threading.Thread(target=serve)
    thread.start()
    assert here.call("echo", {"x": 3}, deadline=Deadline(10**9), on_event=events.append) == {"echo": 3}
    thread.join()
    assert [event.name for event in events] == ["working"]


def test_an_error_reply_raises_with_its_text(ends):
    here, there = ends
    there.send({"reply": 1, "error": "no such guest"})
    with pytest.raises(GuestError, match="no such guest"):
        here.call("x", deadline=Deadline(10**9))


def test_descriptors_arrive_with_their_message(ends):
    here, there = ends
    read, write = os.pipe()
    here.send({"take": "this"}, [write])
    message = there.receive(Deadline(10**9))
    (got,) = there.take_fds(message["fds"])
    os.write(got, b"x")
    assert os.read(read, 1) == b"x"
    for fd in (read, write, got):
        os.close(fd)
    with pytest.raises(HostError, match="announced 1"):
        there.take_fds(1)


def test_silence_end_of_file_and_nonsense_are_errors(ends):
    here, there = ends
    with pytest.raises(DeadlineError):
        here.receive(Deadline(1000))
    there.sock.sendall(b"[1]\n")
    with pytest.raises(HostError, match="no object"):
        here.receive(Deadline(10**9))
    there.sock.sendall(b"{\n")
    with pytest.raises(HostError, match="not JSON"):
        here.receive(Deadline(10**9))
    there.sock.close()
    with pytest.raises(ChannelClosed):
        here.receive(Deadline(10**9))
    with pytest.raises(ChannelClosed):
        here.send({"x": 1})


def test_a_message_without_end_is_bounded(ends):
    here, there = ends

    def flood() -> None:
        with contextlib.suppress(OSError):
            there.sock.sendall(b"x" * (MAX_MESSAGE_BYTES + (2 << 20)))

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(HostError, match="over"):
        here.receive(Deadline(30 * 10**9))
    here.sock.close()
    thread.join()


def test_what_is_ready_is_read_without_waiting_for_the_rest(ends):
    here, there = ends
    there.sock.sendall(b'{"a":1}\n{"b":2}\n{"c"')
    assert here.receive_ready() == [{"a": 1}, {"b": 2}]
    there.sock.sendall(b":3}")
    assert here.receive_ready() == []
    there.sock.sendall(b"\n")
    assert here.receive_ready() == [{"c": 3}]
    there.close()
    with pytest.raises(ChannelClosed):
        here.receive_ready()


class Counting:
    """A worker that has one turn for each word of its channel, and refuses to count down."""

    def __init__(self, args):
        self.count = args["from"]
        self.turns = 0
        self.closed = False

    def turn(self, channel_fd):
        self.turns += 1
        return bool(select.select([channel_fd], [], [])[0])

    def command(self, name, args):
        if args["by"] < 0:
            raise ValueError(f"{name} by {args['by']}")
        self.count += args["by"]

    def close(self):
        self.closed = True


def test_a_worker_is_made_by_the_first_command_and_has_its_turns_until_the_end():
    ours, theirs = Channel.pair("runner", "worker")
    made = []

    def make(args):
        made.append(Counting(args))
        return made[-1]

    for name, args in (("start", {}), ("start", {"from": 5}), ("add", {"by": 2}), ("add", {"by": -1})):
        ours.post(name, args)
    ours.sock.shutdown(socket.SHUT_WR)
    other = Channel(theirs, "runner")
    serve_worker(other, make)
    answers = [ours.receive(Deadline(NS_PER_S)) for _ in range(4)]
    assert ["error" in answer for answer in answers] == [True, False, False, True]
    assert [answers[0]["error"], answers[3]["error"]] == ["KeyError: 'from'", "ValueError: add by -1"]
    (worker,) = made
    assert (worker.count, worker.closed) == (7, True)
    assert worker.turns >= 1
    ours.close()
    other.close()
