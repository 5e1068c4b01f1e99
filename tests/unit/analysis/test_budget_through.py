"""Which segment got through first: by constructed frames at the ports of one switch."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.analysis.budget import Through
from bench.analysis.flows import Outage
from bench.analysis.through import find_through, flow_path, guest_port
from bench.clock import NS_PER_MS
from bench.records import (
    DIRECTION_IN,
    DIRECTION_OUT,
    FRAME,
    KIND_IP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    StructuredArray,
    ip_to_int,
)

MS = NS_PER_MS
NAMES = ("s1-eth1", "s1-eth2", "s1-eth3")  # old hypervisor, new hypervisor, client
OLD, NEW, CLIENT = NAMES
IN, OUT = DIRECTION_IN, DIRECTION_OUT
WIRED = 130 * MS
OUTAGE = Outage(100 * MS, 400 * MS, True, 395 * MS)


def frames(*rows: tuple[float, str, int, dict[str, Any]]) -> StructuredArray:
    """(ms, interface, direction, fields) of frames; ``to_guest`` False turns the addresses round."""
    records = np.zeros(len(rows), FRAME)
    for record, (t_ms, interface, direction, given) in zip(records, sorted(rows, key=lambda row: row[0]), strict=True):
        given = {"kind": KIND_IP, "protocol": PROTOCOL_TCP, "payload": 100, **given}
        client, guest = (ip_to_int("10.0.0.9"), 40000), (ip_to_int("10.0.1.1"), 7)
        to_guest = given.pop("to_guest", True)
        source, target = (client, guest) if to_guest else (guest, client)
        record["t_ns"] = round(t_ms * MS)
        record["interface"] = NAMES.index(interface)
        record["direction"] = direction
        record["src_ip"], record["src_port"] = source
        record["dst_ip"], record["dst_port"] = target
        record["dst_is_guest"] = to_guest
        for name, value in given.items():
            record[name] = value
    return records


PATH = flow_path(
    NAMES,
    client=("10.0.0.9", 40000),
    guest=("10.0.1.1", 7),
    client_interface=CLIENT,
    new_interface=NEW,
    old_interface=OLD,
)


def test_a_lost_request_waits_for_the_clients_retransmission() -> None:
    seen = frames(
        (101, CLIENT, IN, {"seq": 500, "ip_id": 1}),
        (101.1, OLD, OUT, {"seq": 500, "ip_id": 1}),
        (131, NEW, IN, {"seq": 77, "payload": 0, "to_guest": False}),  # window probe
        (131.2, NEW, OUT, {"seq": 600, "payload": 0}),  # its answer moves nothing
        (310, CLIENT, IN, {"seq": 500, "ip_id": 2}),
        (310.3, NEW, OUT, {"seq": 500, "ip_id": 2}),
        (310.9, NEW, IN, {"seq": 78, "to_guest": False}),
    )
    assert find_through("tcp-request", seen, PATH, WIRED, OUTAGE) == Through(310 * MS, round(310.3 * MS), None)


def test_a_retransmission_that_passed_is_told_from_one_that_did_not() -> None:
    seen = frames(
        (140, CLIENT, IN, {"seq": 500, "ip_id": 1}),
        (140.2, OLD, OUT, {"seq": 500, "ip_id": 1}),
        (310, CLIENT, IN, {"seq": 500, "ip_id": 2}),
        (330, CLIENT, IN, {"seq": 500, "ip_id": 3}),  # on its way when number 2 passed
        (335, NEW, OUT, {"seq": 500, "ip_id": 2}),
    )
    through = find_through("tcp-upload", seen, PATH, WIRED, OUTAGE)
    assert through == Through(310 * MS, 335 * MS, round(140.2 * MS))


def test_a_super_frame_that_was_cut_on_its_way() -> None:
    wrap = 2**32 - 1000
    seen = frames(
        (310, CLIENT, IN, {"seq": wrap, "payload": 60000, "ip_id": 2}),
        (312, NEW, OUT, {"seq": 1448 - 1000, "payload": 1448, "ip_id": 3}),
    )
    assert find_through("tcp-upload", seen, PATH, WIRED, OUTAGE).left_ns == 310 * MS


def test_a_reply_that_was_cut_off_waits_for_the_guest() -> None:
    seen = frames(
        (99, NEW, IN, {"seq": 10, "to_guest": False}),
        (99.1, CLIENT, OUT, {"seq": 10, "to_guest": False}),
        (150, NEW, IN, {"seq": 10, "to_guest": False}),  # the client has that already
        (160, NEW, IN, {"seq": 110, "to_guest": False}),
        (160.2, CLIENT, OUT, {"seq": 110, "to_guest": False}),
    )
    assert find_through("tcp-download", seen, PATH, WIRED, OUTAGE).left_ns == 160 * MS


def test_probes_need_no_frames_to_know_when_they_left() -> None:
    assert find_through("udp-echo", frames(), PATH, None, OUTAGE) == Through(395 * MS, None, None)
    udp = {"protocol": PROTOCOL_UDP}
    seen = frames(
        (200, OLD, OUT, {**udp, "ip_id": 5}),
        (300, OLD, OUT, {**udp, "ip_id": 6}),  # flooded: to both
        (300, NEW, OUT, {**udp, "ip_id": 6}),
        (395.4, NEW, OUT, {**udp, "ip_id": 7}),
    )
    assert find_through("udp-echo", seen, PATH, WIRED, OUTAGE) == Through(395 * MS, round(395.4 * MS), 200 * MS)


def test_nothing_to_find() -> None:
    assert find_through("tcp-request", frames(), PATH, WIRED, OUTAGE) == Through()
    assert find_through("tcp-request", frames(), PATH, None, OUTAGE) == Through()
    assert find_through("tcp-request", frames(), PATH, WIRED, None) == Through()
    assert find_through("udp-echo", frames(), PATH, WIRED, Outage(1, 2, recovered=False)) == Through()
    unseen = flow_path(
        (), client=("10.0.0.9", 1), guest=("10.0.1.1", 7), client_interface="a", new_interface="b", old_interface="c"
    )
    assert find_through("tcp-request", frames((200, NEW, OUT, {})), unseen, WIRED, OUTAGE) == Through()


def test_ports_of_the_services() -> None:
    assert guest_port("tcp-download", 10**6) == 80
    assert guest_port("tcp-download", 0) == 19
    assert guest_port("udp-echo", 0) == guest_port("tcp-request", 0) == 7
    assert guest_port("tcp-upload", 0) == 80
    assert guest_port("command", 0) is None
