"""The five variables: their points, the law that is fitted, what is said of it, and the plot."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scenario import Scenario, load_scenario, parse_scenario
from bench.variables.experiment import Measured, Sample, Swept, gather, tasks_of, write
from bench.variables.fit import power_law, sentence
from bench.variables.plot import draw
from bench.variables.points import variables


def sample(total_ns, downtime_ns=10**7):
    return Sample(total_ns, total_ns, downtime_ns, 3, 2 * downtime_ns, total_ns, downtime_ns, 3)


def test_each_variable_has_five_points_that_differ():
    keys = []
    for variable in variables(Scenario(), ["st1-s1"]):
        keys.append(variable.key)
        values = [point.value for point in variable.points]
        assert len(set(values)) == 5
        assert values == sorted(values)
    assert keys == ["modified-pages", "bandwidth", "hardware", "load", "storage", "storage-links"]
    assert [variable.key for variable in variables(Scenario()) if not variable.quick] == []


def test_the_bandwidth_of_named_links_is_swept_too():
    base = parse_scenario({"links": {"default": {"bandwidth": "1Gbit"}, "h1-s1": {"delay": "1ms"}}}, "test")
    bandwidth = variables(base)[1]
    assert bandwidth.points[0].settings == (
        "links.default.bandwidth=125000000bit",
        'links."h1-s1".bandwidth=125000000bit',
    )


def test_the_bandwidth_to_the_storage_is_that_of_its_links_too():
    by_server, by_links = variables(Scenario(), ["s3-st1", "st1-s4"])[4:]
    assert by_server.points[0].settings == ("storage.rate=1MiB/s",)
    assert by_links.points[0].settings == ('links."s3-st1".bandwidth=10Mbit', 'links."st1-s4".bandwidth=10Mbit')
    assert by_server.also == by_links.also
    assert not by_links.quick


@settings(deadline=None, max_examples=40)
@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_a_power_law_is_found_again(exponent, constant):
    law = power_law([(x, constant * x**exponent) for x in (1, 2, 4, 8, 16)])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.constant == pytest.approx(constant, rel=1e-6)


def test_no_law_is_made_of_too_little():
    assert power_law([(1, 1), (2, 2)]) is None
    assert power_law([(0, 1), (0, 2), (1, 3)]) is None


@pytest.mark.parametrize(
    ("exponent", "said"),
    [
        (-0.98, "total time grows as 1/bandwidth: exponent -0.98"),
        (1.0, "total time grows in proportion to bandwidth: exponent 1.00"),
        (0.5, "total time grows with bandwidth: exponent 0.50"),
        (-2.0, "total time falls with bandwidth: exponent -2.00"),
        (0.0, "total time does not depend on bandwidth (exponent +0.00)"),
    ],
)
def test_one_sentence_says_what_a_variable_did(exponent, said):
    assert sentence("total time", "bandwidth", [(x, 3e9 * x**exponent) for x in (100, 200, 400, 800)]) == said


def test_what_follows_no_law_is_told_as_such():
    said = sentence("downtime", "load", [(0, 10), (0.5, 30), (1, 11), (2, 29), (4, 20)])
    assert said == (
        "downtime follows no power of load: at its highest value it is 2.00 times that at its lowest (the best "
        "exponent, -0.04, explains 0 %)"
    )


def test_the_plot_is_a_picture_whatever_was_measured():
    variable = variables(Scenario())[3]
    full = Swept(variable, [Measured(value, [sample(10**9)]) for value in (0, 1, 2)])
    empty = Swept(variable, [Measured(0, problem="failed")])
    for swept in (full, empty):
        assert ET.fromstring(draw(swept)).tag.endswith("svg")
    assert "nothing was measured" in draw(empty)
    assert draw(full).count("<circle") == 12


def test_every_point_is_a_scenario(project):
    path = project / "scenarios" / "smallest.toml"
    for variable in variables(load_scenario(path), ["st1-s1"]):
        seen = set()
        for point in variable.points:
            scenario = load_scenario(path, [*variable.also, *point.settings])
            seen.add(scenario.model_dump_json())
        assert len(seen) == 5, variable.key


def test_a_point_that_failed_is_a_row_and_not_the_end(tmp_path):
    variable = variables(Scenario())[1]
    tasks = tasks_of([variable], tmp_path)
    assert [task.place.name for task in tasks][:2] == ["bandwidth-125", "bandwidth-250"]
    (swept,) = gather(tasks[:2], ["the network could not be raised", ""])
    assert swept.points[0].problem == "the network could not be raised"
    assert "result.json" in swept.points[1].problem  # its run left nothing
    write([swept], tmp_path)
    assert "could not be raised" in (tmp_path / "variables.json").read_text()
    assert swept.sentences()[0] == "total time was measured at fewer than two values of bandwidth"
