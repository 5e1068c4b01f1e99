"""The guests' part of a plan: where each one boots, which migrations there will be, and whether all of it fits.

Pure but for looking at images and at the machine's memory.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.errors import GuestError, MachineError, ScenarioError
from bench.memory.trace import load_trace
from bench.moving.placement import NoRoomError, Placed, evacuation
from bench.moving.schedule import Limits, Order, Schedule, most_at_once, rehearse
from bench.plan_surroundings import RESERVE_BYTES
from bench.scenario import GuestSpec, Scenario
from bench.scenario.values import PAGE_BYTES

MEMORY_RESERVE_BYTES = 512 << 20
MAX_PORT = 65535


def key_of(scenario: Scenario, guest: GuestSpec, key: str) -> str:
    """How a scenario names a key of one of its guests: ``guest.memory``, ``guests.1.memory``."""
    if scenario.guests == (scenario.guest,):
        return f"guest.{key}"
    return f"guests.{scenario.guests.index(guest)}.{key}"


def plan_homes(scenario: Scenario, hypervisors: Sequence[str], where: str) -> dict[str, str]:
    """Guest -> the hypervisor that it boots on. :raises ScenarioError: a place that is no hypervisor."""
    migration = scenario.migration
    shown = ", ".join(hypervisors)
    for key, name in (
        ("source", migration.source),
        ("destination", migration.destination),
        ("evacuate", migration.evacuate),
    ):
        if name is not None and name not in hypervisors:
            raise ScenarioError(where, f"migration.{key}", name, f"one of the hypervisors {shown}")
    default = migration.source or next(name for name in hypervisors if name != migration.destination)
    homes = {}
    for guest in scenario.guests:
        if guest.host is not None and guest.host not in hypervisors:
            raise ScenarioError(where, key_of(scenario, guest, "host"), guest.host, f"one of the hypervisors {shown}")
        homes[guest.name] = guest.host or default
    return homes


def plan_orders(
    scenario: Scenario, hypervisors: Sequence[str], homes: Mapping[str, str], limits: Limits, where: str
) -> tuple[Order, ...]:
    """The migrations of a run (of its first repetition). :raises ScenarioError: they cannot happen."""
    migration = scenario.migration
    if scenario.moves:
        for key in ("evacuate", "destination"):
            if getattr(migration, key) is not None:
                raise ScenarioError(where, f"migration.{key}", getattr(migration, key), "nothing beside [[moves]]")
        orders = _told(scenario, hypervisors, homes, where)
        key = "moves"
    elif migration.evacuate is not None:
        orders = _evacuated(scenario, hypervisors, homes, limits, where)
        key = "migration.evacuate"
    else:
        orders = _others(scenario, hypervisors, homes, where)
        key = "migration.destination"
    memory = {guest.name: guest.memory for guest in scenario.guests}
    schedule = Schedule(orders, limits, homes, memory)
    for guest in scenario.guests:
        host = homes[guest.name]
        if schedule.used_bytes(host) > limits.room.get(host, schedule.used_bytes(host)):
            raise _no_room(scenario, host, schedule.used_bytes(host), where)
    for order, reason in rehearse(schedule):
        raise ScenarioError(where, key, f"{order.guest} to {order.destination}", f"what has room ({reason})")
    return orders


def _room(scenario: Scenario, host: str) -> tuple[int | None, int | None]:
    """What a hypervisor has for its guests by ``network.guest_memory``, and by the memory that its control group holds
    it to; None for what does not limit it.
    """
    memory, held = scenario.network.guest_memory, scenario.host(host).memory
    largest = max(guest.memory for guest in scenario.guests)
    # one that not even a single guest fits into is refused with the surroundings, by its own key
    within = held - RESERVE_BYTES if held >= largest + RESERVE_BYTES else None
    return memory.get(host, memory.get("default")), within


def _no_room(scenario: Scenario, host: str, used: int, where: str) -> ScenarioError:
    """The guests that boot on *host* do not fit there."""
    given, _within = _room(scenario, host)
    guests = f"of the guests that boot on {host}"
    if given is not None and given < used:
        key = f"network.guest_memory.{host if host in scenario.network.guest_memory else 'default'}"
        return ScenarioError(where, key, f"{given >> 20} MiB", f"at least the {used >> 20} MiB {guests}")
    key = f"hosts.{host if host in scenario.hosts else 'default'}.memory"
    reserve = RESERVE_BYTES >> 20
    allowed = f"at least '{(used >> 20) + reserve}MiB': {used >> 20} {guests}, {reserve} for what runs them"
    return ScenarioError(where, key, f"{scenario.host(host).memory >> 20}MiB", allowed)


def _told(scenario: Scenario, hypervisors: Sequence[str], homes: Mapping[str, str], where: str) -> tuple[Order, ...]:
    """As ``[[moves]]`` say."""
    at = dict(homes)
    orders = []
    names = ", ".join(at)
    for index, move in enumerate(scenario.moves):
        guest = move.guest or (scenario.guests[0].name if len(at) == 1 else None)
        if guest not in at:
            raise ScenarioError(where, f"moves.{index}.guest", move.guest, f"one of the guests {names}")
        if move.destination not in hypervisors or move.destination == at[guest]:
            others = ", ".join(name for name in hypervisors if name != at[guest])
            raise ScenarioError(
                where,
                f"moves.{index}.destination",
                move.destination,
                f"another hypervisor than {at[guest]}, where guest {guest} is then: {others}",
            )
        at[guest] = move.destination
        orders.append(Order(guest, move.destination, move.start))
    return tuple(orders)


def _evacuated(
    scenario: Scenario, hypervisors: Sequence[str], homes: Mapping[str, str], limits: Limits, where: str
) -> tuple[Order, ...]:
    """All guests of one hypervisor."""
    host = scenario.migration.evacuate
    assert host is not None
    if scenario.migration.destination is not None:
        raise ScenarioError(
            where, "migration.destination", scenario.migration.destination, "nothing beside migration.evacuate"
        )
    if host not in homes.values():
        busy = ", ".join(name for name in hypervisors if name in homes.values())
        raise ScenarioError(where, "migration.evacuate", host, f"a hypervisor with guests: {busy}")
    placed = [Placed(guest.name, guest.memory, homes[guest.name]) for guest in scenario.guests]
    try:
        return evacuation(host, placed, hypervisors, limits.room)
    except NoRoomError as error:
        raise ScenarioError(
            where, "migration.evacuate", host, f"a hypervisor whose guests have room ({error})"
        ) from None


def _others(scenario: Scenario, hypervisors: Sequence[str], homes: Mapping[str, str], where: str) -> tuple[Order, ...]:
    """Every guest once: to the destination that is named, or to the first hypervisor that it is not on."""
    named = scenario.migration.destination
    orders = []
    for guest in scenario.guests:
        destination = named or next(name for name in hypervisors if name != homes[guest.name])
        if destination != homes[guest.name]:
            orders.append(Order(guest.name, destination))
    if not orders:
        raise ScenarioError(where, "migration.destination", named, "another hypervisor than the source")
    return tuple(orders)


def plan_limits(scenario: Scenario, hypervisors: Sequence[str], where: str) -> Limits:
    """What may go on at a time. :raises ScenarioError: memory of what is no hypervisor."""
    memory = scenario.network.guest_memory
    for name in memory:
        if name != "default" and name not in hypervisors:
            raise ScenarioError(where, f"network.guest_memory.{name}", name, f"default, {', '.join(hypervisors)}")
    room = {name: [size for size in _room(scenario, name) if size is not None] for name in hypervisors}
    return Limits(
        at_once=1 if scenario.migration.plan == "sequential" else 0,
        per_host=scenario.migration.limit_per_host,
        room={name: min(sizes) for name, sizes in room.items() if sizes},
    )


def check_addresses(scenario: Scenario, subnet: ipaddress.IPv4Network, hosts: int, where: str) -> None:
    """:raises ScenarioError: an address that is none, not of *subnet*, or not one guest's alone; MAC addresses too."""
    taken: dict[str, str] = {}
    edge = (subnet.network_address, subnet.broadcast_address)
    for guest in scenario.guests:
        key = key_of(scenario, guest, "address")
        try:
            address = ipaddress.IPv4Address(guest.address)
        except ValueError:
            raise ScenarioError(where, key, guest.address, "an IPv4 address") from None
        if address not in subnet or address in edge or subnet.num_addresses < hosts + len(scenario.guests) + 2:
            raise ScenarioError(where, key, guest.address, f"a host address of {subnet}, with room for {hosts} hosts")
        for name, value in (("address", guest.address), ("mac", guest.mac)):
            if value in taken:
                raise ScenarioError(
                    where, key_of(scenario, guest, name), value, f"one of its own: guest {taken[value]} has this one"
                )
            taken[value] = guest.name


