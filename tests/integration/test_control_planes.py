"""One run under each control plane that has no test of its own: what is promised of it, seen on real switches."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_runs import PLAIN_LINKS, Bench, call, events_of, require_moved, settings, started

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.relay import reachable

pytestmark = pytest.mark.root

HUB = Path(__file__).parents[2] / "docs" / "examples" / "hub.py"
QUICK = (
    *("run.warmup=500ms", "run.settle=300ms", "run.predict=false"),
    *PLAIN_LINKS,
    'announce.sender="both"',
)


def app(word: str, *more: str) -> list[str]:
    return settings(*QUICK, f'controller.app="{word}"', *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Several runs, two at a time."""
    directory = tmp_path_factory.mktemp("planes")
    wanted = {
        "proactive": [*app("proactive", 'controller.framework="os-ken"'), "--topo", "leaf-spine"],
        "bridge": [*app("bridge"), "--topo", "ring,switches=3"],
        "dual": [*app("activation", "controller.dual_delivery=true"), "--topo", "linear"],
        "forwarding": [*app("forwarding", "announce.faults.late=150ms"), "--topo", "linear"],
    }
    made: dict[str, Bench] = {}
    names = list(wanted)
    for first in range(0, len(names), 2):
        with contextlib.ExitStack() as stack:
            for name in names[first : first + 2]:
                made[name] = stack.enter_context(started(directory / name, *wanted[name]))
            for name in names[first : first + 2]:
                assert made[name].wait() == 0, made[name].stdout + made[name].stderr
    return made


@pytest.mark.parametrize("name", ["proactive", "bridge", "dual", "forwarding"])
def test_the_guest_moves_with_its_connections(runs: dict[str, Bench], name: str) -> None:
    result = runs[name].result()
    require_moved(result)
    assert result.environment["controller"].endswith({"dual": "activation"}.get(name, name))


def test_the_proactive_app_changes_the_outermost_switch_first_in_a_network_with_loops(runs: dict[str, Bench]) -> None:
    result = runs["proactive"].result()
    told = [switch for switch in result.relearn.switches if switch.controller_ns and switch.distance is not None]
    assert told
    by_distance = sorted(told, key=lambda switch: switch.distance or 0)
    moments = [switch.controller_ns or 0 for switch in by_distance]
    assert moments == sorted(moments)
    for nearer, farther in itertools.pairwise(by_distance):
        if nearer.distance != farther.distance:  # a distance begins when the one before is confirmed
            assert (nearer.confirmed_ns or 0) <= (farther.controller_ns or 0)
    assert {switch.state_by for switch in told} == {"flow monitor"}


def test_linux_bridges_tell_their_fdb_and_open_the_ring(runs: dict[str, Bench]) -> None:
    result = runs["bridge"].result()
    assert result.environment["datapath"] == "bridge"
    assert {switch.state_by for switch in result.relearn.switches if switch.state_by} == {"netlink"}
    assert any(switch.state_ns for switch in result.relearn.switches)


def test_a_blocked_port_is_opened_by_the_announcement_and_both_places_were_served(runs: dict[str, Bench]) -> None:
    events = events_of(runs["dual"].output)
    blocked = [event.t_ns for event in events if event.name == "port_blocked"]
    opened = [event for event in events if event.name == "port_unblocked"]
    assert len(blocked) == len(opened) == 1
    assert opened[0].data["reason"] == "announced"
    both = [event for event in events if event.name == "flow_changed" and len(event.data["outputs"]) == 2]
    assert both
    assert blocked[0] <= both[0].t_ns <= opened[0].t_ns


def test_frames_that_reached_the_source_too_late_were_sent_on(runs: dict[str, Bench]) -> None:
    events = events_of(runs["forwarding"].output)
    (done,) = [event for event in events if event.name == "forwarded"]
    assert done.data["frames"] > 0
    (opened,) = [event for event in events if event.name == "forward_opened"]
    assert opened.data["frames"] > 0  # kept during the pause


# a controller that is not ours


def _test_controller(directory: Path) -> Path:
    """Open vSwitch's own test controller: installed, or unpacked from the distribution's package."""
    found = shutil.which("ovs-testcontroller")
    if found is not None:
        return Path(found)
    subprocess.run(["apt-get", "download", "-q", "openvswitch-testcontroller"], cwd=directory, check=False, timeout=60)
    packages = list(directory.glob("openvswitch-testcontroller_*.deb"))
    if not packages:
        pytest.skip("no ovs-testcontroller, and the package openvswitch-testcontroller cannot be downloaded")
    subprocess.run(["dpkg-deb", "-x", packages[0], directory], check=True, timeout=60)
    return directory / "usr" / "bin" / "ovs-testcontroller"


@pytest.fixture
def foreign_controller(tmp_path: Path) -> Iterator[str]:
    program = _test_controller(tmp_path)
    port = 16_653
    # With --normal it is a hub. Without, its flows send a moved guest's frames to the old port for as long as somebody
    # sends them.
    argv = [program, "--normal", f"ptcp:{port}:127.0.0.1", f"--unixctl={tmp_path / 'control'}"]
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        address = f"tcp:127.0.0.1:{port}"
        wait_until(lambda: not reachable(address), Deadline(10 * NS_PER_S), "the controller listens")
        yield address
    finally:
        child.kill()
        child.wait()


def test_any_openflow_controller_and_any_app_can_be_brought_along(tmp_path: Path, foreign_controller: str) -> None:
    """A whole migration under a controller that is not ours, and one under an app that is not: both tell us nothing."""
    planes = {foreign_controller: f"external/{foreign_controller}", str(HUB): f"ryu/{HUB}"}
    with contextlib.ExitStack() as stack:
        runs = {
            word: stack.enter_context(
                started(
                    tmp_path / str(number),
                    *settings(*QUICK),
                    *("--controller", word, "--topo", "linear"),
                )
            )
            for number, word in enumerate(planes)
        }
        for word, run in runs.items():
            assert run.wait() == 0, run.stdout + run.stderr
            result = run.result()
            require_moved(result)
            assert result.environment["controller"] == planes[word]
            assert all(flow.requests > flow.lost for flow in result.flows)
            assert all(switch.controller_ns is None for switch in result.relearn.switches)


def test_a_controller_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    done = call("run", "smallest", "--controller", "tcp:127.0.0.1:9", "-o", tmp_path / "result")
    assert done.returncode in {1, 2}
    assert "no controller answers at tcp:127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_words_for_a_controller_are_refused(tmp_path: Path) -> None:
    for words in (["--controller", "nonsense"], ["--controller", "tcp:localhost"], ["--controller", "tcp:a:99999"]):
        done = call("run", "smallest", *words, "-o", tmp_path / "result")
        assert done.returncode == 2, done.stderr
        assert "controller" in done.stderr


# topologies and the shell on the command line


def test_topologies_are_listed_and_drawn(tmp_path: Path) -> None:
    listed = call("topo", "list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in ("fat-tree", "leaf-spine", "hyperv", "k=4"))
    drawn = call("topo", "show", "fat-tree,k=4", "--svg", tmp_path / "tree.svg")
    assert "20 switches" in drawn.stdout
    assert (tmp_path / "tree.svg").read_text().startswith("<svg")
    for words in (["nowhere"], ["ring,switches=1"], ["single", "--svg", "/nowhere/at/all.svg"]):
        done = call("topo", "show", *words)
        assert done.returncode == 2, words
        assert done.stderr.startswith("bench: ")
