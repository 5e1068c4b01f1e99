"""The hosts' hardware as a scenario asks for it, read back from the kernel; and a recorded trace that is replayed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from bench_runs import BENCH, LENIENT, QUICK, Bench, require_moved, settings, started

from bench.host.limits import here
from bench.memory.trace import Trace, load_trace

pytestmark = pytest.mark.root

MIB = 1 << 20
USABLE_PAGES = (16 - 2) * MIB // 4096  # what the vCPUs of "smallest" may write


def record(output: Path, *changes: str) -> Trace:
    arguments = [BENCH, "record-trace", "smallest", "-o", output, *settings(*QUICK, *changes)]
    done = subprocess.run(
        [*arguments, "--duration", "1s", "--interval", "20ms"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return load_trace(output)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "trace.jsonl"
    record(path, "guest.workload.rate=1MiB/s")
    return path


@pytest.fixture(scope="module")
def dressed(tmp_path_factory: pytest.TempPathFactory, recorded: Path) -> Bench:
    """One run with all of it."""
    core = sorted(os.sched_getaffinity(0))[0]
    changes = [
        *QUICK,
        "calibration.enabled=true",
        *LENIENT,
        "network.nics=2",
        'links."h1-m1".bandwidth="300Mbit"',
        f'hosts.default={{mtu=9000, nic="500Mbit", cores=[{core}], cpu=0.9}}',
        "guest.vcpu_cpu=0.5",
        f"guest.vcpu_cores=[{core}]",
        "guest.huge_pages=true",
        "guest.workload.pattern=trace",
        f"guest.workload.trace={recorded}",
    ]
    with started(tmp_path_factory.mktemp("dressed"), *settings(*changes)) as run:
        assert run.wait() == 0, run.stdout + run.stderr
    assert run.leftovers() == []
    return run


def test_a_replayed_trace_dirties_the_same_pages(tmp_path: Path, recorded: Path) -> None:
    first = load_trace(recorded).within(0, USABLE_PAGES)
    again = record(tmp_path / "again.jsonl", "guest.workload.pattern=trace", f"guest.workload.trace={recorded}")
    replayed = again.within(0, USABLE_PAGES)
    assert len(first.numbers) > 100
    assert set(replayed.numbers.tolist()) == set(first.numbers.tolist())


def test_cards_and_links_are_as_asked(dressed: Bench) -> None:
    result = dressed.result()
    require_moved(result)
    links = {link.name: link for link in result.links}
    for name, rate in (("h1-s1", 500), ("h2-s1", 500), ("h1-m1", 300), ("h2-m1", 500)):
        for way in ("forward", "backward"):
            assert links[name].applied[way]["rate_bps"] == rate * 10**6
            assert links[name].applied[way]["mtu"] == 9000
        assert links[name].measured["packet_bytes"] == 9000
    assert links["c1-s1"].asked["forward"]["mtu"] == 1500
    assert result.prediction is not None
    assert result.prediction.inputs["frame_rate_bps"] <= 1.5 * 300 * 10**6  # the way of the migration is m1's


def test_limits_and_memory_are_as_asked(dressed: Bench) -> None:
    result = dressed.result()
    core = sorted(os.sched_getaffinity(0))[0]
    versions = {name: version for name, (_path, version) in here().items()}
    for host in ("h1", "h2"):
        held = result.environment["surroundings"]["limits"][host]
        assert (held["cpu"], held["cores"]) == (0.9, [core])
        assert held["versions"] == {"cpu": versions["cpu"], "cpuset": versions["cpuset"]}
    applied = result.environment["guest"]["applied"]
    assert applied["vcpus"] == [{"cpu": 0.5, "version": versions["cpu"], "cores": [core]}]
    assert applied["vcpus_huge_bytes"][0] > 0
    assert "huge pages" in dressed.stdout
    assert "0.9 processors' worth" in dressed.stdout
