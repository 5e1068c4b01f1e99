"""Every kind of flow through a real migration: right answers, samples, verdicts, deadlines; programs of the user's."""

from __future__ import annotations

import pytest
from bench_runs import QUICK, settings

from bench.records import SAMPLES_SUFFIX, TCP_SAMPLE, load_records
from bench.result import RunResult

pytestmark = pytest.mark.root

SCENARIO = """
[guest]
memory = "16MiB"
store_memory = "2MiB"
[guest.workload]
rate = "2MiB/s"
working_set = "2MiB"
[[clients]]
kind = "tcp-request"
tcp = { user_timeout = "20s", congestion = "cubic", retries2 = 8 }
[[clients]]
kind = "tcp-connect"
interval = "10ms"
[[clients]]
kind = "tcp-idle"
tcp = { keepalive = "1s/1s/5" }
[[clients]]
kind = "http"
think = "5ms"
retry = true
[[clients]]
kind = "redis"
think = "2ms"
"""


def test_all_kinds_of_flows_live_through_a_migration(project, tmp_path):
    import subprocess
    import sys

    path, output = tmp_path / "kinds.toml", tmp_path / "out"
    path.write_text(SCENARIO)
    program = [sys.executable, "-c", "from bench.cli import main; main()", "run", str(path), "-o", str(output)]
    command = [*program, *settings(*QUICK), "--client", "ping -c 3 -i 0.2 10.0.1.1"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    result = RunResult.read(output)
    flows = {flow.kind: flow for flow in result.flows}
    assert set(flows) == {"tcp-request", "tcp-connect", "tcp-idle", "http", "redis", "command"}
    for kind, flow in flows.items():
        assert flow.alive, (kind, flow.error)
        assert flow.corrupted == 0
        if kind != "command":
            assert flow.verdict in ("undisturbed", "delayed")
    for kind in ("tcp-request", "tcp-connect", "http", "redis"):
        assert flows[kind].requests > 20
        assert flows[kind].outage_ns is not None
    assert flows["tcp-idle"].requests == 2
    assert flows["tcp-idle"].lost == 0
    for kind in ("tcp-request", "tcp-idle", "http", "redis"):
        tcp = flows[kind].tcp
        assert tcp is not None
        assert tcp.rto_ns >= 200_000_000
        assert tcp.survivable_ns
        found = load_records(output / "requests" / "c1" / f"{flows[kind].name}{SAMPLES_SUFFIX}", TCP_SAMPLE)
        assert len(found) == tcp.samples
        assert (found["t_ns"][1:] >= found["t_ns"][:-1]).all()
    # TCP_USER_TIMEOUT of 20 s is nearer than the client's own minute
    assert flows["tcp-request"].tcp.survivable_ns < 20 * 10**9
    assert "shortest TCP deadline" in done.stdout
