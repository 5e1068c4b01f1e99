"""Both engines with real guests and clients over an emulated network: nothing is lost, exactly one guest runs."""

import json
import signal

import pytest
from guest_mover import MIB, moving, workload

from bench.clock import NS_PER_S

pytestmark = pytest.mark.root


@pytest.fixture
def mover():
    with moving() as made:
        yield made


def test_flows_survive_moves_there_and_back(mover):
    mover.boot(workload=workload("hotset", 4 * MIB))
    flows = mover.lab.flows(12)
    for _ in range(4):
        outcome = mover.move()
        assert (outcome["outcome"], outcome["identical"]) == ("completed", True)
        assert mover.assert_one_runs() == mover.host
    assert mover.first.wait() == 0
    results = json.loads(flows.communicate(timeout=60)[0])
    assert {name: flow["error"] for name, flow in results.items() if flow["error"]} == {}
    assert mover.control.stats()["self_check_errors"] == 0


def test_a_cancelled_move_is_not_noticed(mover):
    mover.boot()
    flows = mover.lab.flows(5, "request")
    answers = []

    def cancel(event):
        if event.name == "round_progress" and not answers:
            answers.append(mover.moving.cancel())

    outcome = mover.move(cancel, max_bandwidth_bps=20_000_000)
    assert (outcome["outcome"], answers) == ("cancelled", [True])
    assert mover.assert_one_runs() == "h1"
    results = json.loads(flows.communicate(timeout=60)[0])
    assert all(not flow["error"] for flow in results.values())
    outcome = mover.move()
    assert (outcome["outcome"], outcome["identical"]) == ("completed", True)


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("moment", ["round_progress", "pause_begin", "device_state_sent", "handover_sent"])
def test_kill_9_of_an_engine_leaves_exactly_one_guest(mover, victim, moment):
    mover.boot()
    done = []

    def kill(event):
        if event.name == moment and not done:
            done.append(mover.moving._sides[victim].process.send_signal(signal.SIGKILL))

    outcome = mover.move(kill, max_bandwidth_bps=100_000_000)
    owner = mover.assert_one_runs()
    assert done
    assert outcome["outcome"] == ("completed" if owner == "h2" else "failed")
    # and that one still answers
    results = json.loads(mover.lab.flows(1, "request").communicate(timeout=60)[0])
    assert all(flow["count"] > 0 and not flow["error"] for flow in results.values())


@pytest.mark.parametrize("moment", ["connected", "round_progress", "pause_begin", "device_state_sent", "handover_sent"])
def test_a_link_that_is_cut_leaves_exactly_one_guest(mover, moment):
    mover.boot()
    done = []

    def cut(event):
        if event.source == "engine.source" and event.name == moment and not done:
            done.append(mover.link("h2", "down"))

    outcome = mover.move(cut, max_bandwidth_bps=100_000_000, link_timeout_ns=2 * NS_PER_S)
    mover.link("h2", "up")
    owner = mover.assert_one_runs()
    assert done
    assert outcome["outcome"] == ("completed" if owner == "h2" else "failed")
    if outcome["outcome"] == "failed":
        again = mover.move()
        assert (again["outcome"], again["reason"], again["identical"]) == ("completed", "", True)
