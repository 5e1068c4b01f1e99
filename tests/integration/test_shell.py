"""`bench shell` at a terminal: completion, cancelling by word and by Ctrl-C, and a result for each migration."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_runs import BENCH, settings
from terminal import Terminal

from bench.result import RunResult

pytestmark = pytest.mark.root

PROMPT = "bench> "
QUICK = ("calibration.enabled=false", "run.warmup=300ms", "run.settle=200ms", "run.predict=false", "clients=[]")


def test_a_person_at_the_shell(tmp_path: Path) -> None:
    with Terminal([BENCH, "shell", "smallest", *settings(*QUICK)], tmp_path) as shell:
        shell.expect(PROMPT)

        shell.type("migr\t")  # completes the command, the guest, the host and the key
        shell.expect("migrate")
        shell.type(" g\t")
        shell.expect("g1")
        shell.type(" h2 mod\t")
        shell.expect("mode=")
        shell.type("stop-and-copy\n")
        shell.expect("g1 moved from h1 to h2: completed")
        shell.expect("result: ")
        shell.expect(PROMPT)

        shell.type("watch on\n")
        shell.expect(PROMPT)
        shell.type("migrate g1 h1 max_bandwidth=1MiB/s\n")
        shell.expect("engine.source ")  # events are shown, and it goes on
        shell.type("cancel\n")
        shell.expect("from h2 to h1: cancelled")
        shell.expect(PROMPT)

        for _ in range(2):  # it is for the migration each time, not for the shell
            shell.type("migrate g1 h1 max_bandwidth=1MiB/s\n")
            shell.expect("engine.source ")
            shell.type("\x03")
            shell.expect("from h2 to h1: cancelled")
            shell.expect(PROMPT)

        shell.type("nodes\n")  # Mininet's own commands
        shell.expect("c1 h1 h2")
        shell.type("c1 ip -br link\n")
        shell.expect("c1-eth0")
        shell.expect(PROMPT)  # what is typed before is the program's
        shell.type("h1 sysctl -n net.ipv4.ip_local_reserved_ports\n")  # where migrations come in, kept from others
        shell.expect("49152")
        shell.expect(PROMPT)
        shell.type("watch off\nguests\n")  # the guest runs on where it was
        shell.expect("g1 is at h2")
        shell.type("announce g1 garp\n")
        shell.expect("g1 at h2: garp")
        shell.type("link h2-s1 bandwidth=500Mbit\n")
        shell.expect("500")
        shell.expect(PROMPT)
        shell.type("link h2-s1 delay=nonsense\n")
        shell.expect("bench: ")
        shell.expect(PROMPT)

        shell.type("migrate g9 h1\n")
        shell.expect("bench: ")
        shell.type("migrate g1 h1\n")
        shell.expect("g1 moved from h2 to h1: completed")
        shell.expect(PROMPT)
        shell.type("watch\n")
        shell.expect(PROMPT)
        shell.type("exit\n")
        assert shell.end() == 0
    results = [RunResult.read(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [result.outcome for result in results] == ["completed", *["cancelled"] * 3, "completed"]
    assert not [line for line in shell.seen.splitlines() if "Traceback" in line]
