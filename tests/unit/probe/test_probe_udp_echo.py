"""How long a datagram flow that has stopped waits for what is outstanding."""

from __future__ import annotations

import types
from pathlib import Path

from bench.clock import now_ns
from bench.flows.spec import GRACE_NS, FlowSpec
from bench.probe.flows.udp_echo import UdpEchoFlow


def stopped(directory: Path, *probes: tuple[int, int]) -> tuple[UdpEchoFlow, list[int]]:
    """A flow with these probes (sent and answered at, in ns; 0: not), and what its loop is told to wait for."""
    waits: list[int] = []
    loop = types.SimpleNamespace(at=lambda when_ns, _call, _fail: waits.append(when_ns))
    spec = FlowSpec.from_json({"name": "echo", "kind": "udp-echo", "interval_ns": 1_000_000})
    flow = UdpEchoFlow(spec, "127.0.0.1", loop, directory, lambda *_args, **_data: None)
    for number, (sent_ns, received_ns) in enumerate(probes):
        flow.records.append(sent_ns, 0, 64, 0)
        if received_ns:
            flow.records.answer(number, received_ns)
    flow.stop()
    return flow, waits


def test_the_youngest_that_is_open_is_waited_for(tmp_path: Path) -> None:
    now = now_ns()
    young = now - GRACE_NS // 4
    flow, waits = stopped(tmp_path, (now - 5 * GRACE_NS, 0), (young, 0), (now - 1000, now))
    assert not flow.done
    assert waits == [young + GRACE_NS]


def test_one_that_was_lost_long_ago_is_not(tmp_path: Path) -> None:
    now = now_ns()
    _flow, waits = stopped(tmp_path, (now - 5 * GRACE_NS, 0), (now - 1000, now))
    assert waits == [now - 4 * GRACE_NS]


def test_nothing_open_is_the_end(tmp_path: Path) -> None:
    now = now_ns()
    flow, waits = stopped(tmp_path, (now - 1000, now))
    assert flow.done
    assert not waits
