"""The client agent as a process: its commands, commands as flows, and what it refuses. No root, no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.errors import ProbeError
from bench.flows.http import MAX_HEAD_BYTES, parse_head
from bench.probe.clients import ClientAgents, FlowReport
from bench.probe.flows import FLOW_KINDS, FlowSpec
from bench.probe.records import load_records
from bench.scenario import ClientSpec
from bench.timeline import Event, Timeline


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[ClientAgents]:
    (tmp_path / "events").mkdir()
    (tmp_path / "logs").mkdir()
    with ClientAgents(tmp_path / "records", tmp_path / "events", tmp_path / "logs") as agents:
        agents.spawn("c1", None)
        yield agents


def command(name: str, *words: str) -> dict[str, Any]:
    return {"name": name, "kind": "command", "command": list(words)}


def poll_until(agents: ClientAgents, *wanted: tuple[str, dict[str, Any]]) -> None:
    """Poll until an event of each name with this data has come, in any order."""
    missing = list(wanted)
    deadline = Deadline(20 * NS_PER_S)

    def seen(event: Event) -> None:
        missing[:] = [want for want in missing if want[0] != event.name or not want[1].items() <= event.data.items()]

    while missing:
        assert not deadline.expired, missing
        agents.poll(seen, NS_PER_S // 10)


def by_name(reports: list[FlowReport]) -> dict[str, FlowReport]:
    return {report.name: report for report in reports}


def test_commands_as_flows(agents: ClientAgents, tmp_path: Path) -> None:
    flows = [
        command("fine", "sh", "-c", "echo guest {guest}; echo error >&2"),
        command("wrong", "sh", "-c", "exit 3"),
        command("long", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"),
        command("absent", "/nonexistent/program"),
        command("much", "sh", "-c", "head -c 6000000 /dev/zero"),
    ]
    agents.configure("c1", "10.0.1.1", flows)
    agents.start()
    ended = [("command_ended", {"flow": name}) for name in ("fine", "wrong", "much")]
    poll_until(agents, *ended, ("flow_status", {"name": "long", "alive": True}))
    reports = agents.stop()
    found = by_name(reports)
    assert found["fine"].report["alive"]
    assert found["fine"].report["exit_status"] == 0
    assert (tmp_path / "records/c1/fine.out").read_text() == "guest 10.0.1.1\nerror\n"
    assert (found["wrong"].report["alive"], found["wrong"].report["error"]) == (False, "exit status 3")
    assert found["long"].report["alive"]  # it was ended, it did not fail
    assert found["long"].report["exit_status"] == -9
    assert (found["absent"].report["alive"], found["absent"].report["error"]) == (False, "ENOENT")
    assert found["much"].report["output_bytes"] == 4 << 20
    assert found["much"].report["output_dropped_bytes"] == 6_000_000 - (4 << 20)
    assert all(len(load_records(report.records)) == 0 for report in reports)
    assert agents.stop() is reports
    timeline = Timeline.read(tmp_path / "events/client.c1.jsonl")
    assert {event.source for event in timeline} == {"client.c1"}
    assert timeline.first("flow_dead") is not None
    agents.close()
    agents.close()


def test_an_agent_that_dies_takes_only_its_flows(agents: ClientAgents) -> None:
    agents.configure("c1", "10.0.1.1", [command("one", "sleep", "60")])
    agents.start()
    poll_until(agents, ("flow_status", {"name": "one"}))
    agents.spawn("c2", None)
    agents.configure("c2", "10.0.1.1", [command("two", "sleep", "60")])
    agents._agents["c1"].process.stop()
    with pytest.raises(ProbeError, match="client agent of c1 died"):
        poll_until(agents, ("never", {}))
    found = by_name(agents.stop())
    assert (found["one"].report["alive"], found["one"].report["error"]) == (False, "agent died")
    assert found["two"].report["alive"]


def test_commands_out_of_order(agents: ClientAgents) -> None:
    with pytest.raises(ProbeError, match="after configure"):
        agents.start()
    with pytest.raises(ProbeError, match="unknown kind 'smoke-signal'"):
        agents.configure("c1", "10.0.1.1", [{"name": "a", "kind": "smoke-signal"}])
    agents.configure("c1", "10.0.1.1", [])
    with pytest.raises(ProbeError, match="once"):
        agents.configure("c1", "10.0.1.1", [])
    with pytest.raises(ProbeError, match="already"):
        agents.spawn("c1", None)
    assert agents.stop() == []


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        ({"name": "../../etc/x", "kind": "udp-echo"}, "name"),
        ({"name": "", "kind": "udp-echo"}, "name"),
        ({"name": "a", "kind": 3}, "kind"),
        ({"name": "a", "kind": "command", "command": "ls"}, "command"),
        ({"name": "a", "kind": "udp-echo", "size": 15}, "size"),
        ({"name": "a", "kind": "udp-echo", "size": True}, "size"),
        ({"name": "a", "kind": "udp-echo", "interval_ns": 0}, "interval_ns"),
        ({"name": "a", "kind": "udp-echo", "timeout_ns": "1s"}, "timeout_ns"),
        ("udp-echo", "object"),
    ],
)
def test_specs_are_checked(raw: object, what: str) -> None:
    with pytest.raises(ProbeError, match=what):
        FlowSpec.from_json(raw)


def test_specs_and_kinds() -> None:
    spec = FlowSpec.from_json({"name": "a", "kind": "udp-echo", "rate_bps": 0, "size": 100, "command": []})
    assert (spec.size, spec.interval_ns, spec.command) == (100, 1_000_000, ())
    assert set(FLOW_KINDS) == set(ClientSpec.model_fields["kind"].annotation.__args__)


def test_heads_of_http_responses() -> None:
    text = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 12\r\n\r\nbody"
    for end in range(len(text) - 4):
        assert parse_head(text[:end]) is None
    head = parse_head(text)
    assert head is not None
    assert (head.status, head.length, head.head_bytes) == (200, 12, len(text) - 4)
    for bad in (
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
    ):
        with pytest.raises(ProbeError):
            parse_head(bad)
