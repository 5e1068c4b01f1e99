"""What hosts' cards make of their links, and a network for migrations beside the guests' own."""

import pytest

from bench.errors import ScenarioError
from bench.link.impairment import from_spec
from bench.plan import make_plan
from bench.plan_network import limited, link_spec
from bench.scenario import parse_scenario

pytest.importorskip("mininet")


def plan(**raw):
    scenario = parse_scenario({"guest": {"memory": "16MiB", "store_memory": "4MiB"}, **raw}, "test")
    return scenario, make_plan(scenario, "test")


@pytest.mark.parametrize(
    ("bandwidth", "speed", "effective"), [(100, 10, 10), (10, 100, 10), (0, 10, 10), (10, 0, 10), (0, 0, 0)]
)
def test_the_slower_of_link_and_card_decides(bandwidth, speed, effective):
    assert limited(bandwidth, speed) == effective


def test_a_card_limits_both_directions_of_its_hosts_links_only():
    scenario, made = plan(
        hosts={"h1": {"nic": "100Mbit"}}, links={"default": {"bandwidth": "1Gbit", "reverse": {"bandwidth": "50Mbit"}}}
    )
    forward, backward = from_spec(link_spec(scenario, made.hypervisors, "h1", "s1"))
    assert (forward.rate_bps, backward.rate_bps) == (100_000_000, 50_000_000)
    assert link_spec(scenario, made.hypervisors, "h2", "s1").bandwidth == 10**9
    assert link_spec(scenario, ("h2",), "h1", "s1").bandwidth == 10**9  # no hypervisor: [hosts] is not about it


def test_a_cards_mtu_is_that_of_its_cable():
    scenario, made = plan(hosts={"default": {"mtu": 9000}})
    assert from_spec(link_spec(scenario, made.hypervisors, "s1", "h1"))[1].mtu == 9000
    assert link_spec(scenario, made.hypervisors, "c1", "s1").mtu == 1500
    assert made.guest_mtu == 1500


def test_the_queue_is_one_of_full_size_frames():
    scenario, made = plan(links={"default": {"mtu": 9000, "queue": 10}})
    assert from_spec(link_spec(scenario, made.hypervisors, "h1", "s1"))[0].queue_bytes == 10 * 9014


def test_guests_follow_a_network_that_carries_less_than_ethernet():
    assert plan(links={"default": {"mtu": 1450}})[1].guest_mtu == 1450


def test_frames_that_would_vanish_on_the_way_are_refused_by_their_link():
    with pytest.raises(ScenarioError) as caught:
        plan(network={"topology": "linear"}, hosts={"default": {"mtu": 9000}})
    assert caught.value.key == 'links."s1-s2".mtu'
    plan(network={"topology": "linear"}, hosts={"default": {"mtu": 9000}}, links={"s1-s2": {"mtu": 9000}})


@pytest.mark.parametrize("topology", ["single", "linear", "dumbbell"])
def test_a_second_card_takes_the_migration_and_leaves_the_guests_way_alone(topology):
    _, one = plan(network={"topology": topology})
    _, two = plan(network={"topology": topology, "nics": 2})
    assert one.migration_path("h1", "h2") == one.path("h1", "h2")
    assert two.migration_path("h1", "h2") == ["h1", "m1", "h2"]
    assert two.path("h1", "h2") == one.path("h1", "h2")
    assert {("h1", "m1"), ("h2", "m1")} <= set(two.links)


def test_separate_networks_of_a_topology_take_the_migration():
    assert plan(network={"topology": "hyperv"})[1].migration_path("h1", "h2") == ["h1", "s2", "h2"]
    converged = {"topology": "hyperv", "args": {"converged": True}}
    assert plan(network=converged)[1].migration_path("h1", "h2") == ["h1", "s1", "h2"]


def test_a_second_card_is_refused_where_there_is_a_network_for_migrations():
    with pytest.raises(ScenarioError) as caught:
        plan(network={"topology": "hyperv", "nics": 2})
    assert caught.value.key == "network.nics"
    with pytest.raises(ScenarioError):
        plan(network={"nics": 2, "subnet": "10.0.0.0/8"})


@pytest.mark.parametrize("raw", [{"mtu": 100}, {"nic": "1kbit"}, {"cores": [0, 0]}])
def test_values_out_of_range_are_refused(raw):
    with pytest.raises(ScenarioError):
        parse_scenario({"hosts": {"h1": raw}}, "test")
