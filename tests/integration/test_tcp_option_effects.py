"""What the options of a flow's connection do on the real kernel, every frame of it being dropped from some moment on.

Each socket is seen for itself: who dies of what, after how many transmissions, and what was held back. (The survival
map sees `tcp_retries2`, congestion control and least timeouts against theory.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

SCRIPT = """
import errno, json, select, socket, sys, time
from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.flows.tcp_info import tcp_info
from bench.flows.tcp_options import TcpOptions
from bench.host.kernel import CLONE_NEWNET, set_interface_up, set_sysctls, unshare
unshare(CLONE_NEWNET)
set_interface_up("lo")
set_sysctls({"net.ipv4.tcp_syn_linear_timeouts": 0})
from bench.link.blackout import FIRST_PORT, Blackout
gate = Blackout("lo", "source")
listener = socket.create_server(("127.0.0.1", 7))
OPTIONS = {
    "syn_retries": {"syn_retries": 1},
    "user_timeout": {"user_timeout_ns": 300 * NS_PER_MS},
    "keepalive": {"keepalive": [1, 1, 1]},
    "rto_min": {"rto_min_ns": 5 * NS_PER_MS},
    "nagle": {"nagle": True},
    "none": {},
}
socks = {}
begin = {}
for number, (name, raw) in enumerate(OPTIONS.items()):
    sock = socks[name] = socket.socket()
    TcpOptions.from_json(raw, name).apply(sock)
    sock.bind(("127.0.0.1", FIRST_PORT + number))
    if name != "syn_retries":
        sock.connect(("127.0.0.1", 7))
        peer, _ = listener.accept()
        socks[name + " peer"] = peer
    sock.setblocking(False)
    begin[name] = now_ns()
    gate.schedule(FIRST_PORT + number, begin[name], begin[name] + 60 * NS_PER_S)
socks["syn_retries"].connect_ex(("127.0.0.1", 7))
for name in ("user_timeout", "rto_min", "nagle", "none"):
    socks[name].send(b"a")
    socks[name].send(b"b")
held = {name: [tcp_info(socks[name]).unacked, tcp_info(socks[name]).notsent_bytes] for name in ("nagle", "none")}
dead = {}
waiting = {"syn_retries", "user_timeout", "keepalive"}
until = time.monotonic() + 30
while waiting and time.monotonic() < until:
    time.sleep(0.02)
    for name in sorted(waiting):
        error = socks[name].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            dead[name] = errno.errorcode[error]
            waiting.discard(name)
numbers = {name: number for number, name in enumerate(OPTIONS)}
frames = {name: gate.dropped(FIRST_PORT + number).frames for name, number in numbers.items()}
times = {name: [(at - begin[name]) / 1e6 for at in gate.dropped(FIRST_PORT + number).bursts_ns]
         for name, number in numbers.items()}
print(json.dumps({"held": held, "dead": dead, "frames": frames, "times": times}))
"""


@pytest.fixture(scope="module")
def said():
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=project, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["syn_retries", "user_timeout", "keepalive"])
def test_a_connection_dies_by_its_own_limit(said, name):
    assert said["dead"][name] == "ETIMEDOUT"


def test_one_retry_of_a_syn_is_two_syns(said):
    assert said["frames"]["syn_retries"] == 2


def test_a_keepalive_of_one_probe_is_that_and_the_reset_at_its_end(said):
    assert said["frames"]["keepalive"] == 2


def test_a_small_least_timeout_tries_sooner_and_so_more_often(said):
    """The probe for lost data needs no timer; what follows it does, and 200 ms are long gone when that dies."""
    early = {name: sum(at < 150 for at in said["times"][name]) for name in ("rto_min", "none")}
    assert early["none"] == 2
    assert early["rto_min"] > 3


def test_nagle_holds_a_small_segment_back_until_the_one_before_is_acknowledged(said):
    assert said["held"]["nagle"] == [1, 1]  # segments in flight, bytes held back
    assert said["held"]["none"] == [2, 0]
