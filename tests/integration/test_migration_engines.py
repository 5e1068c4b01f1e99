"""Both engines with fake guests over the loopback: every way a migration can end leaves exactly one guest running."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from forking import forking

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.guest.client import GuestControl
from bench.host.commands import python_environment, spawn, spawn_child
from bench.host.kernel import start_ticks
from bench.host.lease import Lease
from bench.migration import driver
from bench.timeline import Timeline

pytestmark = pytest.mark.root

MIB = 1 << 20
FAKES = Path(__file__).resolve().parents[1] / "fakes"
MIGRATION = {
    "downtime_limit_ns": 300 * NS_PER_MS,
    "max_rounds": 30,
    "max_time_ns": 60 * NS_PER_S,
    "max_bandwidth_bps": 0,
    "on_no_convergence": "force",
    "verify": "background",
    "mode": "precopy",
}


class Bench:
    """A source guest that runs, and what is needed to move it."""

    def __init__(self, stack, monkeypatch) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mig-", dir="/tmp"))
        stack.callback(shutil.rmtree, self.directory)
        self.stack = stack
        self.monkeypatch = monkeypatch
        self.lease = self.directory / "lease"
        self.fault = ""
        self.source_fault = ""

    def boot(self, memory_bytes=16 * MIB, rate_bytes_per_s=4 * MIB, content=None):
        self.config = {
            "name": "g1",
            "host": "h1",
            "memory_bytes": memory_bytes,
            "content": content or {"zero": 0.3, "text": 0.4, "random": 0.3},
            "seed": 1,
            "bridge": "br0",
            "lease": {"path": str(self.lease), "me": "h1"},
            "workload": {"rate_bytes_per_s": rate_bytes_per_s, "working_set_bytes": memory_bytes // 2},
            "skeleton": False,
        }
        path = self.directory / "g-h1.sock"
        argv = [sys.executable, str(FAKES / "fake_guest.py"), "--socket", str(path)]
        argv += ["--events", str(self.directory / "guest-h1.jsonl"), "--log", str(self.directory / "guest-h1.log")]
        environment = {**python_environment(), "FAKE_GUEST_FAULT": self.source_fault}
        self.guest = spawn(argv, env=environment, log=self.directory / "guest-h1.log", name="h1 guest")
        self.stack.callback(self.guest.stop)
        self.control = GuestControl.connect(path)
        self.stack.callback(self.control.close)
        self.control.configure(self.config)
        self.control.start()

    def migration(self, **changes):
        def with_fakes(module, **options):
            if module == "bench.migration.destination":
                module = "fake_destination"
                path = f"{python_environment()['PYTHONPATH']}:{FAKES}"
                options["env"] = {"FAKE_GUEST_FAULT": self.fault, "PYTHONPATH": path}
            return spawn_child(module, **options)

        self.monkeypatch.setattr(driver, "spawn_child", with_fakes)
        plan = driver.Plan(
            source_pid=None,
            destination_pid=None,
            source_host="h1",
            destination_host="h2",
            guest=self.config,
            guest_socket=self.directory / "g-h1.sock",
            new_guest_socket=self.directory / "g-h2.sock",
            new_guest_events=self.directory / "guest-h2.jsonl",
            new_guest_log=self.directory / "guest-h2.log",
            bridge="br0",
            lease_path=self.lease,
            address="127.0.0.1",
            port=0,
            migration={**MIGRATION, **changes},
            announce={"frames": [], "offsets_ns": []},
            events_directory=self.directory,
            log_directory=self.directory,
        )
        self.moving = driver.Migration(plan)
        self.stack.callback(self.stop_new_guest)
        self.stack.callback(self.moving.stop)
        return self.moving

    def stop_new_guest(self):
        if (self.directory / "g-h2.sock").exists():  # else there is none, or it ends with its engine
            with contextlib.suppress(BenchError), self.new_control() as control:
                control.quit(Deadline(10 * NS_PER_S))

    def new_control(self):
        return GuestControl.connect(self.directory / "g-h2.sock", deadline=Deadline(NS_PER_S // 2))

    def events(self, side):
        return [event.name for event in Timeline.read(self.directory / f"engine.{side}-1.jsonl")]

    def running(self):
        """Hosts whose guest runs, asked of the guests themselves."""
        hosts = []
        for host in ("h1", "h2"):
            path = self.directory / f"g-{host}.sock"
            with contextlib.suppress(BenchError), GuestControl.connect(path, deadline=Deadline(NS_PER_S // 2)) as guest:
                if guest.stats(Deadline(NS_PER_S))["state"] == "running":
                    hosts.append(host)
        return hosts

    def assert_runs_only_at(self, host):
        wait_until(lambda: self.running() == [host], Deadline(10 * NS_PER_S), f"guest runs at {host} only")
        assert Lease(self.lease).read().owner == host

    def assert_untouched(self):
        self.assert_runs_only_at("h1")
        stats = self.control.stats()
        assert stats["door"] is True
        assert stats["tracking"] is False


@pytest.fixture
def bench(monkeypatch):
    with contextlib.ExitStack() as stack, forking():
        yield Bench(stack, monkeypatch)


def run(bench, on_event=None, **changes):
    migration = bench.migration(**changes)
    migration.start()
    return migration.wait(on_event, Deadline(60 * NS_PER_S))


@pytest.mark.parametrize("verify", ["background", "pause", "off"])
def test_a_guest_moves_with_identical_memory(bench, verify):
    bench.boot()
    outcome = run(bench, verify=verify)
    assert (outcome["outcome"], outcome["reason"]) == ("completed", "")
    assert outcome["identical"] is (None if verify == "off" else True)
    assert bench.guest.wait(Deadline(NS_PER_S)) == 0
    bench.assert_runs_only_at("h2")
    source = bench.events("source")
    order = ["setup_begin", "connected", "setup_end", "round_begin", "round_end", "switchover_decided", "pause_begin"]
    order += ["paused", "storage_begin", "storage_end", "handover_sent", "handover_confirmed", "source_gone"]
    order.append("finished")
    assert [name for name in dict.fromkeys(source) if name in order] == order
    last = [
        "paused",
        "device_state_sent",
        "final_pages_sent",
        "storage_begin",
    ]  # the state first, if it is there in time
    assert sorted(last, key=source.index) in (
        last,
        ["paused", "final_pages_sent", "device_state_sent", "storage_begin"],
    )
    arrival = ["listening", "accepted", "skeleton_ready", "device_state_received", "final_pages_received"]
    arrival += ["device_state_loaded", "storage_acquired", "ownership_taken", "resumed", "port_wired", "finished"]
    seen = bench.events("destination")
    assert sorted(seen, key=arrival.index) == arrival
    assert [name for name in seen if name != "device_state_received"] == arrival[:3] + arrival[4:]
    assert seen.index("skeleton_ready") < seen.index("device_state_received") < seen.index("device_state_loaded")


def test_zero_pages_are_not_sent_as_pages(bench):
    bench.boot(memory_bytes=32 * MIB, rate_bytes_per_s=0, content={"zero": 1.0})
    outcome = run(bench)
    assert outcome["outcome"] == "completed"
    assert outcome["identical"] is True
    assert outcome["bytes_sent"] < MIB


def test_a_guest_that_never_converges_is_forced_over_after_the_last_round(bench):
    bench.boot(memory_bytes=8 * MIB, rate_bytes_per_s=64 * MIB)
    outcome = run(bench, downtime_limit_ns=0, max_rounds=5, max_bandwidth_bps=200_000_000)
    assert outcome["outcome"] == "completed"
    assert outcome["identical"] is True
    rounds = [e.data for e in Timeline.read(bench.directory / "engine.source-1.jsonl") if e.name == "round_end"]
    assert [r["paused"] for r in rounds] == [False] * (len(rounds) - 1) + [True]
    assert len(rounds) >= 6
    assert rounds[-1]["dirty_pages_after"] == 0


def test_no_convergence_can_cancel(bench):
    bench.boot(rate_bytes_per_s=200 * MIB)
    outcome = run(bench, downtime_limit_ns=0, max_rounds=3, on_no_convergence="cancel", max_bandwidth_bps=400_000_000)
    assert outcome["outcome"] == "cancelled"
    assert "no convergence after 3 rounds" in outcome["reason"]
    bench.assert_untouched()


def test_cancel_leaves_the_guest_as_if_nothing_had_happened(bench):
    bench.boot()
    accepted = []

    def cancel(event):
        if event.name == "round_progress" and not accepted:
            accepted.append(bench.moving.cancel())

    outcome = run(bench, cancel, max_bandwidth_bps=40_000_000)
    assert accepted == [True]
    assert outcome["outcome"] == "cancelled"
    bench.assert_untouched()
    assert bench.events("destination")[-1] == "finished"
    assert "pause_begin" not in bench.events("source")


def test_cancel_after_the_pause_is_refused(bench):
    bench.boot()
    answers = []

    def cancel(event):
        if event.name == "handover_confirmed":
            answers.append(bench.moving.cancel())

    assert run(bench, cancel)["outcome"] == "completed"
    assert answers == [False]


@pytest.mark.parametrize("fault", ["load-fails"])
def test_a_failure_at_the_destination_brings_the_guest_back(bench, fault):
    bench.boot()
    bench.fault = fault
    outcome = run(bench)
    assert outcome["outcome"] == "failed"
    assert "ordered to fail" in outcome["reason"]
    bench.assert_untouched()


def test_a_pause_that_fails_leaves_the_guest_running(bench):
    bench.source_fault = "pause-fails"
    bench.boot()
    outcome = run(bench)
    assert outcome["outcome"] == "failed"
    bench.assert_untouched()


def test_a_guest_that_dies_while_it_is_copied_is_a_failed_migration(bench):
    bench.source_fault = "dies-in-round"
    bench.boot()
    outcome = run(bench, max_bandwidth_bps=80_000_000)
    assert outcome["outcome"] == "failed"
    wait_until(lambda: bench.running() == [], Deadline(5 * NS_PER_S), "no skeleton left")


def test_nobody_listening_is_a_failed_migration(bench):
    bench.boot()
    migration = bench.migration()
    migration.start()
    migration._sides["destination"].process.send_signal(signal.SIGKILL)
    outcome = migration.wait(None, Deadline(60 * NS_PER_S))
    assert outcome["outcome"] == "failed"
    bench.assert_untouched()


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize(
    "moment", ["connected", "setup_end", "round_progress", "switchover_decided", "pause_begin", "final_pages_sent",
               "device_state_sent", "handover_sent", "handover_confirmed"]
)  # fmt: skip
def test_kill_9_of_an_engine_leaves_exactly_one_guest(bench, victim, moment):
    bench.boot()
    done = []

    def kill(event):
        if event.name == moment and not done:
            done.append(True)
            bench.moving._sides[victim].process.send_signal(signal.SIGKILL)

    outcome = run(bench, kill, max_bandwidth_bps=100_000_000)
    bench.moving.stop()
    owner = Lease(bench.lease).read().owner
    bench.assert_runs_only_at(owner)
    assert outcome["outcome"] == ("completed" if owner == "h2" else "failed")
    assert done
    if moment in {"connected", "setup_end", "round_progress"}:
        bench.assert_untouched()


@pytest.mark.parametrize("moment", ["pause_begin", "handover_sent"])
def test_a_destination_that_hangs_forever_does_not_keep_the_guest(bench, moment):
    """SIGSTOP: the connection lives, nobody answers."""
    bench.boot()

    def stop(event):
        if event.name == moment:
            os.kill(bench.moving._sides["destination"].process.pid, signal.SIGSTOP)

    bench.monkeypatch.setattr(driver, "STOP_NS", NS_PER_S // 2)
    outcome = run(bench, stop, answer_timeout_ns=2 * NS_PER_S)
    owner = Lease(bench.lease).read().owner
    assert outcome["outcome"] == ("completed" if owner == "h2" else "failed")
    bench.moving.stop()
    bench.assert_runs_only_at(owner)


def test_a_take_whose_answer_is_lost_counts_as_completed(bench):
    bench.boot()
    bench.fault = "take-hangs-after-claim"
    outcome = run(bench, answer_timeout_ns=NS_PER_S)
    assert outcome["outcome"] == "completed"
    assert "h2 took the guest over" in outcome["reason"]
    assert bench.guest.wait(Deadline(5 * NS_PER_S)) == 0
    # the hanging fake does not answer any more; end it by its process, which is whoever listens
    bench.monkeypatch.setattr(bench, "stop_new_guest", lambda: None)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(bench.directory / "g-h2.sock"))
        (pid, _uid, _gid) = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    os.kill(pid, signal.SIGKILL)


def test_a_skeleton_that_nobody_has_configured_ends_with_its_engine(bench):
    bench.boot()
    bench.fault = "deaf"
    migration = bench.migration()
    migration.start()
    socket_path = bench.directory / "g-h2.sock"
    wait_until(socket_path.exists, Deadline(10 * NS_PER_S), "the skeleton's process")
    pid = int(socket_path.read_text())
    assert start_ticks(pid)
    migration._sides["destination"].process.send_signal(signal.SIGKILL)
    wait_until(lambda: start_ticks(pid) is None, Deadline(10 * NS_PER_S), "the skeleton's end")
    assert migration.wait(None, Deadline(60 * NS_PER_S))["outcome"] == "failed"
    socket_path.unlink()
    bench.assert_untouched()


@pytest.mark.alone
def test_the_bandwidth_limit_holds_to_two_percent(bench):
    bench.boot(memory_bytes=32 * MIB, rate_bytes_per_s=0, content={"random": 1.0})
    outcome = run(bench, max_bandwidth_bps=160_000_000)
    assert outcome["outcome"] == "completed"
    first = next(
        event.data for event in Timeline.read(bench.directory / "engine.source-1.jsonl") if event.name == "round_end"
    )
    rate_bps = first["bytes_sent"] * 8 * NS_PER_S / (first["end_ns"] - first["start_ns"])
    assert rate_bps <= 160_000_000 * 1.02
