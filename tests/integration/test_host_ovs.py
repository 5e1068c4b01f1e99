"""Private Open vSwitch daemons with Mininet, alone and in parallel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.errors import DeadlineError, HostError, MachineError
from bench.host.commands import python_environment, run
from bench.host.kernel import start_ticks, switch_ipv6_off
from bench.host.ovs import OpenVSwitch, kernel_datapath_problem
from bench.host.ovs_daemons import FEW_PORTS, SwitchDaemons
from bench.host.sandbox import call_in_sandbox

pytestmark = pytest.mark.root

LONG = 30 * NS_PER_S


@contextmanager
def daemons(**options: Any) -> Iterator[OpenVSwitch]:
    with tempfile.TemporaryDirectory(prefix="ovs") as directory, OpenVSwitch(Path(directory), **options) as ovs:
        yield ovs


def build(ovs: OpenVSwitch | SwitchDaemons, switches: int, **options: Any) -> Any:
    from mininet.net import Mininet
    from mininet.topo import LinearTopo

    Mininet.inited = True  # its init changes limits of the whole machine
    net = Mininet(LinearTopo(switches, 1), switch=ovs.switch_class(**options), controller=None, build=False)
    net.build()
    for host in net.hosts:
        switch_ipv6_off(host.pid)
    return net


def ping(net: Any) -> str:
    """Until the first answer; how many questions are lost before is not what is tested here."""
    argv = ["ping", "-c", "1", "-i", "0.2", "-w", "15", net.hosts[-1].IP()]
    return run(argv, deadline=Deadline(LONG), netns_pid=net.hosts[0].pid).stdout


def test_network_learns_without_a_controller_and_keeps_its_shaping() -> None:
    def main() -> dict[str, Any]:
        with daemons() as ovs, ovs.environment():
            net = build(ovs, 3)
            port = net.switches[0].intfList()[1].name
            run(["tc", "qdisc", "add", "dev", port, "root", "handle", "7:", "htb"], deadline=Deadline(LONG))
            net.start()
            found = {
                "ping": ping(net),
                "fdb": ovs.appctl("fdb/show", "s1"),
                "qdisc": run(["tc", "qdisc", "show", "dev", port], deadline=Deadline(LONG)).stdout,
                "bridges": ovs.vsctl(
                    "--columns=name,fail_mode,protocols,datapath_type", "-f", "json", "list", "Bridge"
                ),
                "connected": [switch.connected() for switch in net.switches],
                "datapath": ovs.datapath,
                "dump": str(net.switches[0].dpctl("dump-flows")),
            }
            net.switches[0].detach(port)
            found["without"] = ovs.vsctl("list-ports", "s1").split()
            net.switches[0].attach(net.switches[0].intfList()[1])
            found["again"] = ping(net)
            net.stop()
            found["left"] = ovs.vsctl("list-br")
        return {**found, "port": port, "env": os.environ.get("OVS_RUNDIR")}

    found = call_in_sandbox(main)
    assert "bytes from" in found["ping"]
    assert "bytes from" in found["again"]
    assert len(found["fdb"].splitlines()) >= 3
    assert "htb 7:" in found["qdisc"], "Open vSwitch took the shaper away"
    kind = "netdev" if found["datapath"] == "user" else "system"
    rows = json.loads(found["bridges"])["data"]
    assert [row[1:] for row in rows] == [["standalone", "OpenFlow13", kind]] * 3
    assert found["connected"] == [True] * 3
    assert "NORMAL" in found["dump"]
    assert found["port"] not in found["without"]
    assert found["left"] == ""
    assert found["env"] is None


def test_switches_with_daemons_of_their_own_forward_to_each_other() -> None:
    def main() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="ovs") as directory:
            ports = {f"s{number}": FEW_PORTS for number in (1, 2, 3)}
            ovs = SwitchDaemons(Path(directory), "user", ports, Path(directory) / "controller.sock")
            try:
                ovs.start()
                net = build(ovs, 3)
                net.start()
                found = {
                    "ping": ping(net),
                    "bridges": [daemon.vsctl("list-br").split() for daemon in ovs],
                    "shells": [switch.cmd("ovs-vsctl list-br").split() for switch in net.switches],
                    "fdb": [ovs.of(name).appctl("fdb/show", name).count("\n") for name in ports],
                    "dump": str(net.switches[2].dpctl("dump-flows")),
                    "links": [(daemon.directory / "controller.sock").is_symlink() for daemon in ovs],
                    "pids": len(set(ovs.forwarding_pids)),
                }
                net.stop()
                pids = [process.pid for process in ovs.processes]
            finally:
                ovs.stop()
            found["ended"] = [start_ticks(pid) is None for pid in pids]
        return found

    found = call_in_sandbox(main)
    assert "bytes from" in found["ping"]
    assert found["bridges"] == found["shells"] == [["s1"], ["s2"], ["s3"]]
    assert min(found["fdb"]) >= 3
    assert "NORMAL" in found["dump"]
    assert found["links"] == [False, True, True]
    assert found["pids"] == 3
    assert found["ended"] == [True] * 6


def test_switch_with_a_controller_port_is_secure_and_not_connected() -> None:
    def main() -> list[Any]:
        with daemons() as ovs:
            net = build(ovs, 1, controller_port=1)
            net.start()
            return [
                ovs.vsctl("get", "Bridge", "s1", "fail_mode").strip(),
                ovs.vsctl("--bare", "--columns=target", "list", "Controller").strip(),
                net.switches[0].connected(),
            ]

    assert call_in_sandbox(main) == ["secure", "tcp:127.0.0.1:1", False]


def test_daemons_end_and_leave_the_environment_alone() -> None:
    def main() -> list[bool]:
        with daemons(datapath="user") as ovs:
            pids = [process.pid for process in ovs.processes]
            assert len(pids) == 2
            assert "OVS_RUNDIR" not in os.environ
        ovs.stop()
        return [start_ticks(pid) is None for pid in pids]

    assert call_in_sandbox(main) == [True, True]


def test_bad_questions_and_dead_daemons() -> None:
    def main() -> None:
        with daemons() as ovs:
            with pytest.raises(HostError, match="no-such-command"):
                ovs.appctl("no-such-command")
            daemon = ovs.processes[1]
            daemon.send_signal(signal.SIGSTOP)
            with ovs.control() as control, pytest.raises(DeadlineError, match="version: no answer"):
                control.call("version", deadline=Deadline(NS_PER_S // 20))
            daemon.send_signal(signal.SIGCONT)
            with pytest.raises(HostError, match="ghost"):
                ovs.vsctl(
                    "add-br",
                    "b",
                    "--",
                    "set",
                    "Bridge",
                    "b",
                    f"datapath_type={kind(ovs)}",
                    "--",
                    "add-port",
                    "b",
                    "ghost",
                )
            with ovs.control() as control:
                daemon.stop()
                with pytest.raises(HostError):
                    control.call("version")

    call_in_sandbox(main)


def kind(ovs: OpenVSwitch) -> str:
    return "netdev" if ovs.datapath == "user" else "system"


def test_kernel_datapath_is_judged_by_trying() -> None:
    def main() -> list[str]:
        problem = kernel_datapath_problem()
        with daemons() as ovs:
            chosen = [problem, ovs.datapath, ovs.datapath_note]
        if problem:
            with pytest.raises(MachineError, match="kernel datapath does not work"), daemons(datapath="kernel"):
                pass
        return chosen

    problem, datapath, note = call_in_sandbox(main)
    assert datapath == ("user" if problem else "kernel")
    assert bool(note) == bool(problem)


PARALLEL = """
import sys
from pathlib import Path
from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.ledger import RunDirectory
from bench.host.ovs import OpenVSwitch
from bench.host.sandbox import run_in_sandbox

