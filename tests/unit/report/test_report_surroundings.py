"""The summary's lines about limits, load, cross traffic, changes of links and what guests were given."""

import io

from rich.console import Console

from bench.report.interference import print_interference, rows_of
from bench.report.surroundings import print_surroundings
from bench.result import InterferenceResult, Observed

ENVIRONMENT = {
    "surroundings": {
        "limits": {"h1": {"cpu": 0.5, "memory": 512 << 20, "cores": [0, 1], "versions": {"cpu": 1, "memory": 2}}},
        "load": {"h2": {"cpu": 0.5, "memory": 1.0, "io": 1}},
        "load_measured": {
            "h2": {"cpu_processors": 0.48, "memory_bytes_per_s": 4 << 30, "written_bytes_per_s": 1 << 20}
        },
        "cross_traffic": [
            {"source": "c1", "destination": "h2", "asked_bps": 0, "protocol": "tcp", "reached_bps": 300_000_000}
        ],
        "script": [
            {
                "at_ns": 500_000_000,
                "link": "s1-h2",
                "took_ns": 4_000_000,
                "applied": {
                    "forward": {"rate_bps": 100_000_000, "delay_ns": 2_000_000, "loss": 0.01},
                    "backward": {"rate_bps": 0},
                },
            }
        ],
    },
    "guest": {"applied": {"vcpus": [{"cpu": 0.5, "version": 1, "cores": [0]}], "huge_bytes": 2 << 20}},
}


def shown(work) -> str:
    console = Console(file=io.StringIO(), width=200)
    work(console)
    return console.file.getvalue()


def test_everything_that_was_applied_is_told():
    text = shown(lambda console: print_surroundings(ENVIRONMENT, console))
    for said in (
        "0.5 processors' worth (cgroup v1), 512 MiB of memory (cgroup v2), processors 0, 1",
        "0.5 processors' worth asked, 0.48 measured; 1 streaming through memory",
        "4 GiB/s",
        "as much as it gets asked, 300 Mbit/s reached",
        "0.50 s after the first migration began: 100 Mbit/s, delay 2 ms, loss 1 % / unlimited (took 4.0 ms)",
        "vCPU 0: 0.5 of a processor (cgroup v1), processor 0",
        "2 MiB mapped by huge pages",
    ):
        assert said in text, said


def test_nothing_is_said_where_there_was_nothing():
    assert shown(lambda console: print_surroundings({"guest": {"applied": {"card_mtu": 1500}}}, console)) == ""


def test_copying_is_set_beside_what_was_before():
    echo = InterferenceResult(
        name="echo",
        kind="flow",
        host="c1",
        before=Observed(duration_ns=10**9, requests=9, median_ns=1_000_000, p99_ns=2_000_000),
        copying=Observed(duration_ns=10**9, requests=9, median_ns=5_000_000, p99_ns=2_000_000),
    )
    lost = echo.model_copy(update={"name": "lost", "copying": Observed(duration_ns=10**9)})
    assert rows_of([echo])[0][:8] == ["echo", "c1", "1 ms", "5 ms", "x 5.00", "2 ms", "2 ms", "x 1.00"]
    text = shown(lambda console: print_interference([echo, lost], console))
    assert "x 5.00" in text
    assert "not" in text  # seen
