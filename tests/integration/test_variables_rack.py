"""Points of the variables on one standing network: each with its own links, guests and disks."""

import pytest

from bench.host.ledger import RunDirectory
from bench.host.sandbox import call_in_sandbox
from bench.plan import make_plan
from bench.result import RunResult
from bench.scenario import load_scenario
from bench.variables.points import QUICK
from bench.variables.rack import Rack

pytestmark = [pytest.mark.root, pytest.mark.testbed]
SETTINGS = (*QUICK, "guest.memory=16MiB", 'guest.disks=[{kind="shared", size="16MiB"}]', "links.default.delay=0ms")


def test_points_on_one_rack_differ_in_their_variable_only(project, tmp_path):
    path = project / "scenarios" / "variables.toml"
    planned = []
    slow, fast = ["links.default.bandwidth=200Mbit"], ["links.default.bandwidth=400Mbit", "hosts.default.cpu=0.5"]
    for number, more in enumerate((slow, fast)):
        scenario = load_scenario(path, [*SETTINGS, *more])
        place = tmp_path / str(number)
        place.mkdir()
        planned.append((scenario, make_plan(scenario, str(path)), place))

    def inside():
        with Rack(run_directory.path, run_directory.record_cgroup) as rack:
            for point in planned:
                rack.run(*point)

    with RunDirectory.create() as run_directory:
        call_in_sandbox(inside)
    results = [RunResult.read(place) for _scenario, _plan, place in planned]
    assert [result.outcome for result in results] == ["completed", "completed"]
    assert [(result.source, result.destination) for result in results] == [("h1", "h2")] * 2
    asked = [{link.asked["forward"]["rate_bps"] for link in result.links} for result in results]
    assert asked == [{200_000_000}, {400_000_000}]
    limits = [result.environment.get("surroundings", {}).get("limits", {}) for result in results]
    assert [set(named) for named in limits] == [set(), {"h1", "h2"}]
    assert results[0].memory.identical
    assert results[1].memory.identical
