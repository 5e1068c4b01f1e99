"""The surroundings' part of a plan: whether hosts and links that the scenario names are there, and fit. Pure."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence

from bench.errors import MachineError, ScenarioError
from bench.host.limits import cores_here
from bench.scenario import Scenario

RESERVE_BYTES = 192 << 20  # for the engines and the interpreters of guests beside guest memory


def _check_cores(cores: Sequence[int], key: str, allowed: Sequence[int], where: str, whose: str = "") -> None:
    """:raises ScenarioError: for a processor that is not there."""
    missing = [core for core in cores if core not in allowed]
    if missing:
        shown = ", ".join(map(str, allowed))
        raise ScenarioError(where, key, missing[0], f"processors {whose or 'of this machine'}: {shown}")


def check_surroundings(
    scenario: Scenario, hypervisors: Sequence[str], hosts: Collection[str], links: Sequence[str], where: str
) -> None:
    """:raises ScenarioError: an unknown host or link, or a memory limit that no guest fits into.

    :raises MachineError: a package is missing.
    """
    largest = max(guest.memory for guest in scenario.guests)
    for name, spec in scenario.hosts.items():
        if name != "default" and name not in hypervisors:
            raise ScenarioError(where, f"hosts.{name}", name, f"default, or a hypervisor: {', '.join(hypervisors)}")
        if spec.memory and spec.memory < largest + RESERVE_BYTES:
            needed = largest + RESERVE_BYTES >> 20
            raise ScenarioError(where, f"hosts.{name}.memory", f"{spec.memory >> 20}MiB", f"at least '{needed}MiB'")
        _check_cores(spec.cores, f"hosts.{name}.cores", cores_here(), where)
        if (spec.load.cpu or spec.load.memory or spec.load.io) and shutil.which("stress-ng") is None:
            raise MachineError(f"hosts.{name}.load needs stress-ng, which is not installed", "`make setup` installs it")
    for guest in scenario.guests:
        key = "guest.vcpu_cores" if len(scenario.guests) == 1 else f"guests.{guest.name}.vcpu_cores"
        for name in hypervisors:
            cores = scenario.host(name).cores
            _check_cores(guest.vcpu_cores, key, cores or cores_here(), where, f"of {name}" if cores else "")
    for number, flow in enumerate(scenario.cross_traffic):
        for key, host in (("source", flow.source), ("destination", flow.destination)):
            if host not in hosts:
                raise ScenarioError(where, f"cross_traffic.{number}.{key}", host, f"one of {', '.join(sorted(hosts))}")
    for number, change in enumerate(scenario.script):
        first, _, second = change.link.partition("-")
        if change.link not in links and f"{second}-{first}" not in links:
            shown = ", ".join(list(links)[:20])
            raise ScenarioError(where, f"script.{number}.link", change.link, f"links of the topology: {shown}")
        delayed = change.delay or change.jitter or change.loss
        built = scenario.link(first, second)
        if delayed and not (built.delay or built.jitter or built.loss):
            allowed = "a link that was built with a delay: give it one, such as '10us', in [links]"
            raise ScenarioError(where, f"script.{number}.delay", change.link, allowed)
