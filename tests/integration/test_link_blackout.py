"""A programmed blackout on a real interface: what is sent inside of it is lost, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

SCRIPT = """
import json, socket, struct, subprocess, time
from bench.host.kernel import CLONE_NEWNET, set_interface_up, unshare
unshare(CLONE_NEWNET)
set_interface_up("lo")
from bench.link.blackout import FIRST_PORT, Blackout
gate = Blackout("lo", "source")
taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taker.bind(("127.0.0.1", 5000))
dark, lit = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
dark.bind(("127.0.0.1", FIRST_PORT + 7))
lit.bind(("127.0.0.1", FIRST_PORT + 8))
begin = time.monotonic_ns() + 20_000_000
end = begin + 30_000_000
gate.schedule(FIRST_PORT + 7, begin, end)
sent = []
while time.monotonic_ns() < end + 20_000_000:
    for number, sock in enumerate((dark, lit)):
        before = time.monotonic_ns()
        sock.sendto(struct.pack("<Bq", number, before), ("127.0.0.1", 5000))
        sent.append((number, before, time.monotonic_ns()))
    time.sleep(0.0005)
taker.setblocking(False)
got = set()
try:
    while True:
        got.add(struct.unpack("<Bq", taker.recv(64)))
except BlockingIOError:
    pass
dropped = gate.dropped(FIRST_PORT + 7)
print(json.dumps({"begin": begin, "end": end, "sent": sent, "got": sorted(got), "frames": dropped.frames,
                  "bursts": dropped.bursts_ns, "other": gate.dropped(FIRST_PORT + 8).frames}))
"""


def test_only_the_flow_and_only_the_time_that_were_named(project):
    import json

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=project, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    got = {(number, at) for number, at in said["got"]}
    inside = outside = 0
    for number, before, after in said["sent"]:
        arrived = (number, before) in got
        if number == 1 or after < said["begin"] or before >= said["end"]:
            assert arrived
            outside += 1
        elif before >= said["begin"] and after < said["end"]:
            assert not arrived
            inside += 1
    assert inside > 0
    assert outside > 0
    assert said["frames"] == len(said["sent"]) - len(got)
    assert said["other"] == 0
    assert said["begin"] <= said["bursts"][0] < said["end"]
