"""The outages of the field: each sick scenario is sick for the named reason, and its cure cures that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench_runs import PLAIN_LINKS, Bench, settings, started

from bench.clock import NS_PER_MS
from bench.result import FlowResult, RunResult
from bench.scenario import load_scenario

pytestmark = pytest.mark.root

FIELD = Path(__file__).parents[2] / "scenarios" / "field"
QUICK = (*PLAIN_LINKS, "run.predict=false")

# Scenario -> the stage of the budget that its outage goes to, and how long that takes at least, in ms. What the guest
# answers while it still knows the old gateway is lost, or waits in its kernel for the new one's address: the client
# then waits for a later probe, or for that reply.
SICK = {
    "unannounced": ("relearned", 1000),
    "late-wiring": ("port wired", 2900),
    "announced-too-early": ("relearned", 500),
    "lost-rarps": ("relearned", 2000),
    "stale-gateway": ("client's wait or reply", 800),
    "two-holders": ("relearned", 800),
    "rto-backoff": ("client's wait", 1800),
}

# The cures that do not end it at once, in ms: others take less than half of what the sick one takes at least. What the
# guest sent last goes on being learnt, for up to two rounds of Open vSwitch's revalidator (docs/relearning.md).
CURED_WITHIN = {"lost-rarps": 1250}


def pair(directory: Path, name: str, *more: str) -> tuple[Bench, Bench]:
    """The sick run and the cured one, at the same time."""
    words = settings(*QUICK, *more)
    with (
        started(directory / "sick", *words, scenario=FIELD / f"{name}.toml") as sick,
        started(directory / "cured", *words, scenario=FIELD / f"{name}-cured.toml") as cured,
    ):
        for run in (sick, cured):
            assert run.wait() in (0, 1), run.stdout + run.stderr
    return sick, cured


def only_flow(result: RunResult) -> FlowResult:
    (flow,) = result.flows
    return flow


def stages(flow: FlowResult) -> dict[str, int]:
    return {part.stage: part.ns // NS_PER_MS for part in flow.budget}


def test_every_sick_scenario_has_a_cure_that_differs_in_little() -> None:
    names = {path.stem for path in FIELD.glob("*.toml")}
    assert {f"{name.removesuffix('-cured')}-cured" for name in names} <= names
    assert set(SICK) < names
    for name in names:
        if name.endswith("-cured"):
            cured, sick = (load_scenario(FIELD / f"{part}.toml") for part in (name, name.removesuffix("-cured")))
            same = ("guest", "clients", "run", "migration", "links")
            assert all(getattr(cured, part) == getattr(sick, part) for part in same), name


@pytest.mark.parametrize("name", list(SICK))
def test_it_is_sick_for_the_named_reason_and_cured(name: str, tmp_path: Path) -> None:
    if name == "rto-backoff" and not Path("/proc/sys/net/ipv4/tcp_rto_max_ms").exists():
        pytest.skip("this kernel has no tcp_rto_max_ms (Linux 6.15)")
    sick, cured = pair(tmp_path, name)
    named, least_ms = SICK[name]
    at = named.split(" or ")
    parts = stages(only_flow(sick.result()))
    assert max(parts, key=lambda part: parts[part]) in at, parts
    assert sum(parts[stage] for stage in at) >= least_ms, parts
    healed = stages(only_flow(cured.result()))
    assert sum(healed.get(stage, 0) for stage in at) < CURED_WITHIN.get(name, least_ms // 2), healed


def test_a_firewall_that_forgets_kills_connections(tmp_path: Path) -> None:
    sick, cured = pair(tmp_path, "conntrack-flush")
    dead, alive = only_flow(sick.result()), only_flow(cured.result())
    assert not dead.alive
    assert alive.alive, alive.error
    result = sick.result()
    assert result.outcome == "completed"  # the guest moved all the same
    assert "conntrack_flushed" in (sick.output / "events.jsonl").read_text()


@pytest.mark.alone  # what its neighbour sends is over after 13 s
def test_a_bond_takes_a_rarp_for_a_reflection_and_obeys_a_gratuitous_arp(tmp_path: Path) -> None:
    """The neighbour on the hypervisor that the guest has left goes on sending to the old place, or not."""
    sick, cured = pair(tmp_path, "slb-bond")
    lost = {}
    for name, run in (("sick", sick), ("cured", cured)):
        assert run.result().outcome == "completed"
        said = (run.output / "requests" / "c2" / "neighbour.out").read_text()
        lost[name] = float(re.findall(r"([\d.]+)% packet loss", said)[0])
        assert all(flow.alive for flow in run.result().flows if flow.host == "c1")  # elsewhere all is well
    assert lost["cured"] < 15 < lost["sick"], lost


@pytest.mark.alone  # rounds of the revalidator are told apart
def test_the_fdb_flaps_back_after_a_single_rarp(tmp_path: Path) -> None:
    sick, cured = pair(tmp_path, "fdb-flap", "run.repeat=5")
    flapped = [max(switch.flapped for switch in migration.relearn.switches) for migration in sick.result().migrations]
    worst = max(stages(flow).get("relearned", 0) for item in sick.result().migrations for flow in item.flows)
    assert any(flapped) or worst > 500, (flapped, worst)
    # As long as one or two rounds of Open vSwitch's revalidator, of 500 ms each, however often it is announced.
    healed = max(stages(flow).get("relearned", 0) for item in cured.result().migrations for flow in item.flows)
    assert healed < max(worst / 2, 700), (healed, worst)
