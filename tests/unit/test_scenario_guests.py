"""Several guests in a scenario: what they inherit, what is counted up, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import ScenarioError
from bench.scenario import parse_scenario, restore_scenario


def guests(default: dict[str, Any], *own: dict[str, Any]) -> list[Any]:
    return list(parse_scenario({"guest": default, "guests": list(own)}, "test").guests)


def test_without_guests_there_is_the_guest() -> None:
    scenario = parse_scenario({"guest": {"name": "vm", "memory": "16MiB"}}, "test")
    assert scenario.guests == (scenario.guest,)
    assert scenario.guest_named(None) is scenario.guest_named("vm")
    with pytest.raises(KeyError):
        scenario.guest_named("other")


def test_a_guest_inherits_key_by_key_and_counts_up_what_must_differ() -> None:
    first, second, third = guests(
        {"memory": "32MiB", "workload": {"rate": "1MiB/s", "seed": 5}, "mac": "52:54:00:00:00:fe"},
        {},
        {"memory": "16MiB", "workload": {"working_set": "1MiB"}, "host": "h2"},
        {"workload": {"seed": 99}, "address": "10.0.1.9"},
    )
    assert [item.name for item in (first, second, third)] == ["g1", "g2", "g3"]
    assert [item.memory >> 20 for item in (first, second, third)] == [32, 16, 32]
    assert [item.workload.rate for item in (first, second, third)] == [1 << 20] * 3
    assert [item.workload.seed for item in (first, second, third)] == [5, 6, 99]
    assert [item.address for item in (first, second, third)] == ["10.0.1.1", "10.0.1.2", "10.0.1.9"]
    assert [item.mac for item in (first, second, third)] == [
        f"52:54:00:00:{tail}" for tail in ("00:fe", "00:ff", "01:00")
    ]
    assert [item.host for item in (first, second, third)] == [None, "h2", None]


def test_what_a_guest_was_given_is_not_given_to_another() -> None:
    made = guests({}, {}, {"name": "g1", "address": "10.0.1.1", "mac": "52:54:00:00:00:01"}, {})
    for key in ("name", "address", "mac"):
        assert len({getattr(guest, key) for guest in made}) == 3


def test_a_long_name_leaves_room_for_its_number() -> None:
    assert [guest.name for guest in guests({"name": "database"}, {}, {})] == ["database", "databas2"]


def test_several_guests_restore_from_json() -> None:
    scenario = parse_scenario({"guests": [{}, {"host": "h2"}], "moves": [{"guest": "g2", "destination": "h1"}]}, "test")
    assert restore_scenario(scenario.model_dump_json(), "stored") == scenario


@pytest.mark.parametrize(
    ("raw", "key", "allowed"),
    [
        ({"guests": [{"name": "a"}, {"name": "a"}]}, "guests", "names that differ"),
        ({"guests": [{}] * 33}, "guests", "at most 32 guests"),
        ({"guests": [{}, {"memry": "1MiB"}]}, "guests.1.memry", "the keys name, memory"),
        ({"guest": {"memory": "3B"}, "guests": [{}, {}]}, "guest.memory", "4 KiB"),
        ({"guest": {"address": "nowhere"}, "guests": [{}, {}]}, "guests", "nowhere"),
        ({"guests": 3}, "guests", "tuple"),
        ({"guests": [3]}, "guests.0", "GuestSpec"),
        ({"moves": [{"guest": "g1"}]}, "moves.0.destination", "needed"),
        ({"moves": [{"destination": "h2", "start": "2h"}]}, "moves.0.start", "'300ms'"),
        ({"moves": [{"destination": "h2", "start": "90min"}]}, "moves.0.start", "'60min'"),
        ({"migration": {"plan": "random"}}, "migration.plan", "'parallel'"),
        ({"migration": {"limit_per_host": -1}}, "migration.limit_per_host", "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(raw: dict[str, Any], key: str, allowed: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(raw, "test")
    assert caught.value.key == key
    assert allowed in str(caught.value)
