"""Echo, discard, chargen and their pattern."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.flows.pattern import pattern_slice
from bench.guest.services.base import OUTPUT_BOUND_BYTES, Machine
from bench.guest.services.pattern import PERIOD_BYTES, RING_SLICE_BYTES, chargen_slice
from bench.guest.services.registry import STREAM_PORTS, open_datagram, open_stream, restore_stream
from bench.guest.store import MIN_REGION_BYTES, Store


@pytest.fixture
def machine() -> Machine:
    memory = memoryview(bytearray(4 * MIN_REGION_BYTES))
    return Machine(memory, Store.format(memory[-MIN_REGION_BYTES:]))


def test_the_pattern_is_rfc_864s():
    lines = bytes(chargen_slice(0, PERIOD_BYTES + 74)).split(b"\r\n")
    assert lines[0] == (b" !\"#$%&'()*+,-./0123456789:;<=>?@" + string.ascii_uppercase.encode() + b"[\\]^_`abcdefg")
    assert lines[1] == lines[0][1:] + b"h"
    assert all(len(line) == 72 for line in lines[:-1])
    assert lines[95] == lines[0]


@given(st.integers(0, 1 << 70), st.integers(0, 3 * PERIOD_BYTES))
def test_a_slice_depends_on_the_offset_alone(offset, count):
    piece = chargen_slice(offset, count)
    assert len(piece) == count
    assert piece == pattern_slice(offset, count)  # the clients' own implementation
    half = count // 2
    assert bytes(piece) == bytes(chargen_slice(offset, half)) + bytes(chargen_slice(offset + half, count - half))


def test_slices_of_any_size():
    for count in (RING_SLICE_BYTES, RING_SLICE_BYTES + 1, 1 << 20):
        piece = bytes(chargen_slice(PERIOD_BYTES - 1, count))
        assert len(piece) == count
        assert piece[1 : PERIOD_BYTES + 1] == bytes(chargen_slice(0, PERIOD_BYTES))
        assert piece[-10:] == bytes(chargen_slice(PERIOD_BYTES - 1 + count - 10, 10))
    with pytest.raises(ValueError, match="no slice"):
        chargen_slice(-1, 1)


def moved(name, service, machine):
    return restore_stream(name, json.loads(json.dumps(service.export())), machine)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20), st.booleans())
@settings(deadline=None)
def test_echo_returns_every_byte_wherever_it_moves(pieces, limit, eof):
    memory = memoryview(bytearray(2 * MIN_REGION_BYTES))
    machine = Machine(memory, Store.format(memory[-MIN_REGION_BYTES:]))
    service, out = open_stream("echo", machine), b""
    for piece in pieces:
        service.received(piece)
        service = moved("echo", service, machine)
        data = service.output(limit)
        service.sent(len(data) // 2)
        out += data[: len(data) // 2]
    if eof:
        service.received_eof()
    service = moved("echo", service, machine)
    assert service.closing == eof
    while data := service.output(limit):
        service.sent(len(data))
        out += data
    assert out == b"".join(pieces)


def test_echo_stops_reading_when_nobody_takes_its_output(machine):
    service = open_stream("echo", machine)
    service.received(bytes(OUTPUT_BOUND_BYTES))
    assert not service.reading
    service.sent(len(service.output(1)))
    assert service.reading


def test_discard_counts_and_ends(machine):
    service = open_stream("discard", machine)
    service.received(b"abc")
    service = moved("discard", service, machine)
    service.received(b"de")
    assert service.output(100) == b""
    assert (service.export()["received_bytes"], service.reading, service.closing) == (5, True, False)
    service.received_eof()
    assert moved("discard", service, machine).closing


def test_chargen_goes_on_at_its_offset(machine):
    service, out = open_stream("chargen", machine), b""
    service.received(b"ignored")
    for count in (1, 73, 5000, 4000):
        data = bytes(service.output(count))
        assert len(data) == count
        service.sent(count - 1)
        out += data[:-1]
        service = moved("chargen", service, machine)
    assert out == bytes(chargen_slice(0, len(out)))
    assert len(service.output(1 << 30)) == RING_SLICE_BYTES
    service.received_eof()
    assert service.closing
    assert service.output(10) == b""


def test_datagrams():
    assert open_datagram("echo").datagram(b"x") == b"x"
    assert open_datagram("discard").datagram(b"x") is None


def test_broken_states_and_names_are_refused(machine):
    for name in ("echo", "discard", "chargen"):
        good = open_stream(name, machine).export()
        for key in good:
            with pytest.raises(GuestError, match=name):
                restore_stream(name, {other: value for other, value in good.items() if other != key}, machine)
    with pytest.raises(GuestError):
        restore_stream("chargen", {"sent_bytes": -1, "eof": False}, machine)
    with pytest.raises(GuestError):
        restore_stream("echo", {"out": "%%%", "eof": False}, machine)
    for call in (open_stream, lambda name, machine: restore_stream(name, {}, machine)):
        with pytest.raises(GuestError, match="no stream service"):
            call("telnet", machine)
    with pytest.raises(GuestError, match="no datagram service"):
        open_datagram("tftp")
    assert {7: "echo", 9: "discard", 19: "chargen"}.items() <= STREAM_PORTS.items()
