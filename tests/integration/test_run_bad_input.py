"""Bad input ends with one message that names it and exit code 2, before anything was built, and nothing is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from bench_runs import BENCH, call, dead_runs, interfaces, settings

pytestmark = pytest.mark.root

NO_PATH = """
from mininet.topo import Topo

class Parted(Topo):
    def build(self):
        for number in (1, 2):
            self.addLink(self.addHost(f"h{number}", role="hypervisor"), self.addSwitch(f"s{number}"))
        self.addLink(self.addHost("c1"), "s1")

class Looped(Topo):
    def build(self):
        switches = [self.addSwitch(f"s{number}") for number in (1, 2, 3)]
        for number, switch in enumerate(switches):
            self.addLink(switch, switches[number - 1])
            self.addLink(self.addHost(f"h{number + 1}"), switch)

topos = {"parted": Parted, "looped": Looped}
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "parted.py"
    path.write_text(NO_PATH)
    return path


def refused(output: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """The message of a run that must be refused."""
    before = interfaces(), dead_runs()
    done = call("run", *arguments, "-o", output, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("bench: ")
    assert done.stderr.count("bench: ") == 1
    assert not output.exists()
    assert (interfaces(), dead_runs()) == before
    return done.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("guest.memry=16MiB", ["guest.memry", "memory, vcpus"]),
        ("guest.memory=16Mib", ["guest.memory", "16Mib", "MiB"]),
        ("links.h9-s1.delay=1ms", ["links.h9-s1", "h1-s1"]),
        ("network.topology=mesh", ["network.topology", "mesh", "single, linear"]),
        ("guest.image=/nowhere/image", ["guest.image", "/nowhere/image", "No such file"]),
        ("guest.memory=64GiB", ["guest.memory", "65536 MiB", "available", "remedy"]),
    ],
)
def test_a_setting(tmp_path: Path, setting: str, named: list[str]) -> None:
    message = refused(tmp_path / "result", "smallest", "--set", setting)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("scenario", "changes", "named"),
    [
        (
            "crossing",
            ["guests.0.address=10.0.1.9", "guests.1.address=10.0.1.9"],
            ["guests.1.address", "10.0.1.9", "guest g1 has this one"],
        ),
        ("evacuate", ["migration.evacuate=h9"], ["migration.evacuate", "h9", "h1, h2, h3"]),
        (
            "evacuate",
            ['network.guest_memory={h2="16MiB",h3="16MiB"}'],
            ["migration.evacuate", "guest g2 of 32 MiB fits nowhere", "h2 has 16 MiB free"],
        ),
        ("crossing", ["moves.1.guest=g7"], ["moves.1.guest", "g7", "g1, g2"]),
    ],
)
def test_guests_that_cannot_be_or_cannot_move(
    tmp_path: Path, scenario: str, changes: list[str], named: list[str]
) -> None:
    message = refused(tmp_path / "result", scenario, *settings(*changes))
    for part in named:
        assert part in message


def test_an_image_that_is_larger_than_the_memory(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(17 << 20)
    assert str(image) in refused(tmp_path / "result", "smallest", "--set", f"guest.image={image}")


def test_a_scenario_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert str(missing) in refused(tmp_path / "result", str(missing))


def test_a_scenario_that_is_no_toml(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[guest\n")
    message = refused(tmp_path / "result", str(broken))
    assert str(broken) in message
    assert "TOML" in message


def test_a_topology_without_a_path_between_the_hypervisors(tmp_path: Path, topology: Path) -> None:
    message = refused(tmp_path / "result", "smallest", "--topo", f"{topology}:parted")
    assert "network.topology" in message
    assert "path" in message
    assert "h1 and h2" in message


def test_a_topology_with_a_loop(tmp_path: Path, topology: Path) -> None:
    clients = 'clients=[{kind="udp-echo"}]'
    message = refused(tmp_path / "result", "smallest", "--topo", f"{topology}:looped", "--set", clients)
    assert "loop" in message


@pytest.mark.parametrize("name", ["missing.py:parted", "parted.py:parted,7"])
def test_a_topology_that_cannot_be_made(tmp_path: Path, topology: Path, name: str) -> None:
    message = refused(tmp_path / "result", "smallest", "--topo", str(topology.with_name(name)))
    assert "network.topology" in message
    assert name.partition(":")[0] in message


def test_no_root(tmp_path: Path) -> None:
    output = tmp_path / "result"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", BENCH, "run", "smallest", "-o", output],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    if "Permission denied" in done.stderr and not done.stderr.startswith("bench: "):
        pytest.skip("this checkout cannot be read by other users")
    assert done.returncode == 2, done.stderr
    assert "root" in done.stderr
    assert "sudo" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_no_open_vswitch(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for directory in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in directory.iterdir() if directory.is_dir() else ():
            link = programs / program.name
            if not program.name.startswith("ovs") and not link.is_symlink():
                link.symlink_to(program)
    message = refused(tmp_path / "result", "smallest", env={"PATH": str(programs)})
    assert "Open vSwitch" in message
    assert "openvswitch-switch" in message


def test_nothing_of_an_occupied_directory_is_touched(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("mine")
    done = call("run", "smallest", "-o", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "mine"


def test_a_directory_that_was_there_stays_and_is_empty(tmp_path: Path) -> None:
    done = call("run", "smallest", "-o", tmp_path, env={"PATH": "/nowhere"})
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_showing_what_is_no_result(tmp_path: Path) -> None:
    for text in ("", "[]", '{"schema": "another"}', '{"schema": "migration-bench/result/1"}'):
        (tmp_path / "result.json").write_text(text)
        done = call("show", tmp_path)
        assert done.returncode == 2
        assert str(tmp_path / "result.json") in done.stderr
        assert "Traceback" not in done.stderr
