"""Sweeps with real runs: here, by a real Dask worker, and `bench remote` through a real sshd; all on loopback."""

from __future__ import annotations

import csv
import getpass
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_runs import BENCH, LONG_NS, QUICK, call, settings

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.recording import read_points
from bench.result import RunResult

pytestmark = pytest.mark.root
SETTINGS = """
[set]
guest.memory = "16MiB"
calibration.delay_tolerance = "100ms"
calibration.rate_tolerance = 0.9
links.default.delay = "0ms"
run.warmup = "300ms"
run.settle = "300ms"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'scenario = "smallest"\n{text}\n{SETTINGS}\n')
    return path


def test_a_sweep_runs_its_points_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """order = "given"
        [[points]]
        name = "good"
        expect.downtime = "< 10min"
        [[points]]
        name = "bad"
        calibration.delay_tolerance = "1ns"
        """,
    )
    output, junit = tmp_path / "out", tmp_path / "junit.xml"
    found = call("sweep", file, "-o", output, "--junit", junit)
    assert found.returncode == 1, found.stdout + found.stderr
    with (output / "sweep.csv").open(newline="") as rows:
        good, bad = csv.DictReader(rows)
    assert (good["state"], good["outcome"], good["expectations_failed"]) == ("done", "completed", "0")
    assert bad["state"] == "failed"
    assert "tolerance 1 ns" in bad["error"]
    assert set(read_points(output)) == {"good"}
    assert "<error message=" in junit.read_text()
    again = call("sweep", file, "-o", output)
    assert "2 are done" in again.stdout
    assert again.returncode == 1


def test_a_point_that_cannot_be_is_refused_before_the_first_run(tmp_path: Path) -> None:
    points = 'order = "given"\n[[points]]\nname = "good"\n[[points]]\nname = "bad"\n'
    file = write(tmp_path, points + 'network.topology = "nothing.py:nothing"')
    for more in ((), ("--dry-run",)):
        found = call("sweep", file, "-o", tmp_path / "out", *more)
        assert found.returncode == 2, found.stdout + found.stderr
        assert "smallest.toml at bad: network.topology: got 'nothing.py:nothing'" in found.stderr
        assert not (tmp_path / "out").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in reversed(started):
        process.kill()  # Dask's own farewell takes half a minute, and nothing of theirs is left to be cleaned
    for process in reversed(started):
        process.wait(60)


def test_a_dask_worker_does_the_runs(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    port, dask = free_port(), str(Path(sys.executable).with_name("dask"))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
    processes.append(subprocess.Popen(scheduler, **quiet))  # type: ignore[call-overload]
    wait_until(lambda: listening(port), Deadline(60 * NS_PER_S), "the scheduler listens")
    file = write(tmp_path, "repeats = 1\n[grid]\nguest.vcpus = [1, 2]")
    refused = call("sweep", file, "-o", tmp_path / "none", "--scheduler", address)
    assert refused.returncode == 2
    assert "--resources" in refused.stderr
    worker = [dask, "worker", address, "--nthreads", "2", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    processes.append(subprocess.Popen([*worker, "--resources", "bench=1"], **quiet))  # type: ignore[call-overload]

    def known() -> bool:
        probe = "import sys; from distributed import Client; c = Client(sys.argv[1]); c.wait_for_workers(1, 60)"
        return subprocess.run([sys.executable, "-c", probe, address], check=False, capture_output=True).returncode == 0

    wait_until(known, Deadline(LONG_NS), "the worker has joined")
    output = tmp_path / "out"
    found = call("sweep", file, "-o", output, "--scheduler", address)
    assert found.returncode == 0, found.stdout + found.stderr
    results = [result for some in read_points(output).values() for result in some]
    assert [result.outcome for result in results] == ["completed"] * 2
    first, second = sorted((result.start_ns, result.end_ns) for result in results)
    assert first[1] < second[0], "one machine did two runs at a time"


@pytest.fixture
def server(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> tuple[int, Path, str]:
    """An SSH server of our own on loopback: its port, the client's key, the host key's fingerprint."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists():
        pytest.skip("needs sshd (run `make setup` as root)")
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_bytes((tmp_path / "client.pub").read_bytes())
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nUsePAM no\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants it
    command = [sshd, "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    wait_until(lambda: listening(port), Deadline(30 * NS_PER_S), "sshd listens")
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "host.pub"], check=True, capture_output=True, text=True)
    return port, tmp_path / "client", shown.stdout.split()[1]


def test_a_run_on_another_machine_comes_back(tmp_path: Path, server: tuple[int, Path, str]) -> None:
    port, key, fingerprint = server
    target = f"{getpass.getuser()}@127.0.0.1:{port}"
    reach = ["remote", "-i", str(key), "--program", str(BENCH)]
    unknown = call(*reach, "--known-hosts", "/dev/null", target, "doctor")
    assert unknown.returncode == 1
    assert fingerprint in unknown.stderr
    wrong = call(*reach, "--host-key", "SHA256:" + "A" * 43, target, "run", "smallest", "-o", str(tmp_path / "wrong"))
    assert wrong.returncode == 1
    assert not (tmp_path / "wrong").exists()
    output = tmp_path / "result"
    run = ["run", "smallest", *settings(*QUICK, "title=it's $HOME"), "-o", str(output)]
    found = call(*reach, "--host-key", fingerprint, target, *run)
    assert found.returncode == 0, found.stdout + found.stderr
    result = RunResult.read(output)
    assert result.outcome == "completed"
    assert result.title == "it's $HOME"
    assert "moved from h1 to h2" in found.stdout
    assert list((output / "requests").rglob("*.npy"))
