"""Runs as users vary them: other workloads, controllers, topologies and links; two at the same time."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bench_runs import BENCH, LENIENT, QUICK, Bench, events_of, flow_records, require_moved, settings, started
from test_run_smallest import require_budgets

from bench.clock import NS_PER_MS
from bench.probe.records import load_records
from bench.result import RunResult

pytestmark = pytest.mark.root

# Two racks; the hosts' parts are told by node options, and the arguments come from the command line.
RACKS = """
from mininet.topo import Topo

class Racks(Topo):
    def build(self, clients=1, spine="s9"):
        self.addSwitch(spine)
        for number in (1, 2):
            rack = self.addSwitch(f"s{number}")
            self.addLink(rack, spine)
            self.addLink(self.addHost(f"hv{number}", role="hypervisor"), rack)
        for number in range(1, clients + 1):
            self.addLink(self.addHost(f"c{number}", role="client"), spine)

topos = {"racks": Racks}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Bench]:
    """Two runs at the same time, with different parts of everything."""
    directory = tmp_path_factory.mktemp("pair")
    topology = directory / "racks.py"
    topology.write_text(RACKS)
    first = [
        *settings(*QUICK, 'controller.framework="os-ken"', "guest.workload.pattern=sequential", "guest.vcpus=2"),
        *settings("migration.compression=zstd", "migration.security=tls"),
        *("--topo", "linear,switches=2"),
    ]
    second = [
        *settings(*QUICK, 'controller.app="standalone"', "guest.workload.pattern=uniform", "clients.3.host=c2"),
        *settings("migration.security=ssh"),
        *("--topo", f"{topology}:racks,2,spine=s7"),
    ]
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(started(directory / name, *arguments))
            for name, arguments in (("first", first), ("second", second))
        ]
        for run in runs:
            assert run.wait() == 0, run.stdout + run.stderr
    return runs[0], runs[1]


@pytest.fixture(scope="module")
def linear(pair: tuple[Bench, Bench]) -> RunResult:
    return pair[0].result()


@pytest.fixture(scope="module")
def racks(pair: tuple[Bench, Bench]) -> RunResult:
    return pair[1].result()


def test_two_runs_at_the_same_time_do_not_disturb_each_other(linear: RunResult, racks: RunResult) -> None:
    for result in (linear, racks):
        require_moved(result)
        require_budgets(result)
    assert linear.start_ns < racks.end_ns
    assert racks.start_ns < linear.end_ns


def test_os_ken_and_a_row_of_switches(linear: RunResult) -> None:
    assert linear.environment["controller"] == "os-ken/learning"
    assert [switch.name for switch in linear.relearn.switches] == ["s1", "s2"]
    for switch in linear.relearn.switches:
        assert switch.controller_ns is not None
        assert switch.confirmed_ns is not None
        assert switch.stable_ns is not None
    assert "s1-s2" in {link.name for link in linear.links}


def test_levers_say_what_they_saved_and_cost_and_the_prediction_knew_them(
    pair: tuple[Bench, Bench], linear: RunResult, racks: RunResult
) -> None:
    assert linear.cost["compression"]["saved_bytes"] > 0
    assert linear.cost["security"]["carrier"] == "tls"
    assert racks.cost["security"]["carrier"] == "ssh"
    for result, run in ((linear, pair[0]), (racks, pair[1])):
        assert result.cost["security"]["cpu_ns"] > 0
        assert result.prediction is not None
        assert result.cost["security"]["carrier"].upper() in result.prediction.note
        assert "\nLevers " in run.stdout
    assert linear.prediction is not None
    assert linear.prediction.predicted is not None
    assert 0 < linear.prediction.inputs["levers"]["wire_share"] < 1
    assert linear.prediction.predicted.bytes < linear.memory.bytes * 6 // 10  # plain it were 7: 3 are zero


def test_a_users_topology_without_a_controller(racks: RunResult) -> None:
    assert racks.environment["controller"].endswith("standalone")
    assert (racks.source, racks.destination) == ("hv1", "hv2")
    assert {flow.host for flow in racks.flows} == {"c1", "c2"}
    assert {link.name for link in racks.links} == {"s1-s7", "hv1-s1", "s2-s7", "hv2-s2", "c1-s7", "c2-s7"}
    switches = {switch.name: switch for switch in racks.relearn.switches}
    assert all(switch.controller_ns is None for switch in switches.values())
    for name in ("s7", "s2"):  # on the clients' way; through the old rack nobody goes to the new one
        assert switches[name].first_frame_ns is not None, name
        assert switches[name].stable_ns is not None, name


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An idle guest whose client is behind a bad link."""
    link = "links.c1-s1={delay='2ms', jitter='1ms', loss='5%', bandwidth='100Mbit'}"
    changes = (*LENIENT, "run.warmup=1s", "run.settle=300ms", "guest.workload.pattern=idle", link)
    with started(tmp_path_factory.mktemp("rough"), *settings(*changes)) as run:
        assert run.wait() == 0, run.stdout + run.stderr
    return run


def test_an_idle_guest_moves_in_one_round(rough: Bench) -> None:
    result = rough.result()
    assert result.outcome == "completed"
    assert result.memory.identical is True
    assert result.rounds[0].dirty_pages_after < 64  # the services' own, not a workload's


def test_loss_and_jitter_are_there_where_they_were_asked_for(rough: Bench) -> None:
    result = rough.result()
    links = {link.name: link for link in result.links}
    assert links["c1-s1"].asked != links["h1-s1"].asked
    assert links["c1-s1"].applied != links["h1-s1"].applied
    flows = {flow.kind: flow for flow in result.flows}
    udp = flows["udp-echo"]
    # 5 % each way make 9.75 %; what the switchover swallows comes on top.
    assert 0.06 < udp.lost / udp.requests < 0.3
    assert udp.reordered == 0  # the order is kept, as on a wire
    records = load_records(flow_records(rough.output, "udp-echo").with_suffix(".npy"))
    answered = records[records["received_ns"] > 0]
    round_trips = np.sort(answered["received_ns"] - answered["sent_ns"])
    # 2 ms and 0.2 ms each way, each probe up to 1 ms off on each of its two ways
    assert round_trips[0] >= 2 * (2 - 1 + 0.2) * NS_PER_MS
    assert round_trips[len(round_trips) * 3 // 4] - round_trips[0] > 1 * NS_PER_MS
    for kind in ("tcp-request", "tcp-download", "tcp-upload"):
        assert flows[kind].alive, flows[kind].error
        assert flows[kind].lost == flows[kind].corrupted == 0


def test_a_link_that_this_machine_cannot_make_is_refused(tmp_path: Path) -> None:
    with started(tmp_path, *settings("links.default.bandwidth=400Gbit", "links.default.delay=0ms")) as run:
        assert run.wait() == 1, run.stdout
    assert run.leftovers() == []
    assert run.stderr.startswith("bench: link ")
    assert "instead of 400 Gbit/s (tolerance 10 %)" in run.stderr
    assert "remedy: " in run.stderr
    assert "Traceback" not in run.stderr


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    output = tmp_path / "result"
    arguments = [BENCH, "run", "smallest", *settings(*QUICK), "-o", output]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(180) == 0
    assert RunResult.read(output).outcome == "completed"


def test_events_of_parallel_runs_are_their_own(pair: tuple[Bench, Bench]) -> None:
    for run, hosts in ((pair[0], ("h1", "h2")), (pair[1], ("hv1", "hv2"))):
        guests = {event.source for event in events_of(run.output) if event.source.startswith("guest.")}
        assert guests == {f"guest.{host}" for host in hosts}
