"""Which flows a map by migrations is made of."""

from __future__ import annotations

import pytest

from bench.clock import NS_PER_MS
from bench.scenario import SurvivalSpec, parse_scenario
from bench.survival import moves
from bench.survival.cells import Kernel, Variant

KERNEL = Kernel(15, 200 * NS_PER_MS, True)


def variant(pattern: str, end: str = "client", **changes: object) -> Variant:
    return Variant(**{"pattern": pattern, "sends_first": end, "kernel": KERNEL, "congestion": "cubic", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "end", "kind", "direction"),
    [
        ("request", "client", "tcp-request", "to-guest"),
        ("request", "guest", "tcp-request", "from-guest"),
        ("stream", "client", "tcp-upload", "to-guest"),
        ("stream", "guest", "tcp-download", "to-guest"),
        ("connect", "client", "tcp-connect", "to-guest"),
    ],
)
def test_a_connection_is_the_flow_that_does_what_it_does(pattern: str, end: str, kind: str, direction: str) -> None:
    flow = moves.flow_of(variant(pattern, end, user_timeout_ns=10**9), "f", 50 * NS_PER_MS, 200)
    assert flow is not None
    assert (flow.kind, flow.direction, flow.think, flow.size) == (kind, direction, 50 * NS_PER_MS, 200)
    assert flow.rate == (32_000 if pattern == "stream" else 0)
    assert flow.tcp.user_timeout == 10**9


def test_what_only_the_laboratory_can_make_is_no_flow() -> None:
    assert moves.flow_of(variant("idle"), "f", 50 * NS_PER_MS, 200) is None


def test_requests_are_the_base_and_kernel_settings_are_left_to_the_laboratory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "_supported", lambda _flow: True)
    scenario = parse_scenario({"survival": {"retries2": [15, 5], "probes": [True, False]}}, "x.toml")
    spec = moves.request_first(scenario.survival)
    assert spec.patterns[0] == "request"
    assert set(spec.patterns) == set(SurvivalSpec().patterns)
    found = moves.chosen(scenario.model_copy(update={"survival": spec}))
    assert {one.kernel.retries2 for one, _flow in found.values()} == {15}
    assert {one.kernel.probes for one, _flow in found.values()} == {True}
    assert len({flow.name for _one, flow in found.values()}) == len(found) > 5
    assert any(flow.tcp.rto_min == 20 * NS_PER_MS for _one, flow in found.values())
