"""Where the guests of a host that is emptied go; and the orders of each repetition."""

from __future__ import annotations

import pytest

from bench.moving.placement import NoRoomError, Placed, evacuation
from bench.moving.schedule import Order
from bench.moving.waves import wave

MIB = 1 << 20
HOSTS = ["h1", "h2", "h3"]


def placed(**guests: tuple[int, str]) -> list[Placed]:
    return [Placed(name, size * MIB, host) for name, (size, host) in guests.items()]


def places(orders: tuple[Order, ...]) -> dict[str, str]:
    return {order.guest: order.destination for order in orders}


def test_every_guest_of_the_host_goes_and_no_other_one() -> None:
    orders = evacuation("h1", placed(a=(16, "h1"), b=(16, "h2"), c=(16, "h1")), HOSTS, {})
    assert places(orders) == {"a": "h3", "c": "h2"}
    assert [order.guest for order in orders] == ["a", "c"]


def test_the_largest_guest_has_the_first_choice_and_the_most_free_memory_wins() -> None:
    room = {"h2": 64 * MIB, "h3": 100 * MIB}
    orders = evacuation("h1", placed(a=(32, "h1"), b=(64, "h1"), c=(16, "h1")), HOSTS, room)
    assert places(orders) == {"b": "h3", "a": "h2", "c": "h3"}


def test_a_host_without_a_limit_comes_before_one_with() -> None:
    orders = evacuation("h1", placed(a=(16, "h1"), b=(64, "h3")), HOSTS, {"h2": 1024 * MIB})
    assert places(orders) == {"a": "h3"}


def test_among_equals_the_one_with_the_fewest_guests_then_the_first() -> None:
    guests = placed(a=(16, "h1"), b=(16, "h2"), c=(8, "h3"), d=(8, "h3"))
    assert places(evacuation("h1", guests, HOSTS, {})) == {"a": "h2"}
    assert places(evacuation("h1", placed(a=(16, "h1")), HOSTS, {})) == {"a": "h2"}


def test_a_guest_that_fits_nowhere_is_named_with_what_is_free() -> None:
    room = {"h2": 16 * MIB, "h3": 8 * MIB}
    with pytest.raises(NoRoomError, match="guest a of 32 MiB fits nowhere: h2 has 16 MiB free, h3 has 8 MiB free"):
        evacuation("h1", placed(a=(32, "h1")), HOSTS, room)


PLANNED = (Order("a", "h2", 5), Order("b", "h1", 7))
HOMES = {"a": "h1", "b": "h2"}


def test_out_and_back() -> None:
    assert wave(PLANNED, HOMES, HOMES) == PLANNED
    assert wave(PLANNED, HOMES, {"a": "h2", "b": "h1"}) == (Order("a", "h1", 5), Order("b", "h2", 7))


def test_a_guest_that_did_not_get_away_tries_again_while_the_others_come_back() -> None:
    assert wave(PLANNED, HOMES, {"a": "h1", "b": "h1"}) == (Order("a", "h2", 5), Order("b", "h2", 7))


def test_a_guest_that_is_lost_is_left_out_and_a_journey_goes_home_at_once() -> None:
    journey = (Order("a", "h2"), Order("a", "h3"), Order("b", "h1"))
    assert wave(journey, HOMES, {"a": "h1"}) == journey[:2]
    assert wave(journey, HOMES, {"a": "h3"}) == (Order("a", "h1"),)
