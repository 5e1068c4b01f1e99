"""Several guests: what each of ``[[guests]]`` inherits from ``[guest]``, and what is counted up to be its own."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from bench.scenario.guest import GuestSpec

MAX_GUESTS: Final = 32
_OWN: Final = ("name", "address", "mac")
_NOT_INHERITED: Final = (*_OWN, "vlan", "address6", "cards")
_MAX_NAME: Final = 8  # NodeName's
_MAC_HOST_BITS: Final = 24  # the lower half; the upper half names who made the card


def inherit(default: Mapping[str, Any], guests: Sequence[Any]) -> list[Any]:
    """Each of the decoded *guests* with the keys of the decoded ``[guest]`` that it does not have itself.

    The keys of ``workload`` are inherited one by one. What must differ between guests is not.
    """
    kept = {key: value for key, value in default.items() if key not in _NOT_INHERITED}
    load = kept.get("workload")
    if isinstance(load, Mapping):
        kept["workload"] = {key: value for key, value in load.items() if key != "seed"}
    return [_with(kept, guest) if isinstance(guest, Mapping) else guest for guest in guests]


def _with(default: Mapping[str, Any], guest: Mapping[str, Any]) -> dict[str, Any]:
    made = {**default, **guest}
    if isinstance(default.get("workload"), Mapping) and isinstance(guest.get("workload"), Mapping):
        made["workload"] = {**default["workload"], **guest["workload"]}
    return made


def complete(default: GuestSpec, guests: Sequence[GuestSpec]) -> tuple[GuestSpec, ...]:
    """*guests* with names, addresses, MAC addresses and seeds where they have none of their own.

    The first guest that has none gets that of *default*, the following ones the next ones that are free.

    :raises ValueError: two guests with one name, or more than :data:`MAX_GUESTS`.
    """
    if not guests:
        return (default,)
    if len(guests) > MAX_GUESTS:
        raise ValueError(f"at most {MAX_GUESTS} guests")
    given = [guest.name for guest in guests if "name" in guest.model_fields_set]
    if len(set(given)) != len(given):
        raise ValueError("guests with names that differ from each other")
    made = []
    counts: dict[str, Callable[[str], Iterator[str]]] = {"name": _names, "address": _addresses, "mac": _macs}
    free = {key: _free(key, count(getattr(default, key)), guests) for key, count in counts.items()}
    for number, guest in enumerate(guests):
        own: dict[str, Any] = {key: next(free[key]) for key in _OWN if key not in guest.model_fields_set}
        if "seed" not in guest.workload.model_fields_set:
            own["workload"] = guest.workload.model_copy(update={"seed": default.workload.seed + number})
        made.append(guest.model_copy(update=own))
    return tuple(made)


def _free(key: str, values: Iterator[str], guests: Sequence[GuestSpec]) -> Iterator[str]:
    """Those of *values* that no guest was given."""
    given = {getattr(guest, key) for guest in guests if key in guest.model_fields_set}
    return (value for value in values if value not in given)


def _names(first: str) -> Iterator[str]:
    """``g1``, ``g2``, ... ; ``vm``, ``vm2``, ... for a name without a number."""
    stem = first.rstrip("0123456789")
    digits = first[len(stem) :]
    yield first
    for number in itertools.count(int(digits) + 1 if digits else 2):
        yield f"{stem[: _MAX_NAME - len(str(number))]}{number}"


def _addresses(first: str) -> Iterator[str]:
    """The following addresses; whether they lie in the subnet is for the plan to say."""
    start = ipaddress.IPv4Address(first)
    for number in itertools.count():
        yield str(start + number)


def _macs(first: str) -> Iterator[str]:
    value = int(first.replace(":", ""), 16)
    upper, lower = value >> _MAC_HOST_BITS << _MAC_HOST_BITS, value % (1 << _MAC_HOST_BITS)
    for number in itertools.count():
        digits = f"{upper + (lower + number) % (1 << _MAC_HOST_BITS):012x}"
        yield ":".join(digits[at : at + 2] for at in range(0, 12, 2))
