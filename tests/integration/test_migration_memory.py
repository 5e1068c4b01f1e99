"""Every mode and every lever, with real guests under every workload: the memory that arrives is the memory that left.

The table is generated from the registries of modes, levers, compressions, carriers and workload patterns, as far as a
scenario allows their combination. A lever needs a line in :data:`LEVERS`; a setting of a scenario's migration that is
none, one in :data:`NO_LEVERS`. What is in neither fails.
"""

import contextlib
import dataclasses

import numpy as np
import pytest
from guest_mover import MIB, workload
from guest_standing import Standing, standing

from bench.clock import NS_PER_MS
from bench.guest.workload import PATTERNS
from bench.memory.trace import dump_trace
from bench.migration.carriers import CARRIERS
from bench.migration.compression import LEVELS
from bench.migration.levers import Levers
from bench.migration.modes import MODES
from bench.scenario import MigrationSpec
from bench.timeline import Timeline

pytestmark = pytest.mark.root

PAGES = 16 * MIB // 4096
ENGINE_NAMES = {
    "delta_cache": "delta_cache_bytes",
    "dirty_limit": "dirty_limit_bytes_per_s",
    "downtime_limit": "downtime_limit_ns",
}
"""What the engines call a setting that a scenario calls otherwise."""

LEVERS = {
    "zero_pages": {"no zero pages": {"zero_pages": False}},
    "compression": {name: {"compression": name} for name in LEVELS},
    "compression_level": {"zstd 9": {"compression": "zstd", "compression_level": 9}},
    "compression_threads": {"zstd threads": {"compression": "zstd", "compression_threads": 1}},
    "delta_cache": {
        "delta": {"delta_cache": "64MiB"},
        "small delta": {"delta_cache": "1MiB"},
        "zstd and delta": {"compression": "zstd", "delta_cache": "64MiB"},
    },
    "auto_converge": {"auto-converge": {"auto_converge": True}},
    "on_no_convergence": {"throttle": {"on_no_convergence": "throttle"}},
    "dirty_limit": {"dirty limit": {"dirty_limit": "8MiB/s"}},
    "streams": {"4 streams": {"streams": 4}, "streams and zstd": {"streams": 4, "compression": "zstd"}},
    "security": {name: {"security": name} for name in CARRIERS if name != "none"},
}
"""Setting -> name of a case -> what is set; each case once in every mode that it works in."""
NO_LEVERS = {
    *("mode", "downtime_limit", "precopy_rounds", "max_rounds", "max_time", "max_bandwidth", "verify"),
    *("port", "source", "destination", "plan", "evacuate", "limit_per_host"),
    "announce_delay",  # the runner's: engines get it as offsets of the announcement
    "hold",  # stretches the pause
}
WAYS = {  # besides each mode as it is
    "precopy-min": {"mode": "precopy", "downtime_limit": "min"},
    "precopy-then-postcopy": {"downtime_limit": "0ms", "max_rounds": 2, "on_no_convergence": "post-copy"},
    "hybrid-2": {"mode": "hybrid", "precopy_rounds": 2},
}
PACE = {"max_bandwidth_bps": 300_000_000, "downtime_limit_ns": 5 * NS_PER_MS, "max_rounds": 5}


def orders_of(settings):
    """What the engines are told for these settings of a scenario. :raises ValueError: when a scenario refuses them."""
    spec = MigrationSpec.model_validate(settings)
    return {ENGINE_NAMES.get(name, name): getattr(spec, name) for name in settings}


def possible(settings) -> bool:
    try:
        orders_of(settings)
    except ValueError:
        return False
    return True


def cases():
    """(name, settings): every mode and way alone, and every mode with every lever."""
    found = {mode: {"mode": mode} for mode in MODES} | WAYS
    for mode in MODES:
        for levers in LEVERS.values():
            for name, lever in levers.items():
                found[f"{mode}, {name}"] = {"mode": mode, **lever}
    return {name: settings for name, settings in found.items() if possible(settings)}


