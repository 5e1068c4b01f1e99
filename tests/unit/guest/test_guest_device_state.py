"""The device state survives the journey, and nothing else is taken for one."""

import contextlib
import dataclasses
import json
import struct

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.guest.device_state import (
    SOCKET_OPTIONS,
    TCP_STATES,
    U32,
    DatagramState,
    DeviceState,
    StreamState,
    TcpState,
    decode,
    encode,
)

u32 = st.integers(0, U32)
ips = st.ip_addresses(v=4).map(str)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
endpoints = st.tuples(ips, st.integers(1, 65535))
json_objects = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.booleans()), max_size=3
)


@st.composite
def tcp_states(draw: st.DrawFn) -> TcpState:
    sending = draw(st.binary(max_size=200))
    unsent = draw(st.integers(0, len(sending)))
    return TcpState(
        state=draw(st.sampled_from(TCP_STATES)),
        local=draw(endpoints),
        remote=draw(endpoints),
        mss=draw(st.integers(1, 65535)),
        sack=draw(st.booleans()),
        window_scale=draw(st.none() | st.tuples(st.integers(0, 14), st.integers(0, 14))),
        timestamp=draw(st.none() | u32),
        receive_sequence=draw(u32),
        send_sequence=draw(u32),
        window=draw(st.tuples(u32, u32, u32, u32, u32)),
        congestion=draw(st.sampled_from(["cubic", "bbr", "reno"])),
        linger=draw(st.tuples(st.integers(0, 1), st.integers(0, 60))),
        options={name: draw(st.integers(-1, 1 << 20)) for name in SOCKET_OPTIONS},
        unsent_bytes=unsent,
        backlog_bytes=draw(st.integers(0, unsent)),
        fin_unsent=draw(st.booleans()),
        congestion_window=draw(st.integers(1, U32)),
        receive_queue=draw(st.binary(max_size=200)),
        send_queue=sending,
    )


streams = st.builds(StreamState, st.sampled_from(["echo", "redis"]), json_objects, st.booleans(), tcp_states())
datagrams = st.builds(DatagramState, st.integers(1, 65535), endpoints, st.binary(max_size=100))
states = st.builds(
    DeviceState,
    name=st.just("g"),
    memory_bytes=st.integers(1, 1 << 40),
    mac=macs,
    address=st.just("10.0.1.1/16"),
    owner=st.sampled_from(["h1", "h2"]),
    generation=st.integers(0, 1 << 40),
    registers=st.lists(json_objects, max_size=3).map(tuple),
    neighbours=st.lists(st.tuples(ips, macs), max_size=3).map(tuple),
    streams=st.lists(streams, max_size=4).map(tuple),
    datagrams=st.lists(datagrams, max_size=3).map(tuple),
    counters=st.dictionaries(st.text("abc.", max_size=5), st.integers(0, 1 << 40), max_size=3),
)

MINIMAL = DeviceState("g", 4096, "02:00:00:00:01:01", "10.0.1.1/16", "h1", 1)


def blob(state: DeviceState) -> bytes:
    return b"".join(encode(state))


@settings(max_examples=40, deadline=None)
@given(state=states)
def test_what_is_encoded_is_decoded(state: DeviceState) -> None:
    assert decode(blob(state)) == state


def test_ipv6_is_carried_as_well() -> None:
    state = dataclasses.replace(
        MINIMAL,
        neighbours=(("fd00::2", "02:00:00:00:01:02"),),
        datagrams=(DatagramState(7, ("fd00::2", 40000), b"unread", "fd00::1"),),
    )
    assert decode(blob(state)) == state


@settings(max_examples=60, deadline=None)
@given(state=states, data=st.data())
def test_a_damaged_state_is_one_guest_error(state: DeviceState, data: st.DataObject) -> None:
    good = blob(state)
    at = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(GuestError):
        decode(good[:at])
    with pytest.raises(GuestError):
        decode(good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :])
    with pytest.raises(GuestError):
        decode(good + b"\0")


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_one_guest_error(noise: bytes) -> None:
    with pytest.raises(GuestError):
        decode(noise)


def sealed(header: object, body: bytes = b"", version: int = 1) -> bytes:
    """A state whose prefix is right, whatever the header says: what a hostile peer can send."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    digest = xxhash.xxh3_64_intdigest(text + body)
    return struct.pack("!4sHHIQQ", b"MBDS", version, 0, len(text), len(body), digest) + text + body


def header_of(state: DeviceState) -> dict:
    return json.loads(encode(state)[1])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None)
@given(key=st.sampled_from(sorted(header_of(MINIMAL))), value=json_values)
def test_hostile_headers_give_a_state_or_one_guest_error(key: str, value: object) -> None:
    with contextlib.suppress(GuestError):
        decode(sealed({**header_of(MINIMAL), key: value}))


@settings(max_examples=120, deadline=None)
@given(tcp=tcp_states(), data=st.data(), value=json_values)
def test_hostile_connections_give_a_state_or_one_guest_error(tcp: TcpState, data: st.DataObject, value: object) -> None:
    state = dataclasses.replace(MINIMAL, streams=(StreamState("echo", {}, False, tcp),))
    header = header_of(state)
    connection = header["streams"][0]["tcp"]
    connection[data.draw(st.sampled_from(sorted(connection)))] = value
    with contextlib.suppress(GuestError):
        decode(sealed(header, tcp.receive_queue + tcp.send_queue))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        sealed(b""),
        sealed(b"[" * 100_000),
        sealed([]),
        sealed({}),
        sealed(b'{"name": NaN}'),
        sealed(header_of(MINIMAL), version=2),
        sealed(header_of(MINIMAL), b"left over"),
        sealed({**header_of(MINIMAL), "neighbours": [["10.0.0.1"]]}),
        sealed({**header_of(MINIMAL), "datagrams": [{"port": 7, "remote": ["1.2.3.4", 5], "bytes": 10**9}]}),
        sealed({**header_of(MINIMAL), "generation": True}),
        sealed({**header_of(MINIMAL), "mac": "02:00:00:00:01"}),
        sealed({**header_of(MINIMAL), "streams": [{}] * 70_000}),
    ],
)
def test_these_are_refused(raw: bytes) -> None:
    with pytest.raises(GuestError):
        decode(raw)


def test_the_announced_length_is_not_believed() -> None:
    """Nothing is allocated for a length that is not there."""
    prefix = struct.pack("!4sHHIQQ", b"MBDS", 1, 0, 1 << 25, 1 << 60, 0)
    with pytest.raises(GuestError):
        decode(prefix)
