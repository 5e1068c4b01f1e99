"""The errors that flows die of, each by its own mechanism in one migration that stands still for seconds."""

from __future__ import annotations

import pytest
from bench_runs import PLAIN_LINKS, Bench, settings, started

from bench.result import FlowResult
from bench.timeline import Timeline

pytestmark = pytest.mark.root

# Where c2 has no neighbour entry of the guest's, the kernel asks for it three times a second apart, then says so.
FORGET = 'while sleep 0.2; do ip neigh flush to "$0"; done'
# What the server's kernel is told to destroy, it resets.
DESTROY = "sleep 0.7; ss -K state established '( sport = :7 )'; sleep 60"
SCENARIO = f"""
[network]
args = {{ clients = 2 }}
[links.default]
bandwidth = "1Gbit"
[guest]
memory = "16MiB"
store_memory = "1MiB"
[guest.workload]
rate = "1MiB/s"
working_set = "1MiB"
[migration]
hold = "5s"
[[clients]]
kind = "tcp-request"
name = "kernel"
tcp = {{ user_timeout = "500ms" }}
[[clients]]
kind = "tcp-request"
name = "client"
timeout = "800ms"
[[clients]]
kind = "tcp-request"
name = "again"
timeout = "800ms"
retry = true
[[clients]]
kind = "tcp-request"
name = "patient"
[[clients]]
kind = "tcp-request"
name = "unreachable"
host = "c2"
tcp = {{ user_timeout = "4s" }}
[[clients]]
kind = "command"
name = "forget"
host = "c2"
command = ["sh", "-c", '''{FORGET}''', "{{guest}}"]
[[clients]]
kind = "tcp-request"
name = "reset"
direction = "from-guest"
[[clients]]
kind = "command"
name = "destroy"
command = ["sh", "-c", '''{DESTROY}''']
[run]
warmup = "1s"
settle = "200ms"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    directory = tmp_path_factory.mktemp("errors")
    scenario = directory / "errors.toml"
    scenario.write_text(SCENARIO)
    with started(directory, *settings(*PLAIN_LINKS), scenario=scenario) as bench:
        bench.wait()  # with dead flows it need not be 0
    return bench


@pytest.fixture(scope="module")
def flows(run: Bench) -> dict[str, FlowResult]:
    result = run.result()
    assert result.outcome == "completed", result.reason
    return {flow.name: flow for flow in result.flows}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("kernel", "ETIMEDOUT"),
        ("client", "application timeout"),
        ("unreachable", "EHOSTUNREACH"),
        ("reset", "ECONNRESET"),
    ],
)
def test_a_flow_dies_of_what_killed_it_and_says_so(flows: dict[str, FlowResult], name: str, error: str) -> None:
    flow = flows[name]
    assert (flow.alive, flow.error, flow.verdict) == (False, error, "died")
    assert flow.died_ns is not None


def test_a_client_that_tries_again_has_reconnected_and_a_patient_one_was_delayed(flows: dict[str, FlowResult]) -> None:
    assert (flows["again"].alive, flows["again"].verdict) == (True, "reconnected")
    assert flows["again"].reconnects >= 1
    assert (flows["patient"].alive, flows["patient"].verdict) == (True, "delayed")


def test_the_stop_was_stretched_by_what_was_asked_for(run: Bench, flows: dict[str, FlowResult]) -> None:
    result = run.result()
    assert result.downtime_ns is not None
    assert 5 * 10**9 <= result.downtime_ns < 8 * 10**9
    outage_ns = flows["patient"].outage_ns
    assert outage_ns is not None
    assert outage_ns >= 5 * 10**9
    held = [event for event in Timeline.read(run.output / "events.jsonl") if event.name == "held"]
    assert [event.data["for_ns"] for event in held] == [5 * 10**9]


def test_the_patient_one_s_retransmissions_were_captured_and_back_off(flows: dict[str, FlowResult]) -> None:
    seen = flows["patient"].resent
    tcp = flows["patient"].tcp
    assert seen is not None
    assert tcp is not None
    assert seen.by_client >= 4  # 0.2, 0.6, 1.4, 3.0 s
    assert tcp.backoff >= 3
    assert tcp.timeouts >= 3
