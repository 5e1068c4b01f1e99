from __future__ import annotations

import itertools
import runpy
from pathlib import Path

import pytest
from mininet.topo import SingleSwitchTopo, Topo
from mininet.topolib import TorusTopo, TreeTopo

import topologies
from topologies import TopologyError, paths

OWN = """
from mininet.topo import Topo

class Ring(Topo):
    def build(self, k=3):
        for i in range(1, k + 1):
            self.addSwitch(f"s{i}")
        for i in range(1, k + 1):
            self.addLink(f"s{i}", f"s{i % k + 1}")

class Broken(Topo):
    def build(self):
        raise RuntimeError("no such luck")

def star(n=2):
    return Ring(k=int(n))

topos = {"ring": Ring, "broken": Broken, "nothing": dict, "star": star}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own topo.py"
    file.write_text(OWN)
    return file


def roles(topo: Topo) -> dict[str, str]:
    return {host: topo.nodeInfo(host)["role"] for host in topo.hosts()}


def test_single() -> None:
    topo = topologies.load("single")
    assert roles(topo) == {"h1": "hypervisor", "h2": "hypervisor", "st1": "storage", "c1": "client"}
    assert paths.switches_between(topo, "h1", "h2") == ["s1"]
    assert topologies.load("single,hypervisors=3", {"clients": 2}).hosts() == ["c1", "c2", "h1", "h2", "h3", "st1"]


@pytest.mark.parametrize("switches", [1, 2, 5])
def test_linear(switches: int) -> None:
    topo = topologies.load("linear", {"switches": switches})
    row = [f"s{number}" for number in range(1, switches + 1)]
    assert topo.switches() == row
    assert paths.switches_between(topo, "h1", "h2") == row
    assert paths.switches_between(topo, "h2", "h1") == row[::-1]
    assert paths.switches_between(topo, "c1", "h1") == ["s1"]
    assert paths.find_loop(topo) is None


def test_linear_places() -> None:
    topo = topologies.load("linear,3,client_at=2,storage_at=3")
    assert paths.switches_between(topo, "c1", "st1") == ["s2", "s3"]


@pytest.mark.parametrize("name", topologies.BUILTIN)
def test_the_files_work_with_mininets_custom_option(name: str, project: Path) -> None:
    """Mininet executes the file and takes its ``topos``."""
    topos = runpy.run_path(str(project / f"{topologies.BUILTIN[name].replace('.', '/')}.py"))["topos"]
    assert isinstance(topos[name](), Topo)


def test_a_file_of_ones_own(own: Path) -> None:
    assert topologies.load(f"{own}:ring,4").switches() == ["s1", "s2", "s3", "s4"]
    assert topologies.load(f"{own}:ring", {"k": 5}).switches()[-1] == "s5"
    assert topologies.load(f"{own}:Ring,k=3").switches()[-1] == "s3"
    assert topologies.load(f"{own}:star").switches() == ["s1", "s2"]


def test_a_file_with_one_topology_needs_no_name(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        "from mininet.topo import Topo\nclass Only(Topo):\n    def build(self):\n        self.addSwitch('s1')\n"
    )
    assert topologies.load(str(file)).switches() == ["s1"]


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("nowhere", {}, "no topology of this name; allowed: single, linear, tree"),
        ("", {}, "no topology of this name"),
        ("single,clients=0", {}, "at least 2 hypervisors and 1 client"),
        ("single,klients=1", {}, "klients"),
        ("single", {"clients": "many"}, "TypeError"),
        ("single,clients=1", {"clients": 2}, "clients is given twice"),
        ("linear,client_at=3", {}, "places from 1 to 2"),
        ("missing.py:x", {}, "no such file"),
        ("OWN:tree", {}, "no topology tree; it has broken, nothing, ring, star"),
        ("OWN", {}, "say which topology"),
        ("OWN:broken", {}, "RuntimeError: no such luck"),
        ("OWN:nothing", {}, "makes a dict, not a Mininet Topo"),
        ("OWN:ring", {"size": 1}, "size"),
    ],
)
def test_what_is_wrong_is_said(own: Path, spec: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError) as caught:
        topologies.load(spec.replace("OWN", str(own)), args)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("x = 1", "no topos dictionary and no Topo subclass"),
        ("topos = 7", "no topos dictionary and no Topo subclass"),
    ],
)
def test_a_broken_file_is_said(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(code)
    with pytest.raises(TopologyError, match=message):
        topologies.load(f"{file}:x")


def test_paths_do_not_lead_through_hosts() -> None:
    topo = Topo()
    for switch in ("s1", "s2"):
        topo.addSwitch(switch)
    for host in ("h1", "h2", "h3"):
        topo.addHost(host)
    for pair in (("h1", "s1"), ("h2", "s2"), ("h3", "s1"), ("h3", "s2")):
        topo.addLink(*pair)
    assert paths.path(topo, "h1", "h2") is None
    assert paths.path(topo, "h1", "h3") == ["h1", "s1", "h3"]
    assert paths.path(topo, "h3", "h3") == ["h3"]
    assert paths.find_loop(topo) is None
    with pytest.raises(TopologyError, match="no path between h1 and h2"):
        paths.switches_between(topo, "h1", "h2")
    with pytest.raises(TopologyError, match="node h9: not in the topology"):
        paths.path(topo, "h1", "h9")


def test_loops_are_found(own: Path) -> None:
    assert paths.find_loop(TreeTopo(depth=2, fanout=3)) is None
    assert paths.find_loop(SingleSwitchTopo(4)) is None
    loop = paths.find_loop(topologies.load(f"{own}:ring,5"))
    assert loop is not None
    assert sorted(loop) == ["s1", "s2", "s3", "s4", "s5"]
    for topo in (TorusTopo(3, 3), topologies.load(f"{own}:ring,2")):
        loop = paths.find_loop(topo)
        assert loop is not None
        around = [*loop, loop[0]]
        assert all(second in topo.g[first] for first, second in itertools.pairwise(around))


def test_dpids_are_mininets() -> None:
    topo = Topo()
    topo.addSwitch("s1")
    topo.addSwitch("leaf12")
    topo.addSwitch("core", dpid="00:00:00:00:00:00:00:ff")
    assert paths.switch_dpids(topo) == {"s1": 1, "leaf12": 12, "core": 255}


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"core": {}}, "give it digits"),
        ({"a1": {}, "b1": {}}, "same dpid 1"),
        ({"s1": {"dpid": "xyz"}}, "no hexadecimal number"),
    ],
)
def test_dpids_that_mininet_could_not_give(switches: dict[str, dict[str, str]], message: str) -> None:
    topo = Topo()
    for name, options in switches.items():
        topo.addSwitch(name, **options)
    with pytest.raises(TopologyError, match=message):
        paths.switch_dpids(topo)