def check_port(scenario: Scenario, where: str) -> None:
    """:raises ScenarioError: the engines of the last guest would have none."""
    most = MAX_PORT - len(scenario.guests) + 1
    if scenario.migration.port > most:
        raise ScenarioError(
            where, "migration.port", scenario.migration.port, f"up to {most}: each guest has a port of its own"
        )


def check_memory(
    scenario: Scenario, orders: Sequence[Order], limits: Limits, homes: Mapping[str, str], available: int
) -> None:
    """Room for all guests, for the skeletons of as many as can move at a time, and for engines and switches.

    :param available: bytes of the machine's memory; 0: not known.
    :raises MachineError: too little.
    """
    memory = {guest.name: guest.memory for guest in scenario.guests}
    moving = sorted({order.guest for order in orders}, key=lambda name: -memory[name])
    skeletons = sum(memory[name] for name in moving[: most_at_once(orders, limits, homes)])
    needed = sum(memory.values()) + skeletons + MEMORY_RESERVE_BYTES
    if not available or needed <= available:
        return
    if len(memory) == 1:
        what = f"guest.memory: two copies of {scenario.guests[0].memory >> 20} MiB"
    else:
        what = f"{len(memory)} guests of {sum(memory.values()) >> 20} MiB, up to {skeletons >> 20} MiB of them twice"
    copies = sum(memory.values()) + skeletons
    fitting = max(4, max(memory.values()) * max(0, available - MEMORY_RESERVE_BYTES) // copies >> 20)
    raise MachineError(
        f"{what}{', ' if len(memory) > 1 else ' '}and {MEMORY_RESERVE_BYTES >> 20} MiB of reserve need {needed >> 20} "
        f"MiB, and {available >> 20} MiB are available",
        f"use --set guest.memory={fitting}MiB or less",
    )


def check_traces(scenario: Scenario, where: str) -> None:
    """:raises ScenarioError: a trace that cannot be read, is none, or is of a guest with more memory."""
    for guest in scenario.guests:
        name = guest.workload.trace
        if name is None:
            continue
        key = key_of(scenario, guest, "workload.trace")
        try:
            trace = load_trace(Path(name))
        except GuestError as error:
            why = error.message.removeprefix(f"trace {name}: ")
            raise ScenarioError(where, key, name, f"a trace as `bench record-trace` makes them ({why})") from None
        usable = (guest.memory - guest.store_memory) // PAGE_BYTES
        if trace.pages > guest.memory // PAGE_BYTES:
            memory = f"a guest.memory of at least '{trace.pages * PAGE_BYTES >> 20}MiB', which it was recorded from"
            raise ScenarioError(where, key, name, memory)
        if not len(trace.within(0, usable).numbers):
            raise ScenarioError(where, key, name, "a trace with a write outside of the store's memory")


def check_images(scenario: Scenario, where: str) -> None:
    """:raises ScenarioError: an image that cannot be read or does not fit."""
    for guest in scenario.guests:
        if guest.image is None:
            continue
        key = key_of(scenario, guest, "image")
        try:
            with Path(guest.image).open("rb") as file:
                size = file.seek(0, 2)
        except OSError as error:
            raise ScenarioError(where, key, guest.image, f"a readable file ({error.strerror})") from None
        if not 0 < size <= guest.memory - guest.store_memory:
            raise ScenarioError(
                where,
                key,
                f"{guest.image} of {size} bytes",
                f"1 to {guest.memory - guest.store_memory} bytes (guest.memory less guest.store_memory)",
            )
