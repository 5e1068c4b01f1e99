from __future__ import annotations

import pytest
from mininet.topo import Topo

import topologies
from bench import plan as planning
from bench.errors import MachineError, ScenarioError
from bench.scenario import parse_scenario


def topology(hosts: dict[str, dict[str, str]], switches: list[str], links: list[tuple[str, str]]) -> Topo:
    topo = Topo()
    for name, options in hosts.items():
        topo.addHost(name, **options)
    for name in switches:
        topo.addSwitch(name)
    for first, second in links:
        topo.addLink(first, second)
    return topo


def star(**hosts: dict[str, str]) -> Topo:
    names = hosts or {"h1": {}, "h2": {}, "c1": {}}
    return topology(names, ["s1"], [(host, "s1") for host in names])


@pytest.fixture
def make(monkeypatch):
    def run(topo, **raw):
        def load(_spec, _args):
            if isinstance(topo, Exception):
                raise topo
            return topo

        monkeypatch.setattr(topologies, "load", load)
        raw.setdefault("guest", {"memory": "16MiB", "store_memory": "2MiB"})
        return planning.make_plan(parse_scenario(raw, "test"), "test.toml")

    return run


def test_roles_come_from_the_scenario_then_the_nodes_then_their_order(make):
    plan = make(star())
    assert (plan.source, plan.destination, plan.clients) == ("h1", "h2", ("c1",))
    marked = {"a": {}, "b": {"role": "hypervisor"}, "c": {"role": "hypervisor"}, "d": {"role": "storage"}}
    plan = make(star(**marked))
    assert (plan.hypervisors, plan.storage, plan.clients) == (("b", "c"), "d", ("a",))
    plan = make(star(**marked), network={"hypervisors": ["a", "b"]}, migration={"destination": "a"}, clients=[])
    assert (plan.source, plan.destination) == ("b", "a")


def test_every_host_gets_its_own_address_and_the_guest_keeps_its_own(make):
    plan = make(
        star(),
        network={"subnet": "10.9.0.0/28"},
        guest={"memory": "16MiB", "store_memory": "2MiB", "address": "10.9.0.2"},
    )
    assert plan.addresses == {"h1": "10.9.0.1", "h2": "10.9.0.3", "c1": "10.9.0.4"}
    assert plan.prefix_length == 28


@pytest.mark.parametrize(
    ("topo", "raw", "key", "allowed"),
    [
        (star(h1={}), {}, "network.hypervisors", "two different hosts"),
        (star(), {"network": {"hypervisors": ["h1", "x"]}}, "network.hypervisors", "h1, h2, c1"),
        (star(), {"network": {"storage": "x"}}, "network.storage", "h1, h2, c1"),
        (star(), {"migration": {"source": "c1"}}, "migration.source", "h1, h2"),
        (star(), {"migration": {"source": "h1", "destination": "h1"}}, "migration.destination", "another"),
        (star(), {"clients": [{"kind": "udp-echo", "host": "h1"}]}, "clients.0.host", "c1"),
        (star(h1={}, h2={}), {}, "clients.0.host", "has none"),
        (star(), {"links": {"h1-s9": {}}}, "links.h1-s9", "h1-s1"),
        (star(), {"network": {"subnet": "10.0.0.0/99"}}, "network.subnet", "10.0.0.0/16"),
        (star(), {"network": {"subnet": "192.168.0.0/24"}}, "guest.address", "192.168.0.0/24"),
        (ValueError("no such file"), {}, "network.topology", "no such file"),
        (
            topology({"h1": {}, "h2": {}, "c1": {}}, ["s1", "s2"], [("h1", "s1"), ("h2", "s2"), ("c1", "s1")]),
            {},
            "network.topology",
            "a path through switches between h1 and h2",
        ),
        (
            topology(
                {"h1": {}, "h2": {}, "c1": {}},
                ["s1", "s2", "s3"],
                [("h1", "s1"), ("h2", "s2"), ("c1", "s1"), ("s1", "s2"), ("s2", "s3"), ("s3", "s1")],
            ),
            {},
            "network.topology",
            "without a loop",
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_is_built(make, topo, raw, key, allowed):
    with pytest.raises(ScenarioError) as caught:
        make(topo, **raw)
    assert caught.value.key == key
    assert allowed in str(caught.value)


def test_an_image_must_be_readable_and_fit(make, tmp_path):
    guest = {"memory": "16MiB", "store_memory": "2MiB", "image": str(tmp_path / "none")}
    with pytest.raises(ScenarioError, match="readable file"):
        make(star(), guest=guest)
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(15 << 20)
    with pytest.raises(ScenarioError, match="less guest"):
        make(star(), guest={**guest, "image": str(big)})


def test_too_little_memory_is_said_with_what_would_fit(make):
    with pytest.raises(MachineError, match="--set"):
        make(star(), guest={"memory": "64GiB"})


def test_a_path_leads_through_switches_only(make):
    plan = make(
        topology({"h1": {}, "h2": {}, "c1": {}}, ["s1", "s2"], [("h1", "s1"), ("s1", "s2"), ("s2", "h2"), ("c1", "s1")])
    )
    assert plan.path("c1", "h2") == ["c1", "s1", "s2", "h2"]
    assert plan.switches_between("c1", "h1") == ["s1"]
    assert plan.dpids == {"s1": 1, "s2": 2}


def test_available_memory_is_read_from_meminfo():
    assert planning.available_memory_bytes("MemTotal: 1 kB\nMemAvailable:   2048 kB\n") == 2 << 20
    assert planning.available_memory_bytes("") == 0


def test_a_program_that_is_not_there_is_refused_before_anything_is_built(make):
    with pytest.raises(ScenarioError, match=r"clients\.0\.command.*no-such-program"):
        make(star(), clients=[{"kind": "command", "command": ["no-such-program", "-x"]}])