sys.path.insert(0, sys.argv[1])
from test_host_ovs import build, ping

base, mine, other = map(Path, sys.argv[2:5])

def main():
    with OpenVSwitch(run.path / "ovs") as ovs:
        net = build(ovs, 2)
        net.start()
        mine.write_text("up")
        wait_until(other.exists, Deadline(30 * NS_PER_S), "the other sandbox")
        print(ping(net), ovs.vsctl("list-br"), flush=True)
    return 0

with RunDirectory.create(base) as run:
    code = run_in_sandbox(main)
sys.exit(code)
"""


def test_two_sandboxes_with_the_same_names_at_once(tmp_path: Path) -> None:
    notes = [tmp_path / "one", tmp_path / "two"]
    base = Path(tempfile.mkdtemp(prefix="par"))  # short: it holds sockets
    try:
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", PARALLEL, str(Path(__file__).parent), str(base), *map(str, pair)],
                env={**os.environ, **python_environment()},
                stdout=subprocess.PIPE,
                text=True,
            )
            for pair in (notes, notes[::-1])
        ]
        outputs = [process.communicate(timeout=LONG / NS_PER_S)[0] for process in runs]
        assert [process.returncode for process in runs] == [0, 0]
        for output in outputs:
            assert "bytes from" in output
            assert output.split()[-2:] == ["s1", "s2"]
        assert list(base.iterdir()) == []
        links = run(["ip", "-o", "link"], deadline=Deadline(LONG)).stdout
        assert "s1-eth" not in links
    finally:
        base.rmdir()
