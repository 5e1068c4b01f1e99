"""All migrations of a run together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.result import GuestOverall, MigrationResult, OverallResult


@dataclass(frozen=True, slots=True)
class CardFacts:
    """A network card of a guest. Addresses without prefix; *address6* empty and *vlan* 0 for none."""

    mac: str
    address: str
    address6: str = ""
    vlan: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(text for text in (self.address, self.address6) if text)


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """A guest of a run.

    :param mac: in lower case; *address* without prefix.
    :param home: the hypervisor that it booted on; *host* where it is at the end, None when it is lost.
    :param cards: all its network cards; empty: one with *mac* and *address*.
    """

    name: str
    mac: str
    address: str
    memory_bytes: int
    home: str = ""
    host: str | None = None
    cards: tuple[CardFacts, ...] = ()

    @property
    def all_cards(self) -> tuple[CardFacts, ...]:
        """The first one's first."""
        return self.cards or (CardFacts(self.mac, self.address),)


def most_at_once(stretches: Iterable[tuple[int, int]]) -> int:
    """How many of the stretches (start, end) go on at the same time at most; an end that is a start does not count."""
    changes = sorted(
        (moment, step) for start, end in stretches if end > start for moment, step in ((start, 1), (end, -1))
    )
    now = most = 0
    for _moment, step in changes:
        now += step
        most = max(most, now)
    return most


def overall(migrations: Sequence[MigrationResult], guests: Sequence[GuestFacts]) -> OverallResult | None:
    """None when no migration was to happen."""
    if not migrations:
        return None
    started = [item for item in migrations if item.end_ns > item.start_ns] or list(migrations)
    start_ns, end_ns = min(item.start_ns for item in started), max(item.end_ns for item in started)
    outcomes = [item.outcome for item in migrations]
    return OverallResult(
        start_ns=start_ns,
        end_ns=end_ns,
        total_ns=end_ns - start_ns,
        bytes_sent=sum(item.bytes_sent for item in migrations),
        at_once=most_at_once((item.start_ns, item.end_ns) for item in migrations),
        completed=outcomes.count("completed"),
        cancelled=outcomes.count("cancelled"),
        failed=outcomes.count("failed"),
        guests=[_guest(guest, [item for item in migrations if item.guest == guest.name]) for guest in guests],
    )


def _guest(guest: GuestFacts, migrations: Sequence[MigrationResult]) -> GuestOverall:
    return GuestOverall(
        name=guest.name,
        memory_bytes=guest.memory_bytes,
        home=guest.home,
        host=guest.host,
        moved=sum(item.outcome == "completed" for item in migrations),
        downtime_ns=sum(item.downtime_ns or 0 for item in migrations),
    )
