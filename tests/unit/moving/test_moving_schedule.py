"""Who may start when: limits, offsets, room; what is dropped; and that every schedule comes to an end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bench.moving.schedule import Limits, Order, Schedule, most_at_once, rehearse

MIB = 1 << 20


def schedule(*orders: Order, limits: Limits | None = None, **places: str) -> Schedule:
    return Schedule(orders, limits or Limits(), places, dict.fromkeys(places, 16 * MIB))


def started(made: Schedule, elapsed_ns: int = 0) -> list[str]:
    return [order.guest for order in made.decide(elapsed_ns).start]


def dropped(made: Schedule, elapsed_ns: int = 0) -> list[str]:
    return [reason for _order, reason in made.decide(elapsed_ns).drop]


def test_without_limits_all_start_at_once() -> None:
    made = schedule(Order("a", "h2"), Order("b", "h1"), a="h1", b="h2")
    assert started(made) == ["a", "b"]
    assert not made.done
    made.end("a", moved=True)
    made.end("b", moved=False)
    assert made.done
    assert made.places == {"a": "h2", "b": "h2"}


def test_one_after_the_other_in_order() -> None:
    made = schedule(Order("a", "h2", offset_ns=5), Order("b", "h2"), limits=Limits(at_once=1), a="h1", b="h1")
    assert started(made) == []  # b does not overtake
    assert made.next_offset_ns(0) == 5
    assert started(made, 5) == ["a"]
    assert started(made, 6) == []
    made.end("a", moved=False)
    assert started(made, 7) == ["b"]


def test_a_limit_per_host_counts_what_leaves_and_what_comes() -> None:
    orders = [Order("a", "h2"), Order("b", "h3"), Order("c", "h2"), Order("d", "h4")]
    made = schedule(*orders, limits=Limits(per_host=1), a="h1", b="h1", c="h3", d="h5")
    assert started(made) == ["a", "d"]  # b leaves h1 too, c enters h2 too
    made.end("a", moved=True)
    assert started(made) == ["b"]  # c leaves h3, which b enters
    made.end("b", moved=True)
    assert started(made) == ["c"]


def test_an_order_waits_for_the_earlier_one_of_its_guest_only() -> None:
    made = schedule(Order("a", "h2"), Order("a", "h3"), Order("b", "h2"), a="h1", b="h1")
    assert started(made) == ["a", "b"]
    made.end("a", moved=True)
    (order,) = made.decide(0).start
    assert (order.destination, made.running["a"][1]) == ("h3", "h2")


def test_a_migration_waits_for_room() -> None:
    room = Limits(room={"h2": 16 * MIB})
    made = schedule(Order("a", "h2"), Order("b", "h3"), limits=room, a="h1", b="h2")
    assert started(made) == ["b"]
    assert started(made) == []
    made.end("b", moved=True)
    assert started(made) == ["a"]


def test_guests_that_are_coming_take_room_too() -> None:
    made = schedule(Order("a", "h2"), Order("b", "h2"), limits=Limits(room={"h2": 16 * MIB}), a="h1", b="h1")
    assert started(made) == ["a"]
    made.end("a", moved=False)
    assert started(made) == ["b"]


def test_what_can_never_start_is_dropped_for_lack_of_room_and_the_rest_goes_on() -> None:
    room = Limits(at_once=1, room={"h2": 0})
    made = schedule(Order("a", "h2"), Order("b", "h3"), limits=room, a="h1", b="h1")
    assert dropped(made) == ["no room on h2 for guest a"]
    assert started(made) == ["b"]


def test_an_order_to_where_the_guest_is_or_of_a_lost_guest_is_dropped() -> None:
    made = schedule(Order("a", "h1"), Order("b", "h2"), a="h1", b="h1")
    made.lose("b")
    assert dropped(made) == ["guest a is on h1 already", "guest b is lost"]
    assert made.done


def test_a_guest_that_is_lost_while_it_moves_is_nowhere() -> None:
    made = schedule(Order("a", "h2"), Order("a", "h1"), a="h1")
    made.decide(0)
    made.lose("a")
    made.end("a", moved=True)
    assert made.places == {}
    assert dropped(made) == ["guest a is lost"]


def test_taking_back_leaves_what_runs() -> None:
    made = schedule(Order("a", "h2"), Order("b", "h2"), limits=Limits(at_once=1), a="h1", b="h1")
    made.decide(0)
    assert [order.guest for order in made.cancel_waiting()] == ["b"]
    assert list(made.running) == ["a"]


def test_equal_orders_are_two_orders() -> None:
    made = schedule(Order("a", "h2"), Order("a", "h2"), a="h1")
    assert started(made) == ["a"]
    made.end("a", moved=False)
    assert started(made) == ["a"]  # a second attempt


HOSTS = ["h1", "h2", "h3", "h4"]
GUESTS = ["a", "b", "c", "d", "e"]


@given(
    orders=st.lists(st.builds(Order, st.sampled_from(GUESTS), st.sampled_from(HOSTS), st.integers(0, 3)), max_size=12),
    places=st.fixed_dictionaries({guest: st.sampled_from(HOSTS) for guest in GUESTS}),
    limits=st.builds(
        Limits, st.integers(0, 3), st.integers(0, 2), st.dictionaries(st.sampled_from(HOSTS), st.integers(0, 4))
    ),
    ends=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40),
)
def test_limits_hold_whatever_ends_when_and_every_order_is_started_or_dropped_once(
    orders: list[Order], places: dict[str, str], limits: Limits, ends: list[tuple[int, bool]]
) -> None:
    made = Schedule(orders, limits, places, dict.fromkeys(GUESTS, 1))
    bound = most_at_once(orders, limits, places) if orders else 0
    seen = 0
    for turn in range(200):
        decision = made.decide(turn)
        seen += len(decision.start) + len(decision.drop)
        busy = Counter(host for order, source in made.running.values() for host in {source, order.destination})
        assert not limits.per_host or all(count <= limits.per_host for count in busy.values())
        assert not limits.at_once or len(made.running) <= limits.at_once
        for order in decision.start:
            assert order.offset_ns <= turn
            assert made.used_bytes(order.destination) <= limits.room.get(order.destination, 99)
        assert len(made.running) <= len({order.guest for order in orders})
        if made.running and all(moved for _which, moved in ends):
            assert len(made.running) <= bound
        if made.running:
            which, moved = ends[turn % len(ends)] if ends else (0, True)
            made.end(list(made.running)[which % len(made.running)], moved=moved)
        if made.done:
            break
    assert made.done
    assert seen == len(orders)


def test_a_rehearsal_tells_what_has_no_room() -> None:
    room = Limits(room={"h1": 16 * MIB, "h2": 16 * MIB})
    full = schedule(Order("a", "h2"), Order("b", "h1"), limits=room, a="h1", b="h2")
    assert [reason for _order, reason in rehearse(full)] == [
        "no room on h2 for guest a",
        "no room on h1 for guest b",
    ]
    around = schedule(Order("a", "h2"), Order("b", "h3", 7), limits=room, a="h1", b="h2")
    assert rehearse(around) == ()


def test_how_many_can_run_at_a_time() -> None:
    orders = [Order(name, "h2") for name in GUESTS]
    places = dict.fromkeys(GUESTS, "h1")
    assert most_at_once(orders, Limits(), places) == 5
    assert most_at_once(orders, Limits(per_host=2), places) == 2
    assert most_at_once(orders, Limits(at_once=1), places) == 1
    assert most_at_once(orders[:1] * 3, Limits(per_host=2), places) == 1
