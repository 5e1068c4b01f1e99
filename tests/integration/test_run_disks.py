"""A whole run with disks, limits, load, cross traffic and a script of link changes: applied, told and proved."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_runs import QUICK, call, completed, dead_runs, events_of, require_moved, settings

pytestmark = pytest.mark.root

GUEST_BYTES = 16 << 20
SURROUNDED = """
[calibration]
enabled = false
[guest]
memory = "16MiB"
store_memory = "4MiB"
[guest.workload]
rate = "2MiB/s"
working_set = "4MiB"
[[guests]]
durable = true
log_size = "4MiB"
disk_workload = { rate = "2MiB/s" }
[[guests.disks]]
format = "qcow2"
size = "32MiB"
[[guests.disks]]
kind = "local"
size = "16MiB"
[[guests]]
host = "h2"
[[moves]]
guest = "g1"
destination = "h2"
[hosts.default]
cpu = 1.5
memory = "1024MiB"
[hosts.h2.load]
cpu = 0.1
[[cross_traffic]]
source = "c1"
destination = "st1"
rate = "5Mbit"
[[script]]
at = "1ms"
link = "s1-h2"
bandwidth = "200Mbit"
"""


def test_a_run_with_disks_and_surroundings_is_proved_and_told(tmp_path: Path) -> None:
    scenario = tmp_path / "surrounded.toml"
    scenario.write_text(SURROUNDED)
    run = completed(tmp_path, *settings(*QUICK), scenario=scenario)
    result = run.result()
    require_moved(result)
    storage, told = result.environment["storage"], result.environment["surroundings"]
    shared, local = storage["disks"]["g1/vda"], storage["disks"]["g1/vdb"]
    assert (shared["read"], shared["kind"], shared["generations"]) == (True, "shared", [1, 2])
    assert (local["read"], local["kind"]) == (True, "local")
    assert storage["servers"]["st1"]["guests"]["g1"]["holder"] == "h2"
    assert not [reason for reason in result.trust.reasons if reason.startswith("disk ")]
    assert told["limits"]["h1"]["cpu"] == 1.5
    assert told["limits"]["h2"]["memory"] == 1 << 30
    assert told["cross_traffic"][0]["reached_bps"] > 0
    assert told["load"] == {"h2": {"cpu": 0.1, "memory": 0, "io": 0}}  # the destination, where another guest runs
    assert told["load_measured"]["h2"]["cpu_processors"] > 0
    assert set(result.environment["guests"]) == {"g1", "g2"}
    assert told["limits"]["h2"]["memory_kills"] == 0
    assert 2 * GUEST_BYTES < told["limits"]["h2"]["memory_peak"] <= told["limits"]["h2"]["memory"]
    assert told["script"][0]["applied"]["forward"]["rate_bps"] == 200_000_000
    names = [event.name for event in events_of(run.output)]
    steps = ["disks_drained", "storage_released", "storage_fenced", "storage_acquired", "storage_first_write"]
    places = [max(at for at, name in enumerate(names) if name == step) for step in steps[1:]]
    assert places == sorted(places)
    assert not dead_runs()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (('guest.disks=[{image="/nowhere.qcow2"}]',), ["guest.disks.0.image", "No such file"]),
        (('guest.disks=[{size="900GiB"}]',), ["guest.disks", "MiB free"]),
        (('guest.disks=[{kind="shared"}]', "network.storage=h1"), ["network.storage"]),
        (("guest.durable=true",), ["guest", "a disk"]),
        (("hosts.c1.cpu=1",), ["hosts.c1", "h1, h2"]),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changed(
    tmp_path: Path, given: tuple[str, ...], named: list[str]
) -> None:
    done = call("run", "smallest", *settings(*given), "-o", tmp_path / "result")
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in named), done.stderr
    assert not (tmp_path / "result").exists()
