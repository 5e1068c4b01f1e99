"""TLS and SSH between the engines, with real guests, real strangers and a real sshd."""
# ruff: noqa: F811 - the fixture is imported

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from guest_standing import Talker
from test_migration_guests import MIB, mover, workload  # noqa: F401

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.migration.certificates import make_certificate, make_ssh_key
from bench.migration.driver import Migration
from bench.migration.ssh import Ssh
from bench.migration.tls import Tls
from bench.timeline import Timeline

pytestmark = pytest.mark.root

STRANGER = Path(__file__).with_name("stranger.py")
MOVES = {
    "tls": {"security": "tls"},
    "tls stop-and-copy": {"security": "tls", "mode": "stop-and-copy"},
    "tls postcopy": {"security": "tls", "mode": "postcopy"},
    "tls squeezed": {"security": "tls", "compression": "zstd", "delta_cache_bytes": 64 * MIB, "downtime_limit_ns": 1},
    "ssh": {"security": "ssh"},
    "ssh hybrid": {"security": "ssh", "mode": "hybrid"},
    "ssh squeezed": {"security": "ssh", "compression": "lz4", "delta_cache_bytes": 64 * MIB, "downtime_limit_ns": 1},
}


@pytest.mark.parametrize("name", MOVES)
def test_memory_is_identical(mover, name):
    mover.boot(workload=workload("hotset"))
    outcome = mover.move(max_bandwidth_bps=200_000_000, max_rounds=4, **MOVES[name])
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    assert mover.control.stats(check=True)["self_check_errors"] == 0
    assert mover.assert_one_runs() == "h2"
    security = outcome["cost"]["security"]
    assert security["carrier"] == MOVES[name]["security"]
    assert 0 < security["overhead_bytes"] < outcome["bytes_sent"] // 50
    assert min(security["cpu_ns"], security["handshake_ns"], security["destination"]["cpu_ns"]) > 0


@pytest.mark.parametrize("security", ["none", "tls", "ssh"])
def test_strangers_do_not_disturb_a_migration(mover, monkeypatch, security):
    """They are at the door before the source is, and come all the time."""
    mover.boot(workload=workload("hotset", 4 * MIB))
    strangers = []
    begin = Migration.begin

    def begin_among_strangers(migration, deadline=None):
        command = mover.lab.namespaces["c"].enter(sys.executable, str(STRANGER), "10.0.0.2", "49152")
        strangers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert strangers[0].stdout.readline() == b"there\n"
        begin(migration, deadline)

    monkeypatch.setattr(Migration, "begin", begin_among_strangers)
    try:
        outcome = mover.move(max_bandwidth_bps=100_000_000, mode="hybrid", security=security)
        assert strangers[0].poll() is None
    finally:
        for process in strangers:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    finished = Timeline.read(mover.lab.directory / "engine.destination-1.jsonl").select("finished")[0]
    assert finished.data["cost"]["refused"] > 0 or security == "ssh"  # whose strangers the sshd sends away
    assert mover.assert_one_runs() == "h2"


def _wrong(carrier, side, changed):
    """Credentials of which one side's are not those that the other was told."""
    both = list(carrier().credentials())
    both[side] = {**both[side], **changed}
    return lambda _self: tuple(both)


def _certificate():
    made = make_certificate("stranger")
    return {"key": made.key, "certificate": made.certificate}


@pytest.mark.parametrize(
    ("carrier", "side", "change", "said"),
    [
        (Tls, 0, _certificate, "TLS"),
        (Tls, 1, _certificate, "certificate is not the one made for this migration"),
        (Ssh, 0, lambda: {"key": make_ssh_key().key}, "Authentication"),
        (Ssh, 1, lambda: {"host_key": make_ssh_key().key}, "host key .* is not the one .* nothing was sent"),
    ],
    ids=["certificate of the source", "certificate of the destination", "key of the source", "host key"],
)
def test_a_wrong_key_is_refused_and_the_guest_stays(mover, monkeypatch, carrier, side, change, said):
    mover.boot()
    monkeypatch.setattr(carrier, "credentials", _wrong(carrier, side, change()))
    outcome = mover.move(security=carrier.name)
    assert outcome["outcome"] == "failed"
    assert outcome["bytes_sent"] < 10_000  # a HELLO at most, which nobody could read
    assert mover.assert_one_runs() == "h1"
    assert re.search(said, outcome["reason"]) or side == 0


def _inside(pid):
    """The processes that live in the network namespace of process *pid*: engines, guests, tunnels, sshd."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if (process / "ns" / "net").samefile(f"/proc/{pid}/ns/net"):
                found.add(process.name)
    return found


@pytest.mark.parametrize("security", ["tls", "ssh"])
def test_cancel_is_seen_while_the_link_is_full(mover, security):
    """The guest goes on where it is, and nothing of the migration is left in either hypervisor."""
    mover.boot(memory_bytes=64 * MIB, content={"zero": 0.0, "text": 0.0, "random": 1.0})
    hypervisors = [mover.lab.namespaces[host].pid for host in ("h1", "h2")]
    before = [_inside(pid) for pid in hypervisors]
    client = Talker(mover.lab.namespaces["c"].pid)
    client.say()
    answers = []

    def cancel(event):
        if event.name == "round_begin" and not answers:
            mover.link("h2", "down")  # nothing drains any more
            answers.append(mover.moving.cancel())

    outcome = mover.move(cancel, security=security)
    assert answers == [True]
    assert outcome["outcome"] == "cancelled"
    mover.link("h2", "up")
    assert mover.assert_one_runs() == "h1"
    client.hear()
    client.say()
    client.hear()
    client.close()
    wait_until(lambda: [_inside(pid) for pid in hypervisors] == before, Deadline(20 * NS_PER_S), "nothing is left")


@pytest.mark.parametrize("security", ["tls", "ssh"])
def test_a_link_cut_for_good_is_a_failed_migration(mover, security):
    mover.boot(memory_bytes=64 * MIB, content={"zero": 0.0, "text": 0.0, "random": 1.0})
    cut = []

    def watch(event):
        if event.name == "round_begin" and not cut:
            cut.append(mover.link("h2", "down"))

    outcome = mover.move(watch, security=security, link_timeout_ns=NS_PER_S)
    assert cut
    assert outcome["outcome"] == "failed"
    assert mover.assert_one_runs() == "h1"


@pytest.mark.parametrize("security", ["tls", "ssh"])
def test_post_copy_recovers_from_a_link_that_was_cut(mover, security):
    mover.boot(workload=workload("hotset", 4 * MIB))

    def watch(event):
        if event.source != "engine.source":
            return
        if event.name == "postcopy_begin":
            mover.link("h2", "down")
        elif event.name in ("postcopy_paused", "postcopy_recover_failed"):
            mover.link("h2", "up")
            assert mover.moving.recover()

    settings = {"max_bandwidth_bps": 20_000_000, "link_timeout_ns": 500 * NS_PER_MS, "mode": "postcopy"}
    outcome = mover.move(watch, security=security, **settings)
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    assert outcome["cost"]["postcopy"]["pauses"] >= 1
    assert mover.assert_one_runs() == "h2"
    assert mover.control.stats(check=True)["self_check_errors"] == 0
