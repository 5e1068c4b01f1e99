"""The frame watcher without root: what it refuses, and how it reads tcpdump's words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline, now_ns
from bench.errors import ProbeError
from bench.probe.frames import (
    FrameWatcher,
    end_tcpdump,
    read_bounded,
    realtime_offset_ns,
    start_tcpdump,
    wait_listening,
)

# Speaks like tcpdump: says that it listens, answers SIGUSR1 with counts that grow, and SIGINT with the last ones.
FAKE = """
import signal, sys
captured = 0
def tell(signum, frame):
    global captured
    captured += 5
    print(f"{captured} packets captured", f"{12} packets received by filter", "1 packet dropped by kernel", sep="\\n",
          file=sys.stderr, flush=True)
    if signum == signal.SIGINT:
        sys.exit(0)
signal.signal(signal.SIGUSR1, tell)
signal.signal(signal.SIGINT, tell)
print("tcpdump: listening on any", file=sys.stderr, flush=True)
while True:
    signal.pause()
"""


def fake(script: str) -> subprocess.Popen[bytes]:
    return start_tcpdump([sys.executable, "-c", script])


def close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_it_ends_only_after_all_is_captured() -> None:
    process = fake(FAKE)
    try:
        said = wait_listening(process, Deadline(20 * NS_PER_S))
        status, text = end_tcpdump(process, said, Deadline(20 * NS_PER_S))
        assert status == 0
        # asked at 5, 10 and 15 captured; 12 were received at the first answer; SIGINT makes it 20
        assert "15 packets captured" in text
        assert "20 packets captured" in text
        assert "25 packets" not in text
    finally:
        close(process)


def test_one_that_does_not_listen() -> None:
    process = fake("import sys; sys.exit('tcpdump: any: You do not have permission')")
    try:
        with pytest.raises(ProbeError, match="permission"):
            wait_listening(process, Deadline(20 * NS_PER_S))
    finally:
        close(process)
    with pytest.raises(ProbeError, match="install the package tcpdump"):
        start_tcpdump(["/nonexistent/tcpdump"])


def test_states_and_arguments(tmp_path: Path) -> None:
    watcher = FrameWatcher(tmp_path / "f.pcap", ["10.0.1.1"], ["52:54:00:00:00:01"])
    with pytest.raises(ProbeError, match="not started"):
        watcher.stop()
    watcher.close()
    with pytest.raises(ValueError, match="IPv4"):
        FrameWatcher(tmp_path / "f.pcap", ["10.0.1.1; rm"], [])
    with pytest.raises(ValueError, match="MAC"):
        FrameWatcher(tmp_path / "f.pcap", [], ["nonsense"])


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 11)
    assert read_bounded(path, 11) == b"x" * 11
    with pytest.raises(ProbeError, match="more than 10 bytes"):
        read_bounded(path, 10)
    with pytest.raises(ProbeError, match="No such file"):
        read_bounded(tmp_path / "g", 10)


def test_the_offset_between_the_clocks() -> None:
    import time

    offset = realtime_offset_ns()
    before, real, after = now_ns(), time.time_ns(), now_ns()
    assert before - 10**9 <= real - offset <= after + 10**9
