"""Several streams with real guests across an emulated network: memory ends identical, one lost stream ends them all."""
# ruff: noqa: F811 - the fixture is imported

import contextlib
import re
import socket
import subprocess

import pytest
from test_migration_guests import MIB, mover, workload  # noqa: F401

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import MigrationError
from bench.host.kernel import entered_netns
from bench.migration import wire
from bench.migration.wire import Kind
from bench.timeline import Timeline

pytestmark = pytest.mark.root

LEVERS = {
    "plain": {},
    "zstd and delta": {"compression": "zstd", "delta_cache_bytes": 8 * MIB},
    "hybrid": {"mode": "hybrid", "precopy_rounds": 2},
    "stop-and-copy": {"mode": "stop-and-copy"},
    "verify pause": {"verify": "pause"},
}


def carried(outcome):
    return outcome["cost"]["streams"]


@pytest.mark.parametrize("name", LEVERS)
def test_memory_is_identical_over_four_streams(mover, name):
    mover.boot(workload=workload("hotset", 32 * MIB))
    outcome = mover.move(
        streams=4, max_bandwidth_bps=400_000_000, downtime_limit_ns=5 * NS_PER_MS, max_rounds=6, **LEVERS[name]
    )
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    assert mover.first.wait() == 0
    assert mover.control.stats(check=True)["self_check_errors"] == 0
    assert mover.assert_one_runs() == "h2"
    streams = carried(outcome)
    assert streams["count"] == len(streams["bytes"]) == 4
    assert min(streams["pages"]) > 0
    rounds = mover.rounds()
    assert sum(streams["pages"]) == sum(part["pages"] for part in rounds)
    assert sum(streams["bytes"]) == sum(part["bytes_sent"] for part in rounds)
    assert outcome["bytes_sent"] >= sum(streams["bytes"])


def inside(mover, host, *argv):
    return subprocess.run(
        mover.lab.namespaces[host].enter(*argv), check=True, capture_output=True, text=True, timeout=20
    ).stdout


def last_stream(mover):
    """Its port at the source."""
    listed = inside(mover, "h1", "ss", "--tcp", "--numeric", "--no-header", "dport", "=", ":49152")
    return max(int(port) for port in re.findall(r"10\.0\.0\.1:(\d+) ", listed))


def silence(mover, port):
    """From now on (almost) nothing of this connection leaves the source, without anybody being told."""
    device = ("dev", "h1-eth0")
    inside(mover, "h1", "tc", "qdisc", "add", *device, "root", "handle", "1:", "htb", "default", "1", "r2q", "1000")
    for number, rate in (("1", "10gbit"), ("2", "8bit")):
        inside(
            mover, "h1", "tc", "class", "add", *device, "parent", "1:", "classid", f"1:{number}", "htb", "rate", rate
        )
    match = ("u32", "match", "ip", "sport", str(port), "0xffff", "flowid", "1:2")
    inside(mover, "h1", "tc", "filter", "add", *device, "parent", "1:", "protocol", "ip", *match)


@pytest.mark.parametrize("end", ["reset", "silence"])
@pytest.mark.parametrize("moment", ["round_progress", "pause_begin"])
def test_one_stream_that_is_lost_leaves_the_guest_at_the_source(mover, end, moment):
    mover.boot(workload=workload("hotset", 4 * MIB))
    lost = []

    def lose(event):
        if event.source == "engine.source" and event.name == moment and not lost:
            lost.append(last_stream(mover))
            if end == "reset":
                inside(mover, "h1", "ss", "--kill", "--tcp", "--numeric", "sport", "=", f":{lost[0]}")
            else:
                silence(mover, lost[0])

    mode = "precopy" if moment == "round_progress" else "stop-and-copy"
    outcome = mover.move(lose, streams=4, mode=mode, max_bandwidth_bps=40_000_000, link_timeout_ns=NS_PER_S)
    assert lost
    assert outcome["outcome"] == "failed"
    assert mover.assert_one_runs() == "h1"
    if end == "silence":
        inside(mover, "h1", "tc", "qdisc", "del", "dev", "h1-eth0", "root")
    again = mover.move(streams=2)
    assert (again["outcome"], again["reason"], again["identical"]) == ("completed", "", True)


def test_a_cancel_is_seen_while_all_streams_are_full(mover):
    mover.boot(workload=workload("hotset", 4 * MIB), content={"zero": 0.0, "text": 0.0, "random": 1.0})
    shaping = ("root", "tbf", "rate", "8mbit", "burst", "32k", "limit", "64k")
    inside(mover, "h1", "tc", "qdisc", "add", "dev", "h1-eth0", *shaping)
    answers = []

    def cancel(event):
        if event.name == "round_progress" and not answers:
            answers.append(mover.moving.cancel())

    outcome = mover.move(cancel, streams=4)
    assert (outcome["outcome"], outcome["reason"], answers) == ("cancelled", "cancelled by command", [True])
    assert mover.assert_one_runs() == "h1"
    arrival = Timeline.read(mover.lab.directory / "engine.destination-1.jsonl").select("finished")[-1].data
    assert arrival["outcome"] == "cancelled"


def test_strangers_at_the_door_do_not_disturb_the_streams(mover):
    """Silent ones, ones with a wrong token and ones that talk nonsense, while the real streams join."""
    mover.boot()
    strangers = []

    def knock(event):
        if event.name != "connected" or strangers:
            return
        for said in (
            b"",
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            wire.encode_json(Kind.JOIN, {"ticket": "x", "role": "stream"}),
        ):
            stranger = knocker(mover.lab.namespaces["h2"].pid)
            stranger.sendall(said)
            strangers.append(stranger)

    outcome = mover.move(knock, streams=4)
    assert len(strangers) == 4
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    assert min(carried(outcome)["pages"]) > 0
    log = (mover.lab.directory / "engine.destination-1.log").read_text()
    assert log.count("is refused") >= 2
    for stranger in strangers:
        with stranger:
            assert_nothing_came(stranger)


def knocker(pid):
    """A connection to the destination engine, made in its network namespace."""
    with entered_netns(pid):
        return socket.create_connection(("10.0.0.2", 49152), timeout=10)


def assert_nothing_came(sock):
    with contextlib.suppress(ConnectionError):
        assert sock.recv(1) == b""


def test_mode_postcopy_refuses_streams(mover):
    mover.boot()
    with pytest.raises(MigrationError, match="2 streams carry rounds, and mode 'postcopy' has none"):
        mover.start(mode="postcopy", streams=2)
    assert mover.assert_one_runs() == "h1"