def table():
    for pattern in PATTERNS:
        for vcpus in (1, 2):
            group = pytest.mark.xdist_group(f"memory {pattern} {vcpus}")
            for name, settings in cases().items():
                if name in MODES or (vcpus == 2 and pattern != "trace"):
                    yield pytest.param(pattern, vcpus, settings, marks=group, id=f"{pattern}-{vcpus}-{name}")


def test_every_setting_is_a_lever_with_a_case_or_known_to_be_none():
    settings = set(MigrationSpec.model_fields)
    assert settings - NO_LEVERS == set(LEVERS) & settings
    engine = {field.name for field in dataclasses.fields(Levers)} - {"cgroup", "throttle_late", "announce_delay_ns"}
    assert engine <= {ENGINE_NAMES.get(name, name) for name in LEVERS}
    for levers in LEVERS.values():
        for name, lever in levers.items():
            assert any(possible({"mode": mode, **lever}) for mode in MODES), name


class Stand:
    """The guest of the cases that come one after the other; another workload needs another guest."""

    def __init__(self, directory):
        self.kind = None
        self.trace = directory / "trace.jsonl"
        looks = [(20 * number * NS_PER_MS, np.arange(number, PAGES // 2, 7)) for number in range(1, 8)]
        self.trace.write_bytes(dump_trace(PAGES, looks))
        self.guest: Standing
        self.stack = contextlib.ExitStack()

    def guest_with(self, pattern, vcpus) -> Standing:
        if self.kind != (pattern, vcpus):
            self.stack.close()
            told = workload(pattern) | ({"trace": str(self.trace)} if pattern == "trace" else {})
            self.guest = self.stack.enter_context(standing(workload=told, vcpus=vcpus))
            self.kind = pattern, vcpus
        return self.guest.ensure()


@pytest.fixture(scope="module")
def stand(tmp_path_factory):
    made = Stand(tmp_path_factory.mktemp("stand"))
    with made.stack:
        yield made


@pytest.mark.parametrize(("pattern", "vcpus", "settings"), list(table()))
def test_memory_is_identical(stand, pattern, vcpus, settings):
    guest = stand.guest_with(pattern, vcpus)
    guest.alive = False  # until this case has proved that it is
    moving = guest.prepare(**{**PACE, **orders_of(settings)})
    guest.client.say()
    moving.start()
    outcome = moving.wait()
    assert (outcome["outcome"], outcome["reason"], outcome["identical"]) == ("completed", "", True)
    assert guest.settle() == guest.plan.destination_host
    guest.require_intact()
    require_rounds(guest, settings)
    require_cost(guest, outcome["cost"], pattern, settings)
    guest.alive = True


def require_rounds(guest, settings):
    rounds = guest.rounds()
    mode = settings.get("mode", "precopy")
    if mode == "postcopy":
        assert rounds == []
        return
    assert rounds[0]["pages"] == PAGES
    assert (rounds[0]["zero_pages"] > 0) is settings.get("zero_pages", True)
    if mode == "stop-and-copy":
        assert [item["paused"] for item in rounds] == [True]


def require_cost(guest, cost, pattern, settings):
    """Each lever says what it did; post-copy, that every page crossed once."""
    assert ("zero_pages" in cost) is settings.get("zero_pages", True)
    if "compression" in settings:
        assert cost["compression"]["saved_bytes"] > 0
        assert cost["compression"]["cpu_ns"] > 0
        assert cost["unpacking"]["cpu_ns"] > 0
    # Whoever writes all in turn comes back to a page only after a small cache has given it up.
    kept = pattern == "hotset" or (pattern == "sequential" and settings.get("delta_cache") == "64MiB")
    if "delta_cache" in settings and settings["mode"] == "precopy" and kept:
        assert cost["delta"]["saved_bytes"] > 0
        assert cost["delta"]["cpu_ns"] > 0
        assert cost["unpacking"]["cpu_ns"] > 0
    if settings.get("mode") in ("postcopy", "hybrid") or "postcopy" in cost:
        events = Timeline.read(guest.lab.directory / f"engine.source-{guest.count}.jsonl")
        assert cost["postcopy"]["duplicates"] == 0
        assert cost["postcopy"]["pages"] == events.first("postcopy_listen").data["pages"]
        if settings.get("mode") == "postcopy":
            assert cost["postcopy"]["pages"] == PAGES
