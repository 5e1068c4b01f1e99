"""What surrounds a migration: which load is meant, how the script changes a link, and what a plan refuses."""

from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.host.limits import hierarchies
from bench.host_load import memory_arguments, stress_arguments
from bench.link.impairment import Direction
from bench.plan_surroundings import check_surroundings
from bench.scenario import HostSpec, LoadSpec, Scenario, ScriptSpec, parse_scenario
from bench.surroundings import changed, host_spec

LINKS = ["h1-s1", "h2-s1"]


def check(**raw):
    scenario = parse_scenario({"guest": {"memory": "16MiB", "store_memory": "4MiB"}, **raw}, "test")
    check_surroundings(scenario, ["h1", "h2"], {"h1", "h2", "c1"}, LINKS, "test")


@pytest.mark.parametrize(
    ("cpu", "workers", "share"), [(0.5, "1", "50"), (1.0, "1", "100"), (1.5, "2", "75"), (2.0, "2", "100")]
)
def test_a_cpu_load_is_so_many_processors_worth(cpu, workers, share):
    argv = stress_arguments(LoadSpec.model_validate({"cpu": cpu}))
    assert argv[:5] == ["stress-ng", "--cpu", workers, "--cpu-load", share]


def test_a_named_host_inherits_from_the_default_one():
    scenario = parse_scenario({"hosts": {"default": {"cpu": 1.5}, "h2": {"load": {"cpu": 0.1}}}}, "test")
    assert (host_spec(scenario, "h2").cpu, host_spec(scenario, "h2").load.cpu) == (1.5, 0.1)


def test_no_load_starts_nothing():
    assert stress_arguments(LoadSpec()) == []
    assert memory_arguments(LoadSpec(), Path("m")) == []


@pytest.mark.parametrize(("memory", "workers"), [(0.5, "1"), (1, "1"), (3, "3")])
def test_a_load_of_memory_is_shares_of_one_or_whole_processors(memory, workers):
    argv = memory_arguments(LoadSpec.model_validate({"memory": memory}), Path("m"))
    assert argv[:3] == ["stress-ng", "--stream", workers]
    with pytest.raises(ScenarioError):
        parse_scenario({"hosts": {"h1": {"load": {"memory": memory + 1.25}}}}, "test")


def test_a_host_without_limits_of_its_own_has_the_default_ones():
    scenario = parse_scenario({"hosts": {"default": {"cpu": 0.5}, "h2": {"cpu": 2}}}, "test")
    assert [host_spec(scenario, name).cpu for name in ("h1", "h2")] == [0.5, 2]
    assert host_spec(Scenario(), "h1") == HostSpec()


def test_a_change_of_the_script_leaves_what_it_does_not_name():
    before = Direction(10**9, 1000, 0, 0.0, 50)
    change = ScriptSpec.model_validate({"at": "3s", "link": "s1-h2", "bandwidth": "100Mbit"})
    assert changed(before, change) == Direction(10**8, 1000, 0, 0.0, 50)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"hosts": {"c1": {"cpu": 1}}}, "hosts.c1"),
        ({"hosts": {"h1": {"memory": "100MiB"}}}, "hosts.h1.memory"),
        ({"cross_traffic": [{"source": "c1", "destination": "h9"}]}, "cross_traffic.0.destination"),
        ({"script": [{"at": "1s", "link": "h1-h2", "bandwidth": "1Mbit"}]}, "script.0.link"),
        ({"script": [{"at": "1s", "link": "s1-h1", "delay": "1ms"}]}, "script.0.delay"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(raw, key):
    with pytest.raises(ScenarioError) as caught:
        check(**raw)
    assert caught.value.key == key


def test_what_can_be_is_not_refused():
    check(
        hosts={"default": {"cpu": 0.5, "memory": "512MiB"}},
        cross_traffic=[{"source": "c1", "destination": "h2", "rate": "100Mbit"}],
        script=[{"at": "1s", "link": "s1-h1", "bandwidth": "100Mbit"}],
    )


def test_both_versions_of_control_groups_are_found(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("memory hugetlb\n")
    mountinfo = (
        "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu,cpuacct\n"
        "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n"
        f"32 24 0:28 / {tmp_path} rw - cgroup2 none rw\n"
    )
    found = hierarchies(mountinfo)
    assert found["cpu"][1] == 1
    assert found["memory"] == (tmp_path, 2)
