"""Frames leave at their times, from a process of its own; here by sockets that need no root."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import GuestError
from bench.guest.announcer import Announcement, Announcer, Send
from bench.guest.loop import Loop
from bench.guest.punctual_sender import Due, PunctualSender, Sent
from bench.host.channel import ChannelClosed

FIRST, SECOND = b"first frame....", b"second frame..."


Card = tuple[socket.socket, socket.socket]


@pytest.fixture
def card() -> Iterator[Card]:
    """A socket in place of a card's, and where its frames come out."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def received(sender: PunctualSender, count: int) -> list[Sent]:
    """*count* reports."""
    found: list[Sent] = []
    deadline = Deadline(5 * NS_PER_S)
    while len(found) < count:
        assert select.select([sender], [], [], deadline.remaining_s)[0]
        found += sender.receive()
    return found


def test_frames_leave_in_their_order_and_never_early(card: Card) -> None:
    here, there = card
    sender = PunctualSender([here])
    begin_ns = now_ns()
    due = [begin_ns + 2 * NS_PER_MS, begin_ns + 2 * NS_PER_MS, begin_ns + 4 * NS_PER_MS]
    plan = sender.plan([Due(due[0], 0, FIRST), Due(due[1], 0, None), Due(due[2], 0, SECOND)])
    told = received(sender, 3)
    assert [(item.plan, item.which, item.error) for item in told] == [(plan, 0, ""), (plan, 1, ""), (plan, 2, "")]
    assert all(item.at_ns >= due_ns for item, due_ns in zip(told, due, strict=True))
    assert [there.recv(100), there.recv(100)] == [FIRST, SECOND]
    assert sender.close() == []


def test_a_plan_replaces_the_one_before(card: Card) -> None:
    here, there = card
    sender = PunctualSender([here])
    sender.plan([Due(now_ns() + 60 * NS_PER_S, 0, FIRST)])
    plan = sender.plan([Due(now_ns(), 0, SECOND)])
    assert [(item.plan, item.which) for item in received(sender, 1)] == [(plan, 0)]
    assert there.recv(100) == SECOND
    sender.close()


def test_a_frame_that_cannot_leave_is_told_of_with_its_reason(card: Card) -> None:
    here, there = card
    sender = PunctualSender([here])
    there.close()
    sender.plan([Due(now_ns(), 0, FIRST), Due(now_ns(), 5, FIRST)])
    assert all(item.error for item in received(sender, 2))
    sender.close()


def test_it_keeps_nothing_of_its_parents_and_ends_with_it(card: Card) -> None:
    here, _there = card
    readable, writable = os.pipe()
    sender = PunctualSender([here])
    os.close(writable)
    assert os.read(readable, 1) == b""  # the child would hold it open
    os.close(readable)
    assert sender.close() == []
    assert sender.close() == []


def test_that_it_was_killed_is_told_of(card: Card) -> None:
    here, _there = card
    sender = PunctualSender([here])
    os.kill(sender.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sender.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ChannelClosed):
        sender.receive()
    with pytest.raises(GuestError, match="gone"):
        sender.plan([Due(now_ns(), 0, FIRST)])
    assert sender.close() == []


class Told:
    """What an announcer says of its frames."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, bool, str]] = []
        self.late_ns: list[int] = []

    def __call__(self, kind: str, _card: int, send: Send, number: int, times: tuple[int, int], error: str) -> None:
        self.sent.append((kind, number, send.lost, error))
        self.late_ns.append(times[1] - times[0])


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch, card: Card, told: Told) -> Iterator[tuple[Announcer, Loop]]:
    """An announcer by the card, and its loop."""
    monkeypatch.setattr("bench.guest.announcer.open_cards", lambda _interfaces: [card[0]])
    loop = Loop()
    announcer = Announcer(["eth0"], loop, told)
    yield announcer, loop
    announcer.close()
    loop.close()


def test_an_announcer_sends_what_is_due_itself_and_has_the_rest_sent(
    speaking: tuple[Announcer, Loop], told: Told, card: Card
) -> None:
    announcer, loop = speaking
    announcement = Announcement(
        frames=(("rarp", FIRST), ("garp", SECOND)),
        sends=(Send(0, 0), Send(0, 1, lost=True), Send(NS_PER_MS, 0, lost=True), Send(NS_PER_MS, 1)),
    )
    begin_ns = now_ns()
    assert announcer.begin(announcement, begin_ns) >= begin_ns
    assert told.sent[:2] == [("rarp", 0, False, ""), ("garp", 0, True, "")]
    deadline = Deadline(5 * NS_PER_S)
    while len(told.sent) < 4 and not deadline.expired:
        loop.turn(deadline.remaining_s)
    assert told.sent[2:] == [("rarp", 1, True, ""), ("garp", 1, False, "")]
    assert all(late_ns >= 0 for late_ns in told.late_ns)
    assert [card[1].recv(100), card[1].recv(100)] == [FIRST, SECOND]


def test_nothing_is_announced_any_more_once_it_is_closed(
    speaking: tuple[Announcer, Loop], told: Told, card: Card
) -> None:
    announcer, _loop = speaking
    announcer.begin(Announcement(frames=(("rarp", FIRST),), offsets_ns=(60 * NS_PER_S,)), now_ns())
    announcer.close()
    announcer.close()
    assert card[1].recv(100) == b""
    assert told.sent == []
