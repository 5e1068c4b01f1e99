"""The orders of each repetition of a run: out and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.moving.schedule import Order


def wave(planned: Sequence[Order], homes: Mapping[str, str], places: Mapping[str, str]) -> tuple[Order, ...]:
    """The orders of the next repetition.

    A guest that is at home goes as planned; one that is elsewhere goes home, when its first planned migration would
    begin.

    :param homes: guest -> where it booted; *places*: where it is; a guest that is lost is in neither case to be moved.
    """
    orders: list[Order] = []
    going_home: set[str] = set()
    for order in planned:
        place, home = places.get(order.guest), homes[order.guest]
        if place is None or order.guest in going_home:
            continue
        if place == home:
            orders.append(order)
        else:
            going_home.add(order.guest)
            orders.append(Order(order.guest, home, order.offset_ns))
    return tuple(orders)
